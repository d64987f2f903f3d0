"""The base takes on another model's numbers where the two are near to each other.

The weight of the other model is t / |difference|, at most 1. Source: the model card of
alchemonaut/QuartetAnemoi-70B-t0.0001. Checked against mergekit 0.1.5: equal to the bit.
"""

from __future__ import annotations

from typing import Any

import torch

from lmworks.models.merging.base import Band, Method, Parameter
from lmworks.models.merging.parts import Parts


def _combine(parts: Parts, band: Band, facts: Any) -> torch.Tensor:
    base, other = parts.base_rows(band), parts.model(0, band)
    weight = (parts.shared["t"] / (base - other).abs()).nan_to_num(1.0, 1.0, 1.0).clamp(0, 1)
    return weight * other + (1 - weight) * base


NEARSWAP = Method(
    combine=_combine, parameters={"t": Parameter()}, base="required", fewest=1, most=1
)
