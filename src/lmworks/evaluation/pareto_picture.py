"""Where variants stand in a picture of KL over size or speed: dots, whiskers, front and labels.

KL is drawn in logarithms, since it grows tenfold where a file shrinks by a third. Everything is in
percent of the picture, as in `plots`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from lmworks.evaluation.plots import Axis, Tick
from lmworks.evaluation.variant_figures import VariantFigures

Mark = Literal["front", "dominated", "chosen", "forecast"]
_LABEL_HEIGHT, _LABEL_WIDTH = 5.5, 26.0  # percent that a label takes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """A variant; `x` from the left, `y` from the bottom.

    Attributes:
        whisker: lower and upper end of the KL's interval, if it is known.
        label_y: where its name stands, moved aside where others would lie under it.
        left: whether the name stands on the left of the dot.
    """

    name: str
    mark: Mark
    x: float
    y: float
    whisker: tuple[float, float] | None
    label_y: float
    left: bool
    words: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParetoPicture:
    """Points with their axes.

    Attributes:
        front: SVG points, y down, of the line through those that none beats in both x and KL.
        reference: x of the model itself, whose KL is zero, if it lies in the picture.
    """

    x_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    points: list[Point]
    front: str
    reference: float | None


def pareto_picture(
    variants: Sequence[VariantFigures],
    x_of: Callable[[VariantFigures], float | None],
    x_label: str,
    *,
    more_is_better: bool = False,
    dominated_by: Mapping[str, str],
    chosen: str,
) -> ParetoPicture | None:
    """Lay variants out; None for fewer than two with an x and a KL above zero.

    Args:
        variants: the reference first.
        x_of: what they are drawn over; None leaves one out.
        more_is_better: of x, as of speed.
    """
    placed = [(v, x) for v in variants[1:] if (x := x_of(v)) is not None and v.kl.estimate > 0]
    if len(placed) < 2:
        return None
    own = x_of(variants[0])
    xs = [x for _, x in placed]
    if own is not None and own <= 2 * max(xs):
        xs.append(own)
    x_axis = Axis.around(xs, margin=0.08)
    ends = [end for v, _ in placed for end in _ends(v)]
    low, high = math.log10(min(ends)), math.log10(max(ends))
    pad = max(0.08 * (high - low), 0.1)
    y_axis = Axis(low - pad, high + pad, 1.0)
    points: list[Point] = []
    for variant, x in sorted(placed, key=lambda each: each[0].kl.estimate):
        points.append(_point(variant, x_axis.place(x), y_axis, points, dominated_by, chosen))
    front = _front([p for p in points if p.mark != "forecast"], more_is_better)
    return ParetoPicture(
        x_label=x_label,
        x_ticks=[tick for tick in x_axis.ticks() if 3 <= tick.at <= 97],
        y_ticks=_log_ticks(y_axis),
        points=points,
        front=" ".join(f"{p.x:.2f},{100 - p.y:.2f}" for p in front),
        reference=x_axis.place(own) if own is not None and own in xs else None,
    )


def _front(points: Sequence[Point], more_is_better: bool) -> list[Point]:
    """Those that no other beats in both x and KL, by x."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (-p.x if more_is_better else p.x, p.y)):
        if not best or point.y < best[-1].y:
            best.append(point)
    return best


def _point(
    variant: VariantFigures,
    x: float,
    y_axis: Axis,
    before: Sequence[Point],
    dominated_by: Mapping[str, str],
    chosen: str,
) -> Point:
    y = y_axis.place(math.log10(variant.kl.estimate))
    left = x > 60
    label_y = y
    for other in before:  # from the bottom up: a name moves above those that it would cover
        beside = other.left == left and abs(other.x - x) < _LABEL_WIDTH
        if beside and label_y - other.label_y < _LABEL_HEIGHT:
            label_y = other.label_y + _LABEL_HEIGHT
    whisker = None
    if variant.kl.known and variant.kl.low > 0:
        low, high = (y_axis.place(math.log10(end)) for end in _ends(variant))
        whisker = (low, high)
    mark: Mark = "dominated" if dominated_by.get(variant.name) else "front"
    if variant.forecast:
        mark = "forecast"
    elif variant.name == chosen:
        mark = "chosen"
    return Point(
        name=variant.name,
        mark=mark,
        x=x,
        y=y,
        whisker=whisker,
        label_y=label_y,
        left=left,
        words=f"{variant.name}: KL {variant.kl.estimate:.4g}, {variant.file_bytes / 1e6:,.1f} MB",
    )


def _ends(variant: VariantFigures) -> tuple[float, float]:
    kl = variant.kl
    return (kl.low, kl.high) if kl.known and kl.low > 0 else (kl.estimate, kl.estimate)


def _log_ticks(axis: Axis) -> list[Tick]:
    """1, 2 and 5 times the powers of ten; powers alone where there are many."""
    factors = (1, 2, 5) if axis.high - axis.low < 2.5 else (1,)
    powers = range(math.floor(axis.low), math.ceil(axis.high) + 1)
    values = [factor * 10.0**power for power in powers for factor in factors]
    return [
        Tick(at=round(axis.place(math.log10(v)), 3), label=f"{v:g}")
        for v in values
        if axis.low <= math.log10(v) <= axis.high
    ]
