"""EWC: weights that general text depends on are drawn back more strongly than the others.

How much a weight matters is the diagonal of the Fisher information, taken over windows of general
text with labels drawn from the model itself (with the true labels it would be no Fisher
information: Kunstner et al. 2019, arXiv 1905.12558). It is scaled to a mean of 1, so that the same
coefficient pulls as strongly in sum as that of `l2`.

Source: Kirkpatrick et al. 2017, arXiv 1612.00796, eq. 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from lmworks.core.errors import UserError
from lmworks.core.progress import track
from lmworks.training.batches import IGNORED, Batch
from lmworks.training.retention.base import FromStart, trained_parameters

if TYPE_CHECKING:
    from lmworks.models.model import Model
    from lmworks.training.retention.config import RetentionConfig


class EWC(FromStart):
    """Adds strength / 2 times the squared distance to the start, weighted by the Fisher."""

    def __init__(
        self,
        model: Model,
        general: Callable[[int], Batch],
        config: RetentionConfig,
        share: float,
    ) -> None:
        super().__init__(model, general, config, share)
        self.fisher = fisher_diagonal(model, general, config.fisher_windows)

    def penalty(self, model: Model) -> torch.Tensor:
        """See `Retention.penalty`."""
        return self.strength / 2 * weighted_distance(model, self._start, self.fisher)


def weighted_distance(
    model: Model, start: Mapping[str, torch.Tensor], fisher: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """The squared distance of the trained parameters to `start`, weighted by `fisher`: a scalar."""
    moved = [
        (fisher[name] * (p - start[name]).square()).sum()
        for name, p in trained_parameters(model).items()
    ]
    return torch.stack(moved).sum()


def fisher_diagonal(
    model: Model, general: Callable[[int], Batch], num_windows: int
) -> dict[str, torch.Tensor]:
    """The diagonal of the Fisher information by parameter, scaled to a mean of 1.

    Raises: UserError when no window is asked for.
    """
    import torch.nn.functional as F

    if num_windows < 1:
        raise UserError(f"fisher_windows = {num_windows}: ewc needs at least one")
    parameters = trained_parameters(model)
    fisher = {name: torch.zeros_like(p) for name, p in parameters.items()}
    draw = torch.Generator().manual_seed(0)
    was_training = model.training
    model.eval()
    done = number = 0
    with track("weighing parameters", total=num_windows) as bar:
        while done < num_windows:
            batch = general(number)
            number += 1
            for row in range(min(batch.num_rows, num_windows - done)):
                logits = model(batch.input_ids[row : row + 1])[0]  # (T, V)
                logits = logits[batch.labels[row] != IGNORED]  # what is asked for: (N, V)
                drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=draw)[:, 0]
                gradients = torch.autograd.grad(
                    F.cross_entropy(logits, drawn, reduction="sum"),
                    list(parameters.values()),
                    allow_unused=True,
                )
                for name, gradient in zip(parameters, gradients):
                    if gradient is not None:
                        fisher[name] += gradient.square()
                done += 1
                bar.advance()
    model.train(was_training)
    mean = sum(float(f.double().sum()) for f in fisher.values())
    mean /= sum(f.numel() for f in fisher.values())
    return {name: f / mean for name, f in fisher.items()}
