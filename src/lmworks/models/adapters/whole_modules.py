"""Modules that are trained whole beside an adapter (PEFT's `modules_to_save`): a head, a norm.

The module that was there stays as it is; a copy of it is trained and answers in its stead.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lmworks.core.errors import UserError
from lmworks.models.adapters.targets import is_embedding, is_linear, matching
from lmworks.models.norms import LayerNorm, RMSNorm

if TYPE_CHECKING:
    from lmworks.models.model import Model


class WholeModule(nn.Module):
    """A frozen module and the copy that is trained."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.copy, self.enabled = base, copy.deepcopy(base), True

    def forward(self, *inputs: Any) -> torch.Tensor:
        """What the copy says; switched off, what the module said."""
        module = self.copy if self.enabled else self.base
        out: torch.Tensor = module(*inputs)
        return out

    @property
    def weight(self) -> torch.Tensor:
        """The frozen one: a tied head goes on with it, as in PEFT."""
        found: Any = self.base.weight
        return found

    def trained(self) -> list[nn.Parameter]:
        """See `Part`."""
        return list(self.copy.parameters())

    def merged(self) -> nn.Module:
        """See `Part`."""
        return self.copy

    def taken_away(self) -> nn.Module:
        """See `Part`."""
        return self.base


def put_whole_modules(model: Model, patterns: Sequence[str]) -> dict[str, nn.Module]:
    """Put a `WholeModule` in the place of each module that `patterns` name; by path.

    Raises: UserError for a pattern that names none, and for one that is not float32.
    """
    if not patterns:
        return {}
    chosen = matching(model, patterns, _can_be_copied, "module with weights")
    parts: dict[str, nn.Module] = {}
    for path, module in chosen.items():
        if not any(True for _ in module.parameters()):
            raise UserError(f"{path} is packed and can't be trained whole: load it as float32")
        parts[path] = WholeModule(module)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, parts[path])
    return parts


def _can_be_copied(module: nn.Module) -> bool:
    return is_linear(module) or is_embedding(module) or isinstance(module, RMSNorm | LayerNorm)
