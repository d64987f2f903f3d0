"""Stage `quantize`: a model in, one GGUF file with smaller weights out.

Round to nearest on the grid of a ggml type, as llama.cpp does without an importance matrix (see
`core/quantizers.py`). Vectors (norms) stay float32. A matrix whose rows do not divide into blocks
of 256 falls back to a type with blocks of 32, one that does not divide by 32 either to float16, one
with weights past what the scales can hold to float32, and the metrics say so.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core.config import REFERENCE, option
from lmworks.core.files import write_text
from lmworks.core.stages import Run, stage

if TYPE_CHECKING:
    import numpy as np

    from lmworks.core.gguf import GGUFTensor

MODEL_FILE = "model.gguf"
# llama.cpp's numbers for "mostly of this type", shown by its tools.
_FILE_TYPES = {
    **{"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9},
    **{"Q4_K": 14, "Q5_K": 16, "Q6_K": 18},
}
_INSTEAD = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # for other widths, as llama.cpp
_LARGEST_HALF = 65504.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """Make a model's weights smaller and write them as one GGUF file.

    Examples:
        lmworks compress quantize --model runs/chat --out runs/chat-q8
        lmworks compress quantize --model smollm2-135m --type F16 --out smol-f16
    """

    model: str = option(role=REFERENCE, help="model folder or reference")
    type: Literal["Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "F16", "F32"] = (
        option("Q8_0", help="type of the matrices")
    )


@stage("quantize", makes="model")
def quantize(config: QuantizeConfig, run: Run) -> dict[str, Any]:
    """Quantise and write; see QuantizeConfig."""
    from lmworks.core.gguf import write_gguf
    from lmworks.models.architectures.base import architecture_of, to_gguf
    from lmworks.models.load import load_language_model
    from lmworks.tokenizers.load import load_tokenizer

    source = run.inputs["model"]
    model, tokenizer = load_language_model(source), load_tokenizer(source)
    state = {name: p.detach().numpy() for name, p in model.named_parameters()}
    tensors = {
        name: encode(name, array, config.type)
        for name, array in to_gguf(model.config, state).items()
    }
    architecture = architecture_of(model.config, "gguf")
    metadata = {
        "general.architecture": architecture.name,
        "general.name": Path(config.model).name,
        "general.file_type": _FILE_TYPES[config.type],
        "general.quantization_version": 2,
        **architecture.layout("gguf").config_dict(model.config),
        **tokenizer.gguf_metadata(),
    }
    write_gguf(run.folder / MODEL_FILE, metadata, tensors)
    errors = [
        relative_error(tensors[name], array) for name, array in _matrices(model.config, state)
    ]
    after = (run.folder / MODEL_FILE).stat().st_size
    write_text(run.folder / "README.md", _card(config, after))
    return {
        "bytes_before": sum(array.nbytes for array in state.values()),
        "bytes_after": after,
        "types": dict(Counter(tensor.type for tensor in tensors.values())),
        "mean_relative_error": sum(errors) / len(errors),
        "max_relative_error": max(errors),
        "fallbacks": [
            t.name for t in tensors.values() if len(t.shape) == 2 and t.type != config.type
        ],
    }


def _matrices(config: Any, state: dict[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
    from lmworks.models.architectures.base import to_gguf

    return [(n, a) for n, a in to_gguf(config, state).items() if a.ndim == 2]


def encode(name: str, array: np.ndarray, kind: str) -> GGUFTensor:
    """One tensor in the wanted type, or in the nearest that its shape and values allow."""
    import numpy as np

    from lmworks.core import quantizers
    from lmworks.core.errors import UserError
    from lmworks.core.ggml_types import TYPES
    from lmworks.core.gguf import GGUFTensor

    if array.ndim < 2:
        kind = "F32"
    if kind in _INSTEAD and array.shape[-1] % TYPES[kind].size:
        kind = _INSTEAD[kind]
    if kind in quantizers.QUANTIZERS and array.shape[-1] % TYPES[kind].size:
        kind = "F16"
    data = None
    if kind in quantizers.QUANTIZERS and np.isfinite(array).all():
        try:
            data = quantizers.quantize(array, kind, name=name)
        except UserError:  # too large for its scales
            kind = "F32"
    elif kind != "F32" and not np.abs(array).max(initial=0) <= _LARGEST_HALF:
        kind = "F32"
    if data is None:
        data = np.ascontiguousarray(array, dtype=np.float16 if kind == "F16" else np.float32)
    return GGUFTensor(name=name, shape=array.shape, type=kind, data=data.reshape(-1).view(np.uint8))


def relative_error(tensor: GGUFTensor, array: np.ndarray) -> float:
    """|quantised - original| / |original|, Frobenius norms."""
    import numpy as np

    from lmworks.core.gguf import dequantize

    norm = float(np.linalg.norm(array))
    return float(np.linalg.norm(dequantize(tensor) - array)) / norm if norm else 0.0


def _card(config: QuantizeConfig, num_bytes: int) -> str:
    return (
        f"# {Path(config.model).name}, {config.type}\n\n"
        f"`{MODEL_FILE}` ({num_bytes / 1e6:.1f} MB) holds weights, vocabulary and chat template. "
        "lmworks, llama.cpp and transformers (`gguf_file=`) read it.\n"
    )
