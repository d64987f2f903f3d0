"""DELLA: drop changes at random, the small ones of a row more often than the large ones.

A change of rank r in its row of n (the smallest is 0) is kept with the chance
density - epsilon + 2 epsilon r / (n - 1). Source: Deep et al. 2024, arXiv 2406.11617.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lmworks.core.errors import UserError
from lmworks.models.merging.base import Parameter
from lmworks.models.merging.masks import Mask
from lmworks.models.merging.parts import Parts
from lmworks.models.merging.task_vectors import task_vector_method


def _drop_small(parts: Parts, index: int) -> Mask | None:
    values = parts.models[index].values
    density, epsilon = values["density"], values["epsilon"]
    if density >= 1:
        return None
    if density - epsilon < 0 or density + epsilon > 1:
        raise UserError(
            f"density {density} and epsilon {epsilon} give chances outside 0 to 1: "
            f"epsilon can be at most {min(density, 1 - density):g}"
        )

    def drawn() -> Iterator[torch.Tensor]:
        for band in _whole_rows(parts):
            sizes = parts.delta(index, band).abs_()
            axis = min(1, sizes.ndim - 1)
            ranks = sizes.argsort(axis).argsort(axis).to(parts.dtype)
            most = max(1, ranks.shape[axis] - 1) if ranks.ndim else 1
            chance = (density - epsilon) + ranks * (2 * epsilon / most)
            yield torch.bernoulli(chance, generator=parts.random).bool()

    return Mask.of_bands(drawn(), parts.shape)


def _whole_rows(parts: Parts) -> Iterator[tuple[int, int]]:
    """Bands in which each row of ranks is whole: a vector is one row."""
    if len(parts.shape) < 2:
        yield 0, parts.shape[0] if parts.shape else 1
    else:
        yield from parts.bands()


_EACH = {"epsilon": Parameter(each=True, default=0.15, low=0.0, high=1.0)}
DELLA_LINEAR = task_vector_method(
    thin=_drop_small, sign_consensus=False, normalize=False, rescale=True, each=_EACH
)
DELLA = task_vector_method(
    thin=_drop_small, sign_consensus=True, normalize=True, rescale=True, each=_EACH
)
