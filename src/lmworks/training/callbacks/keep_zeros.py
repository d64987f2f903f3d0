"""Weights that are zero before a training stay zero in it, so that a sparse model stays sparse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lmworks.core.errors import UserError
from lmworks.training.callbacks.base import Callback

if TYPE_CHECKING:
    from lmworks.training.trainer import Trainer

_SPARSE = 0.05  # a matrix with a smaller share of zeros is none of ours


class KeepZeros(Callback):
    """After each step the weights that were zero are set to zero again.

    Args:
        model: as it is before the training, and before a checkpoint is taken back.
    Raises: UserError for a model without sparse matrices, or with frozen ones.
    """

    def __init__(self, model: nn.Module) -> None:
        self._kept: list[tuple[nn.Parameter, torch.Tensor]] = []
        for name, parameter in model.named_parameters():
            if parameter.dim() != 2:
                continue
            kept = parameter.detach() != 0
            if float(kept.float().mean()) > 1 - _SPARSE:
                continue
            if not parameter.requires_grad:
                raise UserError(f"loop.keep_zeros: {name} is not trained: leave out the adapter")
            self._kept.append((parameter, kept))
        if not self._kept:
            raise UserError(
                "loop.keep_zeros: no matrix of this model is sparse: make one with "
                "`lmworks compress sparsify`"
            )

    def start(self, trainer: Trainer, step: int) -> None:
        """See Callback."""
        self._apply()

    def after_step(self, trainer: Trainer, step: int) -> None:
        """See Callback."""
        self._apply()

    def _apply(self) -> None:
        with torch.no_grad():
            for parameter, kept in self._kept:
                values: Any = parameter
                values.mul_(kept.to(parameter.device))
