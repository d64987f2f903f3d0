"""A weighted mean of the models.

Source: Wortsman et al. 2022, "Model soups", arXiv 2203.05482. Sums are kept in float32 whatever the
models are stored in. Checked against mergekit 0.1.5: equal to the bit.
"""

from __future__ import annotations

from typing import Any

import torch

from lmworks.core.errors import UserError
from lmworks.models.merging.base import Band, Method, Parameter
from lmworks.models.merging.parts import Parts


def _combine(parts: Parts, band: Band, facts: Any) -> torch.Tensor:
    weights = torch.tensor(parts.values("weight"), dtype=torch.float32)
    total = parts.model(0, band).float().mul_(float(weights[0]))
    for index, weight in enumerate(weights[1:], 1):
        total.add_(parts.model(index, band).float(), alpha=float(weight))
    if parts.shared["normalize"]:
        sum_of_weights = weights.sum()
        if sum_of_weights == 0:
            raise UserError("the weights of a linear merge sum to 0: set normalize to false")
        total /= sum_of_weights
    return total.to(parts.dtype)


LINEAR = Method(
    combine=_combine,
    parameters={
        "weight": Parameter(each=True),
        "normalize": Parameter(kind=bool, default=True),
    },
)
