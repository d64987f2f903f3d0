"""Refuse to go on with a checkpoint whose data were others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lmworks.core.errors import UserError
from lmworks.training.callbacks.base import Callback

if TYPE_CHECKING:
    from lmworks.training.trainer import Trainer


def fingerprint(tokens: np.ndarray) -> str:
    """A hash of an array's content."""
    return hashlib.sha256(np.ascontiguousarray(tokens).data).hexdigest()


class SameData(Callback):
    """Args:
    fingerprints: name of each data set -> hash of what is trained on.
    """

    def __init__(self, fingerprints: Mapping[str, str]) -> None:
        self._now, self._then = dict(fingerprints), dict(fingerprints)

    def start(self, trainer: Trainer, step: int) -> None:
        """Raises: UserError naming the data that are not those of the checkpoint."""
        changed = [name for name, value in self._now.items() if self._then.get(name) != value]
        if changed:
            raise UserError(
                f"{' and '.join(changed)} changed since step {step} was saved in {trainer.work}: "
                "bring the data back, or remove that folder to start anew"
            )

    def state_dict(self) -> dict[str, Any]:
        return dict(self._now)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._then = dict(state)
