"""AdamW: each weight by its own moments. Source: Loshchilov & Hutter 2019, arXiv 1711.05101."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lmworks.training.optimizers.base import OptimizerConfig, decay_groups, parameters_by_kind

if TYPE_CHECKING:
    from torch import nn


class AdamW:
    """PyTorch's fused AdamW with the peak rate kept apart from the schedule.

    Args:
        groups: parameters and their weight decay; there may be none.
        peak_rate: the learning rate that a schedule's factor multiplies.
    """

    def __init__(
        self,
        groups: list[tuple[list[torch.nn.Parameter], float]],
        config: OptimizerConfig,
        *,
        peak_rate: float,
    ) -> None:
        self._peak = peak_rate
        parameters = [p for group, _ in groups for p in group]
        self.state_bytes = sum(2 * p.numel() * p.element_size() for p in parameters)
        # torch refuses to optimise nothing.
        nothing = {"params": [torch.nn.Parameter(torch.zeros(0))], "weight_decay": 0.0}
        self._adamw = torch.optim.AdamW(
            [{"params": group, "weight_decay": decay} for group, decay in groups] or [nothing],
            lr=self._peak,
            betas=(config.beta1, config.beta2),
            fused=not any(p.is_meta for p in parameters),
        )

    def step(self, rate: float) -> None:
        for group in self._adamw.param_groups:
            group["lr"] = self._peak * rate
        self._adamw.step()

    def state_dict(self) -> dict[str, Any]:
        return self._adamw.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._adamw.load_state_dict(state)


def make_adamw(model: nn.Module, config: OptimizerConfig) -> AdamW:
    groups = decay_groups(parameters_by_kind(model), config)
    return AdamW(groups, config, peak_rate=config.peak_rate)
