"""Stage `quantize_safetensors`: a model in; out, a folder of integers or 8-bit floats with scales.

Layer by layer on calibration text: SmoothQuant first where activations are rounded too, then each
matrix's codes (`coding`), then the layer as it will be computed gives the next one's inputs. The
embedding, the head, norms, routers and stacked experts stay floats.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from lmworks.compression.formats.base import Coded
    from lmworks.compression.layer_inputs import LayerInputs
    from lmworks.models.compressed_scheme import Scheme
    from lmworks.models.model import Model

Type = Literal[
    "int4", "int4-shifted", "int3", "int2", "int8", "w8a8", "w8a8-static",
    "fp8", "fp8-static", "fp8-weights",
]  # fmt: skip
_GROUPS = (128, 64, 32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeSafetensorsConfig:
    """Make a model's weights, and perhaps its activations, smaller, for vLLM and transformers.

    The folder is in the compressed-tensors format; `lmworks serve` computes with it as it is.
    int4: weights of 4 bits in groups. w8a8: weights and activations of 8 bits (SmoothQuant).
    fp8: the same as floats. For llama.cpp use `lmworks compress quantize`.

    Examples:
        lmworks compress safetensors --model runs/chat --out runs/chat-int4
        lmworks compress safetensors --model runs/chat --type w8a8 \\
            --calibration runs/questions --out runs/chat-w8a8
    """

    model: str = option(role=REFERENCE, help="model folder or reference")
    type: Type = option(
        "int4", help="type of the layers' matrices, a-parts: of what they are given"
    )
    method: Literal["solve", "search", "round"] = option(
        "solve", help="how codes are chosen: solved for, scales searched, or rounded"
    )
    group: int = option(128, help="columns that share a scale; halved until all matrices divide")
    smooth: float = option(
        0.5, help="of types with rounded activations: SmoothQuant's share; 0: none"
    )
    calibration: str = option(
        "",
        role=REFERENCE,
        help="text, corpus or dataset to look at the model on; '': Python's docs",
    )
    calibration_tokens: int = option(8192, help="tokens of it")
    rest: Literal["float16", "bfloat16", "float32"] = option(
        "float16", help="type of what stays a float: embedding, norms"
    )
    seed: int = option(0, help="which texts are taken")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@stage("quantize_safetensors", makes="model")
def quantize_safetensors(config: QuantizeSafetensorsConfig, run: Run) -> dict[str, Any]:
    """Smooth, code, write; see QuantizeSafetensorsConfig."""
    import torch

    from lmworks.compression.calibration import calibration_rows, row_length
    from lmworks.compression.formats.base import scheme_of, writer
    from lmworks.core.machine import usable_cores
    from lmworks.models.load import load_language_model
    from lmworks.tokenizers.load import load_tokenizer

    if not 0 <= config.smooth <= 1:
        raise UserError(f"smooth = {config.smooth}: give a share from 0 to 1")
    torch.set_num_threads(config.threads or usable_cores())
    source = run.inputs["model"]
    model, tokenizer = load_language_model(source), load_tokenizer(source)
    group = fitting_group(model, config.group)
    scheme = scheme_of(config.type, group)
    rows: Sequence[np.ndarray] = []
    if config.method != "round" or scheme.inputs:
        sources = run.inputs.get("calibration")
        rows = calibration_rows(
            sources, tokenizer, max_tokens=config.calibration_tokens,
            length=row_length(model.config), seed=config.seed,
        )  # fmt: skip
    before = sum(p.numel() * 4 for p in model.parameters())
    coded, errors = code_model(
        model, scheme, rows, method=config.method, smooth=config.smooth if scheme.inputs else 0.0
    )
    card = (
        f"# {Path(config.model).name}, {config.type}\n\nLinear modules of the layers in "
        f"{config.type} (compressed-tensors), the rest in {config.rest}. lmworks, vLLM and "
        "transformers read it.\n"
    )
    writer("compressed-tensors")(
        coded, run.folder, tokenizer=tokenizer, card=card, dtype=config.rest
    )
    after = sum(path.stat().st_size for path in run.folder.glob("*.safetensors"))
    return {
        "bytes_before": before,
        "bytes_after": after,
        "group": scheme.group_size,
        "matrices": len(coded.modules),
        "mean_output_error": sum(errors.values()) / len(errors),
        "worst": max(errors, key=errors.__getitem__),
    }


def fitting_group(model: Model, wanted: int) -> int:
    """The largest group up to `wanted` that divides the columns of every coded matrix.

    Raises: UserError for a size that isn't 32, 64 or 128, or a model that none of them divides.
    """
    if wanted not in _GROUPS:
        raise UserError(f"group = {wanted}: give 128, 64 or 32")
    modules: dict[str, Any] = {path: model.get_submodule(path) for path in coded_paths(model)}
    widths: dict[str, int] = {path: module.in_features for path, module in modules.items()}
    for size in (size for size in _GROUPS if size <= wanted):
        if all(width % size == 0 for width in widths.values()):
            return size
    path = next(path for path, width in widths.items() if width % 32)
    raise UserError(
        f"{path} has {widths[path]} columns, which groups of 32 do not divide: choose int8, whose "
        "rows have one scale"
    )


def coded_paths(model: Model) -> list[str]:
    """The linear modules of the layers that are coded. Raises: UserError if there are none."""
    from lmworks.compression.formats.compressed_tensors import foreign_names
    from lmworks.models.architectures.base import architecture_of

    names = foreign_names(model, architecture_of(model.config).layout("hf"))
    paths = [path for path in names if not path.endswith((".router", ".shared_gate"))]
    if not paths:
        raise UserError("the layers of this model hold no linear modules that the format can name")
    return paths


def code_model(
    model: Model,
    scheme: Scheme,
    rows: Sequence[np.ndarray],
    *,
    method: str = "solve",
    smooth: float = 0.0,
) -> tuple[Coded, dict[str, float]]:
    """Code all layers, in place.

    Args:
        rows: token ids of the calibration text; none leaves the method `round`.
        smooth: SmoothQuant's share; 0 for none.
    Returns: the coded model, and by path how far a matrix's outputs are off, mean square over
        mean square (of the weights themselves, without text).
    Raises: UserError for static scales without text.
    """
    import torch

    from lmworks.compression.coding import code_matrix
    from lmworks.compression.folding import find_folds
    from lmworks.compression.formats.base import Coded
    from lmworks.compression.layer_inputs import LayerWalk
    from lmworks.compression.smoothing import smooth_layer
    from lmworks.core.progress import track
    from lmworks.models.activation_rounding import WAYS, RoundedLinear

    if scheme.inputs and not scheme.dynamic and not rows:
        raise UserError("static scales of activations need calibration text")
    paths = coded_paths(model)
    folds = find_folds(model) if smooth else None
    modules, scales, errors = {}, {}, {}
    walk = LayerWalk(model, rows) if rows else None
    with track("quantising", total=len(paths)) as bar, torch.no_grad():
        for index in range(len(model.layers)):
            here = [path for path in paths if path.startswith(f"layers.{index}.")]
            inputs: dict[str, LayerInputs] = {}
            if walk is not None:
                inputs = walk.inputs(index, here, moments=method == "solve")
                if folds is not None:
                    inputs = smooth_layer(model, folds.of_layer(index), inputs, smooth)
            for path in here:
                module: Any = model.get_submodule(path)
                seen = inputs.get(path)
                modules[path] = coded = code_matrix(module.weight.detach(), scheme, seen, method)
                values = coded.dequantized()
                errors[path] = output_error(values, module.weight, seen)
                module.weight.copy_(values)
                if scheme.inputs and not scheme.dynamic and seen is not None:
                    largest = float(seen.largest.max())
                    scales[path] = max(largest, 1e-6) / WAYS[scheme.inputs][1]
                if rounding := scheme.rounding(scales.get(path)):
                    _put(model, path, RoundedLinear(module, rounding))
                bar.advance()
            if walk is not None:
                walk.advance(index)
            for path in here:
                made: Any = model.get_submodule(path)
                if isinstance(made, RoundedLinear):
                    _put(model, path, made.base)
    return Coded(model=model, scheme=scheme, modules=modules, input_scales=scales), errors


def output_error(values: Any, weight: Any, inputs: LayerInputs | None) -> float:
    """How far the outputs of `values` are from those of `weight`, both (rows, n): mean square over
    mean square; of the matrices themselves where no inputs are known."""
    import torch

    off, whole = values - weight, weight
    if inputs is None:
        return float(off.square().sum() / whole.square().sum().clamp(min=1e-30))
    if inputs.moment is None:
        mean = torch.from_numpy(inputs.mean_square)
        return float((off.square() @ mean).sum() / (whole.square() @ mean).sum().clamp(min=1e-30))
    moment = torch.from_numpy(inputs.moment)
    both = [(part @ moment).mul_(part).sum() for part in (off, whole)]
    return float(both[0] / both[1].clamp(min=1e-30))


def _put(model: Model, path: str, module: Any) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
