"""Spherical interpolation between two models: along the arc, so that the length is kept.

Each tensor counts as one vector. t = 0 is the base, t = 1 the other model. Vectors that are almost
in line are interpolated along the chord, where the arc has no direction. Source: Shoemake 1985,
"Animating rotation with quaternion curves". Checked against mergekit 0.1.5: equal to the bit.
"""

from __future__ import annotations

import torch

from lmworks.models.merging.base import Band, Method, Parameter
from lmworks.models.merging.parts import Parts

IN_LINE = 0.9995  # of the cosine
SMALLEST = 1e-8  # length of a vector that has a direction


def _facts(parts: Parts) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """How much of the base and how much of the other."""
    t = parts.shared["t"]
    first, second = unit(parts.base_rows().float()), unit(parts.model(0).float())
    cosine = first.mul_(second).sum()
    if abs(float(cosine)) > IN_LINE:
        return 1 - t, t
    angle = torch.arccos(cosine)
    return torch.sin((1 - t) * angle) / torch.sin(angle), torch.sin(t * angle) / torch.sin(angle)


def unit(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, in place, of length 1; as it is if it is hardly longer than 0."""
    length = torch.linalg.vector_norm(tensor)
    return tensor if length <= SMALLEST else tensor.div_(length)


def _combine(
    parts: Parts, band: Band, facts: tuple[torch.Tensor | float, torch.Tensor | float]
) -> torch.Tensor:
    of_base, of_other = facts
    total = parts.base_rows(band).float() * of_base + parts.model(0, band).float() * of_other
    return total.to(parts.dtype)


SLERP = Method(
    combine=_combine,
    facts=_facts,
    parameters={"t": Parameter()},
    base="required",
    fewest=1,
    most=1,
)
