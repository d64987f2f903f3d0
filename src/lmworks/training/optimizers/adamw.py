"""AdamW with decay on matrices only. Source: Loshchilov & Hutter 2019, arXiv 1711.05101."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lmworks.training.optimizers.base import OptimizerConfig, matrices_and_rest

if TYPE_CHECKING:
    from torch import nn


class AdamW:
    """PyTorch's fused AdamW with the peak rate kept apart from the schedule.

    Args:
        decayed, plain: parameters with and without weight decay.
    """

    def __init__(
        self,
        decayed: list[torch.nn.Parameter],
        plain: list[torch.nn.Parameter],
        config: OptimizerConfig,
    ) -> None:
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self._peak = config.learning_rate
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            fused=True,
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
    matrices, embeddings, vectors = matrices_and_rest(model)
    return AdamW(matrices + embeddings, vectors, config)
