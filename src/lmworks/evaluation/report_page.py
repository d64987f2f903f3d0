"""`report.html` from a `Report`: the words and figures that the template puts on the page.

The template holds the layout; numbers become text here, so that a figure reads the same wherever
it stands. Every string is cleaned and escaped on its way in.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmworks.core.progress import duration
from lmworks.evaluation.plots import CurvePicture, DotPicture, curve_picture, dot_picture
from lmworks.evaluation.report import (
    CurvePlot,
    GainRow,
    GainTable,
    Report,
    StageCost,
    clean,
    verdict,
)
from lmworks.evaluation.statistics import Interval

_MINUS = "\N{MINUS SIGN}"


def render(report: Report) -> str:
    """The whole page as text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        signed=signed,
        plain=plain,
        interval=interval_text,
        duration=duration,
        size=size_text,
        rate=rate_text,
        pretty=lambda value: json.dumps(value, indent=2, ensure_ascii=False, default=dict),
    )
    page: str = environment.get_template("report.html.jinja").render(
        report=report,
        gains=[_gain_table(table) for table in report.gains],
        plots=[(plot, picture) for plot in report.curves if (picture := _curves(plot))],
        costs=_costs(report.costs),
    )
    return page


def signed(value: float) -> str:
    """`+0.214`, or with a true minus sign; one more digit below a thousandth."""
    text = f"{value:+.{4 if abs(value) < 0.001 else 3}f}"
    return "0" if float(text) == 0 else text.replace("-", _MINUS)


def plain(value: float) -> str:
    """A number with a true minus sign."""
    return f"{value:.3f}".replace("-", _MINUS)


def interval_text(interval: Interval, *, sign: bool = False) -> str:
    """`1.82 to 1.90`, or that it is not known."""
    if not interval.known:
        return "too few groups for an interval"
    show = signed if sign else plain
    return f"{show(interval.low)} to {show(interval.high)}"


def size_text(num_bytes: float) -> str:
    """`1.2 GB`, `340 MB`, `12 kB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            amount = num_bytes / size
            return f"{amount:.1f} {unit}" if amount < 10 else f"{amount:.0f} {unit}"
    return f"{num_bytes:.0f} B"


def rate_text(per_second: float) -> str:
    """A rate with three figures or whole thousands."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Difference:
    interval: Interval
    verdict: str
    against: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Row:
    row: GainRow
    differences: list[_Difference | None]  # as the columns of the table


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Table:
    table: GainTable
    columns: list[str]
    rows: list[_Row]
    picture: DotPicture | None
    reference: str  # what zero stands for in the picture


def _gain_table(table: GainTable) -> _Table:
    has_ngram = any(row.versus_ngram for row in table.rows)
    has_previous = any(row.versus_previous for row in table.rows)
    columns = ["Against the n-gram"] * has_ngram + ["Against the step before"] * has_previous
    rows = []
    for row in table.rows:
        found = [_difference(row.versus_ngram, "the n-gram")] * has_ngram
        found += [_difference(row.versus_previous, row.previous)] * has_previous
        rows.append(_Row(row=row, differences=found))
    shown = [
        (row.name, row.versus_ngram if has_ngram else row.versus_previous) for row in table.rows
    ]
    return _Table(
        table=table,
        columns=columns,
        rows=rows,
        picture=dot_picture([(name, found) for name, found in shown if found]),
        reference="the n-gram" if has_ngram else "the step before",
    )


def _difference(interval: Interval | None, against: str) -> _Difference | None:
    if interval is None:
        return None
    return _Difference(interval=interval, verdict=verdict(interval), against=against)


def _curves(plot: CurvePlot) -> CurvePicture | None:
    return curve_picture([(curve.name, curve.x, curve.y) for curve in plot.curves])


def _costs(costs: tuple[StageCost, ...]) -> Mapping[str, Any] | None:
    """The stages with their share of the longest one, and which columns hold anything."""
    if not costs:
        return None
    longest = max(cost.seconds for cost in costs) or 1.0
    return {
        "rows": [(cost, 100 * cost.seconds / longest) for cost in costs],
        "total": sum(cost.seconds for cost in costs if not cost.cached),
        "memory": any(cost.peak_memory_bytes for cost in costs),
        "speed": any(cost.per_second for cost in costs),
        "artifact": any(cost.artifact_bytes for cost in costs),
    }
