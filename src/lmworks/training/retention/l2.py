"""L2 to the start: every weight is drawn back to where it was, all alike.

Source: Li, Grandvalet & Davoine 2018, arXiv 1802.01483, eq. 2 (L2-SP).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lmworks.training.retention.base import FromStart, trained_parameters

if TYPE_CHECKING:
    from lmworks.models.model import Model


class L2ToInit(FromStart):
    """Adds strength / 2 times the squared distance to the start."""

    def penalty(self, model: Model) -> torch.Tensor:
        """See `Retention.penalty`."""
        moved = [
            (p - self._start[name]).square().sum() for name, p in trained_parameters(model).items()
        ]
        return self.strength / 2 * torch.stack(moved).sum()
