"""A tensor of one model as it is, or scaled: what stacks of layers (frankenmerges) are made of."""

from __future__ import annotations

from typing import Any

import torch

from lmworks.models.merging.base import Band, Method, Parameter
from lmworks.models.merging.parts import Parts


def _combine(parts: Parts, band: Band, facts: Any) -> torch.Tensor:
    scale = parts.models[0].values["scale"]
    rows = parts.model(0, band)
    return rows if scale is None else rows * scale


PASSTHROUGH = Method(
    combine=_combine,
    parameters={"scale": Parameter(each=True, optional=True)},
    most=1,
)
