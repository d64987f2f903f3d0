"""The KL of a variant that nobody ran, from how far its weights lie from the model's.

Where errors are small, the loss grows in proportion to the relative squared errors of the
matrices, each weighed by what it does to the answers (Malinovskii et al. 2024, arXiv 2411.17525,
the "linearity theorem"; the weights: `noise_sensitivity`), and so does KL. Where they are not small
any more, it grows in another way: what is fitted is a power law, a line in logarithms, on the
variants that were measured. How good that is, is said by leaving each of them out in turn.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

_LEAST = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """KL = exp(intercept) * error ** slope.

    Attributes:
        left_out: what each measured variant was forecast as from the others, over what it is.
    """

    slope: float
    intercept: float
    left_out: tuple[float, ...]

    def kl(self, error: float) -> float:
        """Nats per token of a variant with this weighed error."""
        return math.exp(self.intercept + self.slope * math.log(error))

    @property
    def typical_error(self) -> float:
        """By how much, as a share, a variant that was left out is missed: the mean over them."""
        return math.exp(float(np.mean([abs(math.log(r)) for r in self.left_out]))) - 1


def fit_forecast(errors: Sequence[float], kls: Sequence[float]) -> Forecast | None:
    """Fit the power law; None for fewer than three variants with an error and a KL above zero."""
    points = [
        (math.log(e), math.log(kl)) for e, kl in zip(errors, kls, strict=True) if e > 0 and kl > 0
    ]
    if len({x for x, _ in points}) < _LEAST:
        return None
    left_out = []
    for index, (x, y) in enumerate(points):
        slope, intercept = _line(points[:index] + points[index + 1 :])
        left_out.append(math.exp(intercept + slope * x - y))
    slope, intercept = _line(points)
    return Forecast(slope=slope, intercept=intercept, left_out=tuple(left_out))


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Least squares; with all at one place, a slope of 1 through their mean."""
    x, y = np.array(points).T
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread > 1e-12 else 1.0
    return slope, float(y.mean() - slope * x.mean())
