"""Stacks of LoRA: every task gets an adapter of its own, in directions that earlier ones left free.

What an adapter changes shows only for inputs along the rows of its A. Each new A is pulled off the
space that the earlier ones span, so that what they do to their inputs stays as it is; then the
adapter is folded into the weights, and its A joins the space. Needs no row of an earlier task.

Source: Wang et al. 2023, arXiv 2310.14152 (O-LoRA), section 3.2. Differs: the earlier A's are kept
as an orthonormal basis, and the penalty is the share of the new rows that lies in it, so that its
strength does not depend on the size of either.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from lmworks.core.errors import UserError
from lmworks.core.files import atomic_save
from lmworks.models.adapters.base import Adapter
from lmworks.models.adapters.lora import LoRALinear
from lmworks.training.retention.base import Retention

if TYPE_CHECKING:
    from lmworks.models.model import Model

STACK = "stack.safetensors"
_TINY = 1e-12


class OffTheStack(Retention):
    """Adds strength times the mean share of the adapter's rows that earlier adapters span.

    Args:
        bases: by layer, (directions, in), orthonormal rows; {} for a first adapter.
    Raises: UserError for those of another model.
    """

    def __init__(
        self, adapter: Adapter, bases: Mapping[str, torch.Tensor], strength: float
    ) -> None:
        self.strength, self._bases = strength, bases
        self._parts = {
            path: part for path, part in adapter.parts.items() if isinstance(part, LoRALinear)
        }
        for path, basis in bases.items():
            part = self._parts.get(path)
            if part is None or part.lora_A.shape[1] != basis.shape[1]:
                raise UserError(f"{STACK} is that of another model: begin a new state folder")

    def penalty(self, model: Model) -> torch.Tensor | None:
        """See `Retention.penalty`."""
        if not self._bases:
            return None
        shares = []
        for path, basis in self._bases.items():
            rows = self._parts[path].lora_A
            inside = (rows @ basis.T).square().sum()
            shares.append(inside / rows.square().sum().clamp_min(_TINY))
        return self.strength * torch.stack(shares).mean()


def stacked(bases: Mapping[str, torch.Tensor], adapter: Adapter) -> dict[str, torch.Tensor]:
    """The bases with the adapter's directions in them, orthonormal."""
    found = {}
    for path, part in adapter.parts.items():
        if not isinstance(part, LoRALinear):
            continue
        rows = part.lora_A.detach()
        if path in bases:
            rows = torch.cat([bases[path], rows])
        # Rows beyond the width of the layer's inputs say nothing new.
        _, sizes, directions = torch.linalg.svd(rows.double(), full_matrices=False)
        kept = sizes > sizes[0] * 1e-6
        found[path] = directions[kept].float().contiguous()
    return found


def read_stack(folder: Path) -> dict[str, torch.Tensor]:
    """What a round left; {} if it left none."""
    path = folder / STACK
    return load_file(path) if path.is_file() else {}


def write_stack(folder: Path, bases: Mapping[str, torch.Tensor]) -> None:
    """Write it for the next round."""
    kept = {path: basis.contiguous() for path, basis in bases.items()}
    atomic_save(folder / STACK, lambda path: save_file(kept, path))
