"""Stage `prune`: a model in, a shorter or narrower one out, for distillation to heal."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage

if TYPE_CHECKING:
    import numpy as np

    from lmworks.models.model import Model

_HELDOUT_SHARE = 8  # one row in so many measures the loss and is not looked at


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Make a smaller model out of the parts of a larger one that do most on your text.

    What is left out is gone: heal it with `lmworks train distill`, the model it came from being
    the teacher.

    Examples:
        lmworks compress prune --model runs/base --layers 4 --out runs/short
        lmworks compress prune --model smollm2-135m --calibration runs/corpus --layers 24 \\
            --intermediate-size 1152 --out runs/small
        lmworks train distill --teacher smollm2-135m --student runs/small --corpus runs/corpus
    """

    model: str = option(role=REFERENCE, help="model folder or reference")
    layers: int = option(0, help="layers that stay; 0 keeps all")
    hidden_size: int = option(0, help="channels of the states that stay; 0 keeps all")
    intermediate_size: int = option(0, help="neurons of each feed-forward that stay; 0 keeps all")
    num_attention_heads: int = option(0, help="heads of each layer that stay; 0 keeps all")
    num_key_value_heads: int = option(0, help="key-value heads that stay; 0 keeps all")
    choose_layers: Literal["influence", "run"] = option(
        "influence", help="leave out the least layers one by one, or the least run of neighbours"
    )
    calibration: str = option(
        "", role=REFERENCE, help="text to look at; without it Python's documentation"
    )
    max_tokens: int = option(8192, help="tokens of it that are read")
    seed: int = option(0, help="same seed, same bytes")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@stage("prune", makes="model")
def prune_stage(config: PruneConfig, run: Run) -> dict[str, Any]:
    """Measure, cut, save; see PruneConfig."""
    import torch

    from lmworks.compression.calibration import calibration_rows, row_length
    from lmworks.models.load import load_language_model
    from lmworks.models.save import save_model
    from lmworks.tokenizers.load import load_tokenizer

    _check(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    tokenizer = load_tokenizer(run.inputs["model"])
    model = load_language_model(run.inputs["model"])
    rows = calibration_rows(
        run.inputs.get("calibration"),
        tokenizer,
        max_tokens=config.max_tokens,
        length=row_length(model.config),
        seed=config.seed,
    )
    heldout, seen = (
        rows[::_HELDOUT_SHARE],
        [row for index, row in enumerate(rows) if index % _HELDOUT_SHARE],
    )
    before, size = mean_loss(model, heldout), _num_parameters(model)
    made, kept = pruned(model, seen or rows, config)
    after = mean_loss(made, heldout)
    metrics = {
        "num_parameters_before": size,
        "num_parameters": _num_parameters(made),
        "kept_layers": kept,
        "loss_before": before,
        "loss": after,
    }
    save_model(made, run.folder, tokenizer=tokenizer, card=_card(config, metrics))
    return metrics


def _check(config: PruneConfig) -> None:
    sizes = ("layers", "hidden_size", "intermediate_size", *_HEADS)
    below = next((name for name in sizes if getattr(config, name) < 0), None)
    if below:
        raise UserError(f"{below} = {getattr(config, below)}: 0 keeps all, or give how many stay")
    if not any(getattr(config, name) for name in sizes):
        flags = ", ".join("--" + name.replace("_", "-") for name in sizes)
        raise UserError(f"nothing to cut: say how much stays with {flags}")


_HEADS = ("num_attention_heads", "num_key_value_heads")


def pruned(
    model: Model, rows: Sequence[np.ndarray], config: PruneConfig
) -> tuple[Model, list[int]]:
    """The smaller model, and which layers it kept: layers go first, then channels, then heads and
    neurons, each judged on what the cuts before it left.

    Args:
        rows: (T,) token ids each.
    Raises: UserError for sizes above the model's, or blocks that can't be cut.
    """
    from lmworks.compression.pruning.depth import layers_to_keep, with_layers
    from lmworks.compression.pruning.hidden import with_hidden_size
    from lmworks.compression.pruning.width import Widths, with_widths

    total = model.config.num_hidden_layers
    if config.layers > total:
        raise UserError(f"layers = {config.layers}: the model has {total}")
    kept = layers_to_keep(model, rows, config.layers or total, config.choose_layers)
    made = with_layers(model, kept) if len(kept) < total else model
    if config.hidden_size:
        made = with_hidden_size(made, rows, config.hidden_size)
    widths = Widths(
        intermediate_size=config.intermediate_size,
        **{name: getattr(config, name) for name in _HEADS},
    )
    return (with_widths(made, rows, widths) if widths != Widths() else made), kept


def mean_loss(model: Model, rows: Sequence[np.ndarray]) -> float:
    """Nats per token of rows of ids, each token from those before it."""
    import torch
    import torch.nn.functional as F

    total = count = 0.0
    with torch.inference_mode():
        for row in rows:
            if len(row) < 2:
                continue
            ids = torch.from_numpy(row)
            logits = model(ids[None, :-1])[0].float()
            total += float(F.cross_entropy(logits, ids[1:], reduction="sum"))
            count += len(row) - 1
    return total / max(count, 1)


def _num_parameters(model: Model) -> int:
    return sum(p.numel() for p in model.parameters())


def _card(config: PruneConfig, metrics: dict[str, Any]) -> str:
    return (
        f"Cut out of `{Path(config.model).name}`: {metrics['num_parameters']:,} of "
        f"{metrics['num_parameters_before']:,} parameters. Loss on text that was not looked at: "
        f"{metrics['loss_before']:.3f} nats per token before, {metrics['loss']:.3f} after. It was "
        "not trained since.\n"
    )
