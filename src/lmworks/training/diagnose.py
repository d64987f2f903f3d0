"""Which row of a batch is at fault, and where in the model a number first stopped being one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn

    from lmworks.training.batches import Rows
    from lmworks.training.objectives.base import Objective
    from lmworks.training.strategy import Compute, Strategy


@torch.no_grad()
def worst_row(
    strategy: Strategy, model: nn.Module, objective: Objective, batch: Rows, compute: Compute
) -> tuple[int, float]:
    """The row with the highest loss by itself, and that loss; one that is not finite is higher."""
    worst, highest = 0, -math.inf
    for index in range(batch.num_rows):
        row = batch.rows(index, index + 1)
        if not row.num_targets:
            continue
        loss = strategy.evaluate(model, objective, [row], compute).loss
        if not math.isfinite(loss):
            return index, loss
        if loss > highest:
            worst, highest = index, loss
    return worst, highest


@torch.no_grad()
def first_not_finite(
    strategy: Strategy, model: nn.Module, objective: Objective, batch: Rows, compute: Compute
) -> str | None:
    """What is not finite first: a weight, or the output of a module, by name; None if all are."""
    for name, parameter in model.named_parameters():
        if not _finite(parameter):
            return f"the weight {name}"
    found: list[str] = []

    def hook(name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and isinstance(output, torch.Tensor) and not _finite(output):
                inside = all(_finite(x) for x in inputs if isinstance(x, torch.Tensor))
                found.append(
                    f"{name or 'the model'}" + ("" if inside else " (and what it was given)")
                )

        return look

    handles = [m.register_forward_hook(hook(name)) for name, m in model.named_modules()]
    try:
        loss = strategy.evaluate(model, objective, [batch], compute).loss
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f"the output of {found[0]}"
    return None if math.isfinite(loss) else "the loss itself"


def bad_gradient(model: nn.Module) -> str | None:
    """The first parameter whose gradient is not finite, by name."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and not _finite(parameter.grad):
            return name
    return None


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
