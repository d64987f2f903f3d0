"""Optimizers over pieces: what a process updates, and a state that any number of them can load.

An optimizer that works number by number (AdamW) updates the pieces that a process holds. One that
needs whole matrices (Muon orthogonalises them) gets them: every parameter has an owner among the
processes that hold it; gradients travel to the owners, whole tensors are updated there, and the
parts travel back. That is two exchanges of a process's share per step, it is exact for any
optimizer under any plan, and with copies instead of pieces it is ZeRO-1: each process keeps the
state of what it owns (Rajbhandari et al. 2020, arXiv 1910.02054, section 5.1).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lmworks.training.distributed.optimizer_state import (
    load_named_state,
    named_state,
    set_parameter,
)
from lmworks.training.optimizers.base import OptimizerConfig, build_optimizer

if TYPE_CHECKING:
    from lmworks.training.distributed.pieces import Layout

# Optimizers that update each number from its own history alone.
ELEMENTWISE = ("adamw", "lion")


def shadow(model: nn.Module) -> nn.Module:
    """A module of the same structure, whose trained parameters have shapes and no memory.

    It shares what is frozen. Optimizers ask a model which of its parameters are matrices or
    embeddings; here they are asked of the whole model, whatever a process holds of it.
    """
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        trained = parameter.requires_grad
        memo[id(parameter)] = (
            nn.Parameter(torch.empty_like(parameter, device="meta")) if trained else parameter
        )
    return copy.deepcopy(model, memo)


class SplitOptimizer:
    """What the trainer steps: the optimizer over this process's views, with exchanges around it.

    Args:
        structure: see `shadow`.
        parts: trained parameters of this process by whole name, plain tensors.
        gradients: the same names -> their gradients, or None, when a step is due.
        whole: whether every update happens on whole tensors, at their owners.
    """

    def __init__(
        self,
        structure: nn.Module,
        parts: Mapping[str, torch.Tensor],
        gradients: Any,
        layout: Layout,
        config: OptimizerConfig,
        *,
        whole: bool,
    ) -> None:
        self._parts, self._gradients, self._layout = dict(parts), gradients, layout
        self.config, self.works_whole = config, whole
        structure = shadow(structure)
        self._owners = layout.owners() if whole else {}
        views = self._views(whole)
        for name, parameter in list(structure.named_parameters()):
            if parameter.requires_grad:
                seen = views.get(name)
                set_parameter(structure, name, _placeholder() if seen is None else seen)
        self.views = views
        self._optimizer = build_optimizer(structure, config)

    def _views(self, whole: bool) -> dict[str, nn.Parameter]:
        if not whole:
            return {name: nn.Parameter(part) for name, part in self._parts.items()}
        mine = self._layout.to_owners(self._parts, self._owners)
        return {name: nn.Parameter(tensor) for name, tensor in mine.items()}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """See `Optimizer`; a collective call where whole tensors are needed."""
        gradients: dict[str, torch.Tensor | None] = self._gradients()
        if self._owners:
            held = {
                name: torch.zeros_like(self._parts[name]) if grad is None else grad
                for name, grad in gradients.items()
            }
            gradients = dict(self._layout.to_owners(held, self._owners))
        for name, view in self.views.items():
            view.grad = gradients.get(name)
        self._optimizer.step(rate)
        for view in self.views.values():
            view.grad = None
        if self._owners:
            self._layout.from_owners(self.views, self._owners, self._parts)

    def refresh(self) -> None:
        """Take the weights anew, after they were loaded."""
        if self._owners:
            for name, tensor in self._layout.to_owners(self._parts, self._owners).items():
                self.views[name].data.copy_(tensor)

    def named_state(self) -> dict[str, Any]:
        """What is kept for each parameter, and under "" what is kept beside."""
        return named_state(self._optimizer, {id(v): name for name, v in self.views.items()})

    def load_named_state(self, state: Mapping[str, Any]) -> None:
        """Take what `named_state` gave, already cut to this process's views."""
        load_named_state(self._optimizer, {id(v): n for n, v in self.views.items()}, state)

    def state_dict(self) -> dict[str, Any]:
        """See `Optimizer`: of one process's views, which is rarely what is wanted."""
        return self.named_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `Optimizer`."""
        self.load_named_state(state)

    @property
    def state_bytes(self) -> int:
        """See `Optimizer`: of this process."""
        return self._optimizer.state_bytes


def _placeholder() -> nn.Parameter:
    return nn.Parameter(torch.empty(0), requires_grad=False)
