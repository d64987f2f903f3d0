"""Where things go in the report's two pictures: curves, and dots with whiskers.

Everything is in percent of the picture, so that a page can draw it at any width with text of a
fixed size. No drawing is done here; the template does that.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

from lmworks.evaluation.statistics import Interval

_MOST_POINTS = 240  # a curve of more points is drawn as the means of this many pieces


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tick:
    """A mark on an axis: `at` in percent from the left or bottom."""

    at: float
    label: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """A curve as the points of an SVG polyline in a 100 x 100 square, y down."""

    name: str
    points: str
    first: float
    last: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurvePicture:
    """Curves with their axes."""

    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DotRow:
    """A dot, its whisker (None where the interval is not known), and on which side it lies off."""

    name: str
    interval: Interval
    dot: float
    whisker: tuple[float, float] | None
    beyond: str  # "", "left" or "right"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DotPicture:
    """Rows over one axis; `zero` is where nothing is gained."""

    ticks: list[Tick]
    zero: float
    rows: list[DotRow]


def curve_picture(
    curves: Sequence[tuple[str, Sequence[float], Sequence[float]]],
) -> CurvePicture | None:
    """Lay out (name, x, y) curves over common axes; None when no point is finite."""
    thinned = [(name, _thinned(x, y)) for name, x, y in curves]
    thinned = [(name, points) for name, points in thinned if points]
    if not thinned:
        return None
    everything = [point for _, points in thinned for point in points]
    x_axis = Axis.around([x for x, _ in everything], whole=True)
    y_axis = Axis.around([y for _, y in everything])
    lines = [
        Line(
            name=name,
            points=" ".join(
                f"{x_axis.place(x):.2f},{100 - y_axis.place(y):.2f}" for x, y in points
            ),
            first=points[0][1],
            last=points[-1][1],
        )
        for name, points in thinned
    ]
    return CurvePicture(x_ticks=x_axis.ticks(), y_ticks=y_axis.ticks(), lines=lines)


def dot_picture(rows: Sequence[tuple[str, Interval]]) -> DotPicture | None:
    """Lay out intervals of differences around zero; None when there is no row.

    A row more than 4 times as far from zero as the others reach is drawn at the edge as an arrow:
    an untrained model would otherwise press all the rest into a few pixels.
    """
    if not rows:
        return None
    reaches = sorted(_reach(interval) for _, interval in rows)
    usual = reaches[(len(reaches) - 1) // 2]
    shown = [i for _, i in rows if _reach(i) <= 4 * usual or usual == 0]
    axis = Axis.around([0.0, *(end for i in shown for end in _ends(i))], margin=0.08)
    return DotPicture(
        ticks=[tick for tick in axis.ticks() if 5 <= tick.at <= 95],  # a label needs room
        zero=axis.place(0.0),
        rows=[_dot_row(name, interval, axis) for name, interval in rows],
    )


def _dot_row(name: str, interval: Interval, axis: Axis) -> DotRow:
    beyond = "left" if interval.estimate < axis.low else "right"
    if axis.low <= interval.estimate <= axis.high:
        beyond = ""
    low, high = (min(max(axis.place(end), 0.0), 100.0) for end in _ends(interval))
    return DotRow(
        name=name,
        interval=interval,
        dot=min(max(axis.place(interval.estimate), 0.0), 100.0),
        whisker=(low, high) if interval.known and not beyond else None,
        beyond=beyond,
    )


def _ends(interval: Interval) -> tuple[float, float]:
    if interval.known:
        return interval.low, interval.high
    return interval.estimate, interval.estimate


def _reach(interval: Interval) -> float:
    return max(abs(end) for end in _ends(interval))


@dataclasses.dataclass(frozen=True)
class Axis:
    """From `low` to `high`, with a mark at each multiple of `step`."""

    low: float
    high: float
    step: float

    @classmethod
    def around(cls, values: Sequence[float], *, margin: float = 0.0, whole: bool = False) -> Axis:
        """An axis over all values; without a margin its ends are rounded to a step."""
        low, high = min(values), max(values)
        size = max(abs(low), abs(high))
        if high - low <= 1e-9 * size or high - low < 1e-9:  # too close to tell apart
            high = low + (size if size >= 1e-9 else 1.0)
        span = high - low
        low, high = low - margin * span, high + margin * span
        step = _round_step((high - low) / 4)
        if whole:
            return cls(low, high, max(step, 1.0))
        if not margin:
            low, high = math.floor(low / step) * step, math.ceil(high / step) * step
        return cls(low, high, step)

    def place(self, value: float) -> float:
        """In percent from the low end."""
        return 100 * (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[Tick]:
        """The marks."""
        first = math.ceil(self.low / self.step - 1e-9)
        last = math.floor(self.high / self.step + 1e-9)
        values = [index * self.step for index in range(first, last + 1)]
        return [Tick(at=round(self.place(v), 3), label=self._label(v)) for v in values]

    def _label(self, value: float) -> str:
        if abs(value) >= 1000 and self.step >= 1000:
            return f"{value / 1e6:g} M" if self.step >= 1e6 else f"{value / 1e3:g} k"
        decimals = max(0, -math.floor(math.log10(self.step) + 1e-9))
        return f"{value:.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def _round_step(step: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 5, 10) if step <= power * factor * 1.000001)


def _thinned(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    points = [(float(a), float(b)) for a, b in zip(x, y) if math.isfinite(a) and math.isfinite(b)]
    if len(points) <= _MOST_POINTS:
        return points
    cuts = [round(i * len(points) / _MOST_POINTS) for i in range(_MOST_POINTS + 1)]
    pieces = [points[a:b] for a, b in itertools.pairwise(cuts)]
    return [(sum(a) / len(a), sum(b) / len(b)) for a, b in (zip(*piece) for piece in pieces)]
