"""Adafactor: the second moment of a matrix from the sums of its rows and columns.

A matrix of R x C keeps R + C numbers instead of R * C. Updates are cut down by their root mean
square, so that no momentum is needed to keep them calm. Source: Shazeer & Stern 2018, "Adafactor:
adaptive learning rates with sublinear memory cost", arXiv 1804.04235, algorithms 4 to 6. Differs:
decay is decoupled, and the peak rate is under the schedule's factor in every mode.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from lmworks.training.optimizers.base import OptimizerConfig, decay_groups, parameters_by_kind
from lmworks.training.optimizers.parameterwise import Parameterwise, State

if TYPE_CHECKING:
    from torch import nn

_EPS_SQUARE = 1e-30
_SMALLEST_SCALE = 1e-3


class Adafactor(Parameterwise):
    """Of more than two dimensions (stacks of experts), the last two are factored."""

    def fresh(self, parameter: torch.Tensor) -> State:
        zeros = parameter.new_zeros
        if parameter.ndim >= 2:
            shape = parameter.shape
            state = {"rows": zeros(shape[:-1]), "columns": zeros(*shape[:-2], shape[-1])}
        else:
            state = {"squares": torch.zeros_like(parameter)}
        if self.config.adafactor.first_moment:
            state["momentum"] = torch.zeros_like(parameter)
        return state

    def update(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        state: State,
        *,
        rate: float,
        decay: float,
        count: int,
    ) -> None:
        settings = self.config.adafactor
        if settings.relative_step and self.config.peak_rate * math.sqrt(count) > 1:
            rate = rate / (self.config.peak_rate * math.sqrt(count))  # 1 / sqrt(count), scheduled
        new = count**settings.decay_rate
        squares = gradient.square().add_(_EPS_SQUARE)
        if gradient.ndim >= 2:
            rows, columns = state["rows"], state["columns"]
            rows.lerp_(squares.mean(-1), new)
            columns.lerp_(squares.mean(-2), new)
            by_row = (rows / rows.mean(-1, keepdim=True)).rsqrt_().unsqueeze(-1)
            change = by_row * columns.unsqueeze(-2).rsqrt() * gradient
        else:
            change = state["squares"].lerp_(squares, new).rsqrt().mul_(gradient)
        # Tensors all along: reading a size back would have a GPU wait.
        step = rate / (_rms(change) / settings.clip_threshold).clamp_(min=1.0)
        scale = _rms(parameter).clamp_(min=_SMALLEST_SCALE) if settings.scale_parameter else 1.0
        change.mul_(step * scale)
        if settings.first_moment:
            change = state["momentum"].lerp_(change, 1 - self.config.beta1)
        if decay:
            parameter.mul_(1 - rate * decay * scale)
        parameter.sub_(change)


def _rms(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.norm() / math.sqrt(tensor.numel())


def make_adafactor(model: nn.Module, config: OptimizerConfig) -> Adafactor:
    return Adafactor(decay_groups(parameters_by_kind(model), config), config)
