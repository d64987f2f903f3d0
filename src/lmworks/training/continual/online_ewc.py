"""Online EWC: earlier tasks are held by what the weights meant to them, without a row of theirs.

After each round the diagonal of the Fisher information of the task just learnt is added to what
there is of those before, which fades a little: old tasks are held, and an endless row of them does
not freeze the model. Each task's is scaled to a mean of 1, so that none outweighs the others by the
size of its gradients.

Source: Schwarz et al. 2018, arXiv 1805.06370, section 4 (eq. 9 and the normalisation after it);
Kirkpatrick et al. 2017, arXiv 1612.00796, eq. 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from lmworks.core.errors import UserError
from lmworks.core.files import atomic_save
from lmworks.training.batches import Batch
from lmworks.training.retention.base import Retention, copied
from lmworks.training.retention.ewc import fisher_diagonal, weighted_distance

if TYPE_CHECKING:
    from lmworks.models.model import Model

FISHER = "fisher.safetensors"


class OnlineEWC(Retention):
    """Adds strength / 2 times the squared distance to the start, weighted by a given Fisher.

    Args:
        fisher: by parameter, as `carried_on` gives it.
    Raises: UserError for a Fisher of another model.
    """

    def __init__(self, model: Model, fisher: Mapping[str, torch.Tensor], strength: float) -> None:
        self.strength = strength
        self._start = copied(model)
        shapes = {name: value.shape for name, value in self._start.items()}
        if {name: value.shape for name, value in fisher.items()} != shapes:
            raise UserError(f"{FISHER} is that of another model: begin a new state folder")
        self._fisher = fisher

    def penalty(self, model: Model) -> torch.Tensor:
        """See `Retention.penalty`."""
        return self.strength / 2 * weighted_distance(model, self._start, self._fisher)


def carried_on(
    before: Mapping[str, torch.Tensor] | None,
    model: Model,
    task: Callable[[int], Batch],
    *,
    rows: int,
    decay: float,
) -> dict[str, torch.Tensor]:
    """The Fisher for the next round: what is left of the one before, and that of the task."""
    fresh = fisher_diagonal(model, task, rows)
    if before is None:
        return fresh
    return {name: decay * before[name] + value for name, value in fresh.items()}


def read_fisher(folder: Path) -> dict[str, torch.Tensor] | None:
    """What a round left; None if it left none."""
    path = folder / FISHER
    return load_file(path) if path.is_file() else None


def write_fisher(folder: Path, fisher: Mapping[str, torch.Tensor]) -> None:
    """Write it for the next round."""
    kept = {name: value.contiguous() for name, value in fisher.items()}
    atomic_save(folder / FISHER, lambda path: save_file(kept, path))
