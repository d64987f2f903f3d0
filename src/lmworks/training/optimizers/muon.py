"""Muon: momentum made orthogonal, for the hidden matrices; AdamW for everything else.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". Differs:
three steps of the iteration with the coefficients of Polar Express instead of five fixed ones (on
a small model the five cost as much as the gradients do), and matrices of equal shape are stacked,
so that the time goes into a few batched products instead of many tiny ones. The weights of experts
(experts, in, out) are such stacks already; each expert's matrix is made orthogonal by itself.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch

from lmworks.training.optimizers.adamw import AdamW
from lmworks.training.optimizers.base import (
    OptimizerConfig,
    decay_groups,
    decay_of,
    parameters_by_kind,
)

if TYPE_CHECKING:
    from torch import nn

_MOMENTUM = (0.85, 0.95)  # first and final value
_MOMENTUM_WARMUP_STEPS = 300
# The first three of the minimax quintics for singular values down to 1e-3 (arXiv 2505.16932).
_QUINTICS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
)


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, roughly: the large singular values come out alike.

    Args:
        matrices: (N, R, C) float32.
    Returns: (N, R, C).
    Source: Amsel et al. 2025, "The Polar Express", arXiv 2505.16932, algorithm 1.
    """
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) * 1.01 + 1e-7)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    for a, b, c in _QUINTICS:
        gram = x @ x.mT  # (N, R, R) over the shorter side
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon:
    """Steps hidden matrices with Muon and hands all other parameters to AdamW."""

    def __init__(
        self, matrices: list[torch.nn.Parameter], others: AdamW, config: OptimizerConfig
    ) -> None:
        self._others, self._config, self._steps = others, config, 0
        self._decay = decay_of(config, "matrices")
        shapes: dict[torch.Size, list[torch.nn.Parameter]] = defaultdict(list)
        for parameter in matrices:
            shapes[parameter.shape].append(parameter)
        self._stacks = list(shapes.values())
        self._momenta = [s[0].new_zeros(len(s), *s[0].shape) for s in self._stacks]
        sizes = (m.numel() * m.element_size() for m in self._momenta)
        self.state_bytes = others.state_bytes + sum(sizes)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        self._others.step(rate)
        first, final = _MOMENTUM
        warmed = min(1.0, self._steps / _MOMENTUM_WARMUP_STEPS)
        beta = first + (final - first) * warmed
        learning_rate = self._config.matrix_learning_rate * rate
        for stack, momentum in zip(self._stacks, self._momenta, strict=True):
            # A matrix that took no part in the step (a path not taken) stays as it is.
            held = [i for i, parameter in enumerate(stack) if parameter.grad is not None]
            if not held:
                continue
            gradients = torch.stack([stack[i].grad for i in held])  # type: ignore[misc]
            averaged = momentum if len(held) == len(stack) else momentum[held]
            averaged.lerp_(gradients, 1 - beta)
            if averaged is not momentum:
                momentum[held] = averaged
            ahead = gradients.lerp_(averaged, beta)  # Nesterov
            updates = orthogonalize(ahead.flatten(0, -3)).view_as(ahead)
            # (out, in), but experts are (experts, in, out)
            rows, columns = stack[0].shape if stack[0].ndim == 2 else stack[0].shape[:0:-1]
            scale = learning_rate * max(1.0, rows / columns) ** 0.5
            for parameter, update in zip([stack[i] for i in held], updates, strict=True):
                parameter.mul_(1 - learning_rate * self._decay)
                parameter.add_(update, alpha=-scale)
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "others": self._others.state_dict(),
            "momenta": self._momenta,
            "steps": self._steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._others.load_state_dict(state["others"])
        self._steps = state["steps"]
        for momentum, saved in zip(self._momenta, state["momenta"], strict=True):
            momentum.copy_(saved)


def make_muon(model: nn.Module, config: OptimizerConfig) -> Muon:
    kinds = parameters_by_kind(model)
    matrices = kinds.pop("matrices")
    others = AdamW(decay_groups(kinds, config), config, peak_rate=config.embedding_learning_rate)
    return Muon(matrices, others, config)
