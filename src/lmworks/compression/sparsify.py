"""Stage `sparsify`: a model in; out, the same with a share of its layers' weights at zero.

Layer by layer on calibration text, each on what the sparse layers before it give. The embedding,
the head, norms, routers and stacked experts stay. What a zero is worth depends on who multiplies:
here it costs what any number costs; vLLM and TensorRT multiply 2:4 matrices at twice the rate.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.stages import Run, stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from lmworks.compression.sparsity import Pattern
    from lmworks.models.model import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparsifyConfig:
    """Set a share of a model's weights to zero, those that the outputs need least.

    Fine-tune it afterwards with `lmworks train adapt --set loop.keep_zeros=true` (or sft, distill).

    Examples:
        lmworks compress sparsify --model runs/chat --out runs/chat-half
        lmworks compress sparsify --model smollm2-135m --sparsity 2:4 --method wanda
    """

    model: str = option(role=REFERENCE, help="model folder or reference")
    sparsity: str = option("0.5", help="share of each matrix that goes, or N:M, such as 2:4")
    method: Literal["sparsegpt", "wanda", "magnitude"] = option(
        "sparsegpt", help="how weights are chosen; sparsegpt changes the others too"
    )
    calibration: str = option(
        "",
        role=REFERENCE,
        help="text, corpus or dataset to look at the model on; '': Python's docs",
    )
    calibration_tokens: int = option(8192, help="tokens of it")
    seed: int = option(0, help="which texts are taken")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@stage("sparsify", makes="model")
def sparsify(config: SparsifyConfig, run: Run) -> dict[str, Any]:
    """Choose, write; see SparsifyConfig."""
    import torch

    from lmworks.compression.calibration import calibration_rows, row_length
    from lmworks.compression.sparsity import parse_pattern
    from lmworks.core.machine import usable_cores
    from lmworks.models.load import load_language_model
    from lmworks.models.save import save_model
    from lmworks.tokenizers.load import load_tokenizer

    pattern = parse_pattern(config.sparsity)
    torch.set_num_threads(config.threads or usable_cores())
    source = run.inputs["model"]
    model, tokenizer = load_language_model(source), load_tokenizer(source)
    rows: Sequence[np.ndarray] = []
    if config.method != "magnitude":
        sources = run.inputs.get("calibration")
        rows = calibration_rows(
            sources, tokenizer, max_tokens=config.calibration_tokens,
            length=row_length(model.config), seed=config.seed,
        )  # fmt: skip
    errors = sparsify_model(model, pattern, config.method, rows)
    card = (
        f"`{Path(config.model).name}` with {config.sparsity} of the weights of its layers at zero "
        f"({config.method}).\n"
    )
    save_model(model, run.folder, tokenizer=tokenizer, card=card)
    whole = sum(p.numel() for p in model.parameters())
    zeros = sum(int((p == 0).sum()) for p in model.parameters())
    return {
        "matrices": len(errors),
        "zeros": zeros / whole,
        "mean_output_error": sum(errors.values()) / len(errors),
        "worst": max(errors, key=errors.__getitem__),
    }


def sparsify_model(
    model: Model, pattern: Pattern, method: str, rows: Sequence[np.ndarray]
) -> dict[str, float]:
    """Set weights to zero, in place.

    Args:
        rows: token ids of the calibration text; `magnitude` needs none.
    Returns: by path of a matrix how far its outputs are off, mean square over mean square.
    Raises: UserError for rows that N:M does not divide, by name.
    """
    import torch
    from torch import nn

    from lmworks.compression.layer_inputs import LayerWalk, linear_paths
    from lmworks.compression.quantize_safetensors import output_error
    from lmworks.compression.sparsity import check_pattern, sparsify_matrix
    from lmworks.core.errors import UserError
    from lmworks.core.progress import track

    by_layer = [
        [
            path
            for path in linear_paths(layer, f"layers.{index}")
            if isinstance(model.get_submodule(path), nn.Linear)
            and not path.endswith((".router", ".shared_gate"))
        ]
        for index, layer in enumerate(model.layers)
    ]
    modules: dict[str, Any] = {p: model.get_submodule(p) for here in by_layer for p in here}
    if not modules:
        raise UserError("the layers of this model hold no plain linear modules")
    for path, module in modules.items():
        check_pattern(pattern, module.in_features, path)
    errors = {}
    walk = LayerWalk(model, rows) if len(rows) else None
    with track("sparsifying", total=len(modules)) as bar, torch.no_grad():
        for index, here in enumerate(by_layer):
            inputs = {} if walk is None else walk.inputs(index, here, moments=method == "sparsegpt")
            for path in here:
                weight = modules[path].weight
                values = sparsify_matrix(weight.detach(), pattern, method, inputs.get(path))
                errors[path] = output_error(values, weight, inputs.get(path))
                weight.copy_(values)
                bar.advance()
            if walk is not None:
                walk.advance(index)
    return errors
