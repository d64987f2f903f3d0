"""Spherical mean of any number of models: a step from their mean direction, along the sphere.

The mean direction m of the unit vectors u_i is where a plane touches the sphere; the weighted mean
of what of u_i lies in that plane is the step, whose length is the angle that is walked. With a
base, the vectors are what the models changed in it. The length of the result is the weighted mean
of lengths. Source: Goddard 2025, "Multi-SLERP" (goddard.blog). Checked against mergekit 0.1.5:
equal to the bit.
"""

from __future__ import annotations

import dataclasses

import torch

from lmworks.core.errors import UserError
from lmworks.models.merging.base import Band, Method, Parameter
from lmworks.models.merging.parts import Parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """Of whole tensors; `direction` is one, the others are numbers."""

    weights: torch.Tensor
    lengths: list[torch.Tensor]
    direction: torch.Tensor
    cosines: list[torch.Tensor]
    angle: torch.Tensor
    length: torch.Tensor


def vector(parts: Parts, index: int, band: Band | None = None) -> torch.Tensor:
    """A model's rows, or what it changed in the base."""
    return parts.model(index, band) if parts.base is None else parts.delta(index, band)


def _facts(parts: Parts) -> Facts | None:
    if len(parts.models) == 1:
        return None
    count, eps = len(parts.models), parts.shared["eps"]
    weights = torch.tensor(parts.values("weight"), dtype=parts.dtype)
    if parts.shared["normalize_weights"]:
        if float(weights.sum()) == 0:
            raise UserError("the weights of a multislerp merge sum to 0: give others")
        weights = weights / weights.sum()
    lengths = [torch.linalg.vector_norm(vector(parts, i)) for i in range(count)]
    lengths = [length if length > eps else torch.ones_like(length) for length in lengths]
    direction = torch.empty(parts.shape, dtype=parts.dtype)
    for band in parts.bands():
        rows = direction[band[0] : band[1]] if parts.shape else direction
        units = [vector(parts, i, band) / lengths[i] * weights[i] for i in range(count)]
        rows.copy_(torch.stack(units).sum(0))
    size = torch.linalg.vector_norm(direction)
    if size > eps:
        direction /= size
    cosines = []
    for index in range(count):
        product = vector(parts, index).div_(lengths[index]).mul_(direction)
        cosines.append(product.sum())
        del product
    step = torch.empty(parts.shape, dtype=parts.dtype)
    known = Facts(
        weights=weights,
        lengths=lengths,
        direction=direction,
        cosines=cosines,
        angle=torch.zeros(()),
        length=(torch.stack(lengths) * weights).sum(),
    )
    for band in parts.bands():
        rows = step[band[0] : band[1]] if parts.shape else step
        rows.copy_(_step(parts, band, known))
    return dataclasses.replace(known, angle=torch.linalg.vector_norm(step))


def _step(parts: Parts, band: Band, facts: Facts) -> torch.Tensor:
    direction = facts.direction[band[0] : band[1]] if parts.shape else facts.direction
    along = [
        (vector(parts, i, band) / facts.lengths[i] - facts.cosines[i] * direction)
        * facts.weights[i]
        for i in range(len(parts.models))
    ]
    return torch.stack(along).sum(0)


def _combine(parts: Parts, band: Band, facts: Facts | None) -> torch.Tensor:
    if facts is None:
        return parts.model(0, band)
    direction = facts.direction[band[0] : band[1]] if parts.shape else facts.direction
    made = direction
    if facts.angle > parts.shared["eps"]:
        share = torch.sin(facts.angle) / facts.angle
        made = direction * torch.cos(facts.angle) + _step(parts, band, facts) * share
    made = facts.length * made
    return made if parts.base is None else parts.base_rows(band) + made


MULTISLERP = Method(
    combine=_combine,
    facts=_facts,
    parameters={
        "weight": Parameter(each=True),
        "normalize_weights": Parameter(kind=bool, default=True),
        "eps": Parameter(default=1e-8, low=0.0),
    },
    base="optional",
)
