"""DARE: drop changes at random and make the rest larger.

Source: Yu et al. 2024, arXiv 2311.03099. The paper multiplies what is left by 1 / density; here, as
in mergekit 0.1.5, the sum of magnitudes is made what it was, which does not hang on the luck of the
draw.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lmworks.models.merging.masks import Mask
from lmworks.models.merging.parts import Parts
from lmworks.models.merging.task_vectors import task_vector_method


def _drop(parts: Parts, index: int) -> Mask | None:
    density = parts.models[index].values["density"]
    if density >= 1:
        return None

    def drawn() -> Iterator[torch.Tensor]:
        for first, last in parts.bands():
            shape = (last - first, *parts.shape[1:]) if parts.shape else ()
            chance = torch.full(shape, density, dtype=parts.dtype)
            yield torch.bernoulli(chance, generator=parts.random).bool()

    return Mask.of_bands(drawn(), parts.shape)


DARE_LINEAR = task_vector_method(thin=_drop, sign_consensus=False, normalize=False, rescale=True)
DARE_TIES = task_vector_method(thin=_drop, sign_consensus=True, normalize=False, rescale=True)
