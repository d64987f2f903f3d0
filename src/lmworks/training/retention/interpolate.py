"""Interpolation: tune freely, then go back toward the start until the budget is kept.

The weights of the end lie on the line between the start and the tuned model, as near to the tuned
one as the budget allows; how far is found by halving, with a look at general text each time.

Source: Wortsman et al. 2022, arXiv 2109.01903, section 3 (WiSE-FT). Differs: the mixing coefficient
is the largest that keeps the budget, instead of one chosen on validation data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from lmworks.training.retention.base import FromStart, copied, trained_parameters

if TYPE_CHECKING:
    from lmworks.models.model import Model

_HALVINGS = 6


class Interpolate(FromStart):
    """Settles between the start and the tuned weights."""

    def settle(self, model: Model, measure: Callable[[], float], limit: float | None) -> str | None:
        """See `Retention.settle`."""
        if limit is None or measure() <= limit:
            return None
        tuned = copied(model)
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            self._go(model, tuned, middle)
            low, high = (middle, high) if measure() <= limit else (low, middle)
        self._go(model, tuned, low)
        return f"went back to {low:.0%} of the way from the start to the tuned weights"

    def _go(self, model: Model, tuned: dict[str, torch.Tensor], share: float) -> None:
        with torch.no_grad():
            for name, parameter in trained_parameters(model).items():
                parameter.copy_(torch.lerp(self._start[name], tuned[name], share))
