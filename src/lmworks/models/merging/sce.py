"""SCE: select the places where models differ most, calculate weights, erase minority signs.

Each tensor's weights are the mean squares of what the models changed in it. Source: Wan et al.
2024, "FuseChat", arXiv 2408.07990, section 3.3. Checked against mergekit 0.1.5: equal to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lmworks.models.merging.base import Band, Method, Parameter
from lmworks.models.merging.masks import Mask, largest
from lmworks.models.merging.parts import Parts
from lmworks.models.merging.task_vectors import agrees, nothing

Facts = tuple["Mask | None", torch.Tensor]


def _facts(parts: Parts) -> Facts:
    mask = _selected(parts, parts.shared["select_topk"])
    energies = []
    for index in range(len(parts.models)):
        values = parts.delta(index)
        if mask is not None:
            for first, last in parts.bands():
                rows = values[first:last] if parts.shape else values
                rows.mul_(mask.rows(first, last, rows.shape))
        energies.append(values.square_().mean())
    energy = torch.stack(energies)
    total = energy.sum()
    even = torch.full_like(energy, 1 / len(energy))
    return mask, energy / total if total > 0 else even


def _selected(parts: Parts, share: float) -> Mask | None:
    if share >= 1:
        return None

    def spreads() -> Iterator[torch.Tensor]:
        for band in parts.bands():
            yield _deltas(parts, band).var(0, unbiased=False)

    differing = sum(int(rows.count_nonzero()) for rows in spreads())
    return largest(spreads, parts.shape, parts.dtype, int(share * differing))


def _deltas(parts: Parts, band: Band) -> torch.Tensor:
    return torch.stack([parts.delta(index, band) for index in range(len(parts.models))])


def _combine(parts: Parts, band: Band, facts: Facts) -> torch.Tensor:
    mask, shares = facts
    deltas = _deltas(parts, band)
    if mask is not None:
        deltas *= mask.rows(*band, deltas.shape[1:])
    counted = shares.reshape(-1, *[1] * (deltas.ndim - 1)) * agrees(deltas)
    total = counted.sum(0)
    total = torch.where(nothing(total), torch.ones_like(total), total)
    return parts.base_rows(band) + (deltas * counted).sum(0) / total


SCE = Method(
    combine=_combine,
    facts=_facts,
    parameters={
        "select_topk": Parameter(default=1.0, low=0.0, high=1.0),
        "int8_mask": Parameter(kind=bool, default=False),
    },
    base="required",
)
