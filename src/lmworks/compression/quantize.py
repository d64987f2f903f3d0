"""Stage `quantize`: a model in, one GGUF file with smaller weights out.

How matrices are rounded says `--method` (`methods/base.py`); all methods write the same ggml types.
Vectors (norms) stay float32. A matrix whose rows do not divide into blocks of 256 falls back to a
type with blocks of 32, one that does not divide by 32 either to float16, one with weights past what
the scales can hold to float32, and the metrics say so. One layer is in memory at a time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.files import write_json, write_text
from lmworks.core.stages import Run, stage

if TYPE_CHECKING:
    import numpy as np

    from lmworks.compression.layer_source import LayerSource
    from lmworks.compression.methods.base import Method
    from lmworks.compression.mix import Mix
    from lmworks.core.gguf import GGUFTensor

MODEL_FILE = "model.gguf"


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """Make a model's weights smaller and write them as one GGUF file.

    Without more than a type, weights are rounded to nearest. With calibration text, codes and
    scales are solved for so that the outputs on it stay right, which matters below 8 bits. With a
    target size, each tensor gets the type that serves the answers most for its bytes.

    Examples:
        lmworks compress quantize --model runs/chat --out runs/chat-q8
        lmworks compress quantize --model runs/chat --type Q4_K --calibration runs/dataset
        lmworks compress quantize --model smollm2-135m --target-size 80MB --keep '*_norm*=F32'
        lmworks compress quantize --model smollm2-135m --target-bpw 4.5 --dry-run
    """

    model: str = option(role=REFERENCE, help="model folder or reference")
    type: Literal[
        "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K",
        "Q2_K", "BF16", "F16", "F32",
    ] = option("Q8_0", help="type of the matrices")  # fmt: skip
    method: str = option(
        "", help="rtn, hqq, imatrix, awq, gptq or solve; by default solve with text, else rtn"
    )
    calibration: str = option(
        "",
        role=REFERENCE,
        help="text to keep right: corpus, dataset, folder, text or JSONL file; where a method "
        "needs some and none is given, Python's documentation",
    )
    calibration_tokens: int = option(8192, help="tokens of it to look at")
    importance: str = option(
        "", role=REFERENCE, help="importance matrix (imatrix file of llama.cpp) to weigh inputs by"
    )
    target_size: str = option("", help="size of the file, such as 80MB; chooses the type by tensor")
    target_bpw: float = option(0.0, help="the same in bits per weight")
    keep: list[str] = option([], help="PATTERN=TYPE of tensors whose type is set", repeat="--keep")
    damping: float = option(
        0.0, help="how much weights count beside outputs; 0: the method's own", flag=False
    )
    seed: int = option(0, help="which of the calibration text is taken")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


def plan(config: QuantizeConfig) -> Iterator[str]:
    """The types that tensors would get, for a dry run."""
    from lmworks.compression.mix import table
    from lmworks.core.references import resolve

    path = resolve(config.model).path
    if path is None:
        raise UserError(f"{config.model} is a remote endpoint, which gives no weights")
    calibration = resolve(config.calibration).path if config.calibration else None
    job = _Job(config, path, calibration, None)
    yield from table(job.mix(), job.source.shapes())


@stage("quantize", makes="model", version=2, plan=plan)
def quantize(config: QuantizeConfig, run: Run) -> dict[str, Any]:
    """Quantise and write; see QuantizeConfig."""
    from lmworks.compression.layer_quantizer import LayerQuantizer
    from lmworks.compression.tensor_store import TensorStore
    from lmworks.core.gguf import write_gguf

    job = _Job(
        config, run.inputs["model"], run.inputs.get("calibration"), run.inputs.get("importance")
    )
    mix = job.kept_mix(run.work)
    store = TensorStore(run.work)
    quantizer = LayerQuantizer(
        job.source, store, mix.type_of, job.how,
        rows=job.rows if job.needs_rows(mix) else (), importance=job.importance,
        damping=config.damping,
    )  # fmt: skip
    quantizer.run()
    shapes = job.source.shapes()
    tensors = store.tensors(list(shapes))
    types = Counter(tensor.type for tensor in tensors.values())
    write_gguf(run.folder / MODEL_FILE, job.metadata(types), tensors)
    size = (run.folder / MODEL_FILE).stat().st_size
    metrics = _metrics(config, mix, shapes, tensors, store.facts)
    metrics |= {"bytes_after": size, "method": job.name}
    write_json(run.folder / "quantized.json", _by_tensor(tensors, store.facts))
    write_text(run.folder / "README.md", _card(config, job.name, metrics))
    return metrics


class _Job:
    """What the config asks for, made when it is needed.

    Raises: UserError for settings that contradict each other, before anything is read.
    """

    def __init__(
        self, config: QuantizeConfig, model: Path, calibration: Path | None, importance: Path | None
    ) -> None:
        from lmworks.compression.methods.base import method

        self.config, self._model, self._calibration = config, model, calibration
        self._importance = importance
        if config.target_size and config.target_bpw:
            raise UserError("give a target size or target bits per weight, not both")
        self.name = config.method or self._usual_method()
        self.how: Method = method(self.name)
        if config.threads:
            import torch

            torch.set_num_threads(config.threads)

    def _usual_method(self) -> str:
        if self.sized or self._calibration:
            return "solve"
        return "rtn" if self._importance is None else "imatrix"

    @functools.cached_property
    def source(self) -> LayerSource:
        from lmworks.compression.layer_source import LayerSource

        return LayerSource(self._model)

    @property
    def sized(self) -> bool:
        return bool(self.config.target_size or self.config.target_bpw)

    def needs_rows(self, mix: Mix) -> bool:
        """Whether calibration text is looked at to quantise `mix`."""
        from lmworks.core.ggml_types import FLOATS

        if self.how.needs == "nothing" or set(mix.types.values()) <= set(FLOATS):
            return False
        return self.how.needs == "moments" or self._importance is None

    @functools.cached_property
    def rows(self) -> list[np.ndarray]:
        from lmworks.compression.calibration import calibration_rows, row_length
        from lmworks.tokenizers.load import load_tokenizer

        return calibration_rows(
            self._calibration, load_tokenizer(self._model),
            max_tokens=self.config.calibration_tokens, length=row_length(self.source.config),
            seed=self.config.seed,
        )  # fmt: skip

    @functools.cached_property
    def importance(self) -> dict[str, np.ndarray]:
        if self._importance is None:
            return {}
        from lmworks.core.importance import read_importance

        return read_importance(self._importance)

    def mix(self) -> Mix:
        """Which type each tensor gets."""
        from lmworks.compression.mix import find_mix, uniform_mix

        shapes, keep = self.source.shapes(), self.config.keep
        if not self.sized:
            return uniform_mix(self.config.type, shapes, keep)
        return find_mix(
            self.source, self.rows, self.how, target=self.target_bytes(shapes),
            overhead=self.overhead(shapes), keep=keep, seed=self.config.seed,
            damping=self.config.damping,
        )  # fmt: skip

    def kept_mix(self, work: Path) -> Mix:
        """`mix`, or what an earlier run that was stopped found."""
        from lmworks.compression.mix import Mix
        from lmworks.core.files import read_json

        path = work / "mix.json"
        if path.is_file():
            return Mix(**read_json(path, "mix of types"))
        mix = self.mix()
        write_json(path, dataclasses.asdict(mix))
        return mix

    def target_bytes(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Of the whole file."""
        from lmworks.core.quantities import parse_bytes

        if self.config.target_size:
            return parse_bytes(self.config.target_size, "target_size")
        from math import prod

        if not self.config.target_bpw > 0:
            raise UserError(f"target_bpw = {self.config.target_bpw}: bits per weight, such as 4.5")
        return int(sum(prod(shape) for shape in shapes.values()) * self.config.target_bpw / 8)

    def metadata(self, types: Mapping[str, int]) -> dict[str, Any]:
        """Of the file; its type is the commonest one of the matrices."""
        from lmworks.core.ggml_types import FILE_TYPES
        from lmworks.models.architectures.base import architecture_of
        from lmworks.tokenizers.load import load_tokenizer

        config = self.source.config
        matrices = {kind: count for kind, count in types.items() if kind != "F32"} or {"F32": 1}
        common = max(sorted(matrices), key=lambda kind: matrices[kind])
        return {
            "general.architecture": architecture_of(config, "gguf").name,
            "general.name": Path(self.config.model).name,
            "general.file_type": FILE_TYPES.get(common if self.sized else self.config.type, 0),
            "general.quantization_version": 2,
            **self.source.layout.config_dict(config),
            **load_tokenizer(self._model).gguf_metadata(),
        }

    @functools.cached_property
    def _header_bytes(self) -> int:
        import tempfile

        from lmworks.core.gguf import write_gguf

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / MODEL_FILE
            write_gguf(path, self.metadata({}), {})
            return path.stat().st_size

    def overhead(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Bytes of the file beside its tensors: metadata, table of tensors, alignment."""
        infos = sum(24 + len(name.encode()) + 8 * len(shape) for name, shape in shapes.items())
        return self._header_bytes + infos + 32


def _metrics(
    config: QuantizeConfig,
    mix: Mix,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, GGUFTensor],
    facts: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    from math import prod

    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    errors = [facts[name]["error"] for name in matrices]
    outputs = [f["output_error"] for f in facts.values() if "output_error" in f]
    count = sum(prod(shape) for shape in shapes.values())
    bits = 8 * sum(tensor.data.nbytes for tensor in tensors.values()) / count
    metrics: dict[str, Any] = {
        "bytes_before": 4 * count,
        "bits_per_weight": round(bits, 3),
        "types": dict(Counter(tensor.type for tensor in tensors.values())),
        "mean_relative_error": sum(errors) / max(len(errors), 1),
        "max_relative_error": max(errors, default=0.0),
        "fallbacks": [name for name in matrices if tensors[name].type != mix.wanted(name)],
    }
    if outputs:
        metrics["mean_output_error"] = sum(outputs) / len(outputs)
    if mix.predicted_kl is not None:
        metrics["predicted_kl"] = mix.predicted_kl
    return metrics


def _by_tensor(
    tensors: Mapping[str, GGUFTensor], facts: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    return {
        name: {"type": t.type, "shape": list(t.shape), "bytes": t.data.nbytes, **facts[name]}
        for name, t in tensors.items()
    }


def encode(name: str, array: np.ndarray, kind: str) -> GGUFTensor:
    """One tensor, rounded to nearest, in the wanted type or the nearest that it can have."""
    import numpy as np

    from lmworks.compression.layer_quantizer import encode_matrix
    from lmworks.compression.methods.base import Matrix
    from lmworks.compression.methods.rtn import round_to_nearest

    array = np.asarray(array, dtype=np.float32)
    matrix = Matrix(name=name, weight=array.reshape(-1, array.shape[-1]))
    return encode_matrix(matrix, array.shape, kind, round_to_nearest)


def relative_error(tensor: GGUFTensor, array: np.ndarray) -> float:
    """|quantised - original| / |original|, Frobenius norms."""
    import numpy as np

    from lmworks.core.gguf import dequantize

    norm = float(np.linalg.norm(array))
    return float(np.linalg.norm(dequantize(tensor) - array)) / norm if norm else 0.0


def _card(config: QuantizeConfig, method: str, metrics: Mapping[str, Any]) -> str:
    asked = config.target_size or (
        f"{config.target_bpw} bits" if config.target_bpw else config.type
    )
    types = ", ".join(f"{count} {kind}" for kind, count in metrics["types"].items())
    how = "" if method == "rtn" else f" by `{method}`"
    return (
        f"# {Path(config.model).name}, {asked}\n\n"
        f"`{MODEL_FILE}` ({metrics['bytes_after'] / 1e6:.1f} MB, "
        f"{metrics['bits_per_weight']:.2f} bits per weight, quantised{how}: {types}) holds "
        "weights, vocabulary and chat template. "
        "lmworks, llama.cpp and transformers (`gguf_file=`) read it.\n"
    )
