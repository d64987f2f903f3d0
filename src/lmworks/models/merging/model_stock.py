"""The mean of fine-tuned models, drawn to their base by how little their changes agree.

With the mean cosine c between what k models changed, the mean counts k c / (1 + (k - 1) c) and the
base the rest. Source: Jang et al. 2024, "Model Stock", arXiv 2403.19522, eq. 2. `filter_wise` takes
each row for itself. Checked against mergekit 0.1.5: equal to the bit.
"""

from __future__ import annotations

import itertools

import torch

from lmworks.models.merging.base import Band, Method, Parameter
from lmworks.models.merging.parts import Parts

_SHORTEST = 1e-8  # product of two lengths


def _facts(parts: Parts) -> torch.Tensor:
    """Share of the mean: one number, or one for each row."""
    rows = parts.shared["filter_wise"] and len(parts.shape) > 1
    pairs = list(itertools.combinations(range(len(parts.models)), 2))
    if rows:
        bands = [_cosines(parts, pairs, band, -1) for band in parts.bands()]
        cosines = [torch.cat(of_pair) for of_pair in zip(*bands, strict=True)]
    else:
        cosines = _cosines(parts, pairs, None, None)
    count, cosine = len(parts.models), torch.stack(cosines).mean(0)
    return (count * cosine) / (1 + (count - 1) * cosine)


def _cosines(
    parts: Parts, pairs: list[tuple[int, int]], band: Band | None, axis: int | None
) -> list[torch.Tensor]:
    keep = axis is not None
    lengths = [
        torch.linalg.vector_norm(parts.delta(index, band), dim=axis, keepdim=keep)
        for index in range(len(parts.models))
    ]
    cosines = []
    for one, other in pairs:
        product = parts.delta(one, band).mul_(parts.delta(other, band))
        dot = product.sum() if axis is None else product.sum(axis, keepdim=True)
        del product  # before the next two are read
        cosines.append(dot / (lengths[one] * lengths[other]).clamp(min=_SHORTEST))
    return cosines


def _combine(parts: Parts, band: Band, facts: torch.Tensor) -> torch.Tensor:
    ratio = facts[band[0] : band[1]] if facts.ndim else facts
    mean = parts.model(0, band)
    for index in range(1, len(parts.models)):
        mean = mean + parts.model(index, band)
    mean = mean / len(parts.models)
    return ratio * mean + (1 - ratio) * parts.base_rows(band)


MODEL_STOCK = Method(
    combine=_combine,
    facts=_facts,
    parameters={"filter_wise": Parameter(kind=bool, default=False)},
    base="required",
    fewest=2,
)
