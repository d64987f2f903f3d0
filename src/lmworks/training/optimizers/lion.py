"""Lion: the sign of an interpolated momentum, one state instead of two.

Every weight moves by the whole rate, whatever the size of its gradient, so that Lion wants a third
to a tenth of AdamW's rate and as many times its decay. Source: Chen et al. 2023, "Symbolic
discovery of optimization algorithms", arXiv 2302.06675, algorithm 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmworks.training.optimizers.base import OptimizerConfig, decay_groups, parameters_by_kind
from lmworks.training.optimizers.parameterwise import Parameterwise, State

if TYPE_CHECKING:
    from torch import nn


class Lion(Parameterwise):
    """beta1 weighs momentum against gradient in the step, beta2 in what is kept."""

    def fresh(self, parameter: torch.Tensor) -> State:
        return {"momentum": torch.zeros_like(parameter)}

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
        momentum = state["momentum"]
        direction = torch.lerp(gradient, momentum, self.config.beta1).sign_()
        momentum.lerp_(gradient, 1 - self.config.beta2)
        parameter.mul_(1 - rate * decay).add_(direction, alpha=-rate)


def make_lion(model: nn.Module, config: OptimizerConfig) -> Lion:
    return Lion(decay_groups(parameters_by_kind(model), config), config)
