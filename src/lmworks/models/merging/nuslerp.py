"""Spherical interpolation between two models, or between what two models changed in a base.

The share of the second is its weight over the sum of both. The vectors are whole tensors or, with
`nuslerp_flatten: false`, rows (the last dimension), with `nuslerp_row_wise: true` columns, which
is mergekit's way to name them. Checked against mergekit 0.1.5: equal to the bit.
"""

from __future__ import annotations

from typing import Any

import torch

from lmworks.core.errors import UserError
from lmworks.models.merging.base import Band, Method, Parameter
from lmworks.models.merging.parts import Parts
from lmworks.models.merging.slerp import SMALLEST

_NO_ARC = 1e-6  # sine of an angle below which, or of 180 degrees, there is no one arc


def _share(parts: Parts) -> float:
    first, second = parts.values("weight")
    if first + second == 0:
        raise UserError("the weights of a nuslerp merge sum to 0: give others")
    return float(second / (first + second))


def _vector(parts: Parts, index: int, band: Band | None = None) -> torch.Tensor:
    return parts.model(index, band) if parts.base is None else parts.delta(index, band)


def _cosine(first: torch.Tensor, second: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Of the angle between vectors along `axis`; the inputs are overwritten."""
    for tensor in (first, second):
        length = torch.linalg.vector_norm(tensor, dim=axis, keepdim=axis is not None)
        tensor.div_(length.clamp(min=SMALLEST))
    product = first.mul_(second)
    return product.sum() if axis is None else product.sum(axis, keepdim=True)


def _facts(parts: Parts) -> Any:
    flat = parts.shared["nuslerp_flatten"] or len(parts.shape) < 2
    if flat:
        return _cosine(_vector(parts, 0), _vector(parts, 1), None)
    if parts.shared["nuslerp_row_wise"]:
        return _cosine(_vector(parts, 0), _vector(parts, 1), 0)
    return None  # rows are whole in a band


def _combine(parts: Parts, band: Band, facts: Any) -> torch.Tensor:
    share = _share(parts)
    first, second = _vector(parts, 0, band), _vector(parts, 1, band)
    cosine = _cosine(first.clone(), second.clone(), -1) if facts is None else facts
    cosine = cosine.clamp(-1, 1)
    angle = torch.arccos(cosine)
    sine = torch.sin(angle)
    arc = (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * second) / sine
    chord = (1 - share) * first + share * second
    mixed = torch.where(sine.abs() < _NO_ARC, chord, arc)
    return mixed if parts.base is None else parts.base_rows(band) + mixed


NUSLERP = Method(
    combine=_combine,
    facts=_facts,
    parameters={
        "weight": Parameter(each=True),
        "nuslerp_flatten": Parameter(kind=bool, default=True),
        "nuslerp_row_wise": Parameter(kind=bool, default=False),
    },
    base="optional",
    fewest=2,
    most=2,
)
