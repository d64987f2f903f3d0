"""AdamW with both moments in one byte each: a quarter of AdamW's memory, near the same steps.

Moments are made float again a piece at a time, so that no step holds a whole matrix of them.
Tensors below 4096 values keep float moments: they cost nothing, and norms and biases are where
errors show. Source: Dettmers et al. 2022, arXiv 2110.02861.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from lmworks.training.optimizers.base import OptimizerConfig, decay_groups, parameters_by_kind
from lmworks.training.optimizers.dynamic_quantization import (
    BLOCK,
    dequantize,
    num_blocks,
    quantize,
)
from lmworks.training.optimizers.parameterwise import Parameterwise, State

if TYPE_CHECKING:
    from torch import nn

SMALLEST = 4096  # values of the smallest tensor whose moments are quantised
_EPS = 1e-8
_PIECE = 1024 * BLOCK  # values whose moments are float at the same time
_MOMENTS = (("first", True), ("second", False))  # name, and whether values may be negative


class AdamW8bit(Parameterwise):
    """See the module."""

    def fresh(self, parameter: torch.Tensor) -> State:
        count = parameter.numel()
        if count < SMALLEST:
            return {name: torch.zeros_like(parameter) for name, _ in _MOMENTS}
        state = {}
        for name, _ in _MOMENTS:
            # Whatever code 0 stands for: with a scale of 0 it is nothing.
            state[f"{name}_codes"] = torch.zeros(count, dtype=torch.uint8, device=parameter.device)
            state[f"{name}_scales"] = torch.zeros(num_blocks(count), device=parameter.device)
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
        if decay:
            parameter.mul_(1 - rate * decay)
        if "first" in state:
            self._step(parameter, gradient, state["first"], state["second"], rate, count)
            return
        weights, gradients = parameter.view(-1), gradient.reshape(-1)
        for start in range(0, len(weights), _PIECE):
            here = slice(start, start + _PIECE)
            blocks = slice(start // BLOCK, num_blocks(min(len(weights), start + _PIECE)))
            first, second = (
                dequantize(
                    state[f"{name}_codes"][here],
                    state[f"{name}_scales"][blocks],
                    signed=signed,
                    dtype=parameter.dtype,
                )
                for name, signed in _MOMENTS
            )
            self._step(weights[here], gradients[here], first, second, rate, count)
            for moment, (name, signed) in zip((first, second), _MOMENTS, strict=True):
                quantize(
                    moment,
                    state[f"{name}_codes"][here],
                    state[f"{name}_scales"][blocks],
                    signed=signed,
                )

    def _step(
        self,
        weights: torch.Tensor,
        gradients: torch.Tensor,
        first: torch.Tensor,
        second: torch.Tensor,
        rate: float,
        count: int,
    ) -> None:
        """AdamW's step on float moments, all in place."""
        beta1, beta2 = self.config.beta1, self.config.beta2
        first.lerp_(gradients, 1 - beta1)
        second.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
        spread = second.sqrt().div_(math.sqrt(1 - beta2**count)).add_(_EPS)
        weights.addcdiv_(first, spread, value=-rate / (1 - beta1**count))


def make_adamw_8bit(model: nn.Module, config: OptimizerConfig) -> AdamW8bit:
    return AdamW8bit(decay_groups(parameters_by_kind(model), config), config)
