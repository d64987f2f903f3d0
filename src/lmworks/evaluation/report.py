"""A run's report: what was made, what each step gained and how sure that is, on one page.

`Report` is the data; `write_report` puts it down twice, as `report.json` for programs and as
`report.html` for people. The page is one file: no script, no network, style and pictures inside,
light and dark, for wide and narrow screens and for paper. Whatever models and documents say is
escaped, and a content policy forbids the page to run or load anything, should that ever fail.

A part that is empty is left out of the page. "Better" and "worse" come from intervals alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lmworks.core.files import write_json, write_text
from lmworks.evaluation.statistics import Interval

# Control characters but tab, line feed and carriage return.
_CONTROLS = dict.fromkeys([*range(9), 11, 12, *range(14, 32), *range(127, 160)], "\ufffd")

Verdict = Literal["better", "worse", "no difference shown"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fact:
    """One figure for the head of the page: `Fact(label="Parameters", value="5.2 M")`."""

    label: str
    value: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a picture; `x` rises."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurvePlot:
    """Curves over the same axes. The last curve is drawn strongest (put held-out there)."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GainRow:
    """One model's bits per byte, and its differences (below zero: this row needs fewer bits)."""

    name: str
    bits_per_byte: Interval
    versus_ngram: Interval | None = None
    versus_previous: Interval | None = None
    previous: str = ""  # the name of the row that `versus_previous` is against
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GainTable:
    """Models on the same texts."""

    title: str
    note: str
    rows: tuple[GainRow, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleText:
    """What one stage's model wrote."""

    stage: str
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One prompt, and what the model wrote after each stage, in order."""

    prompt: str
    texts: tuple[SampleText, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageCost:
    """What a stage took; 0 where it was not measured."""

    name: str
    seconds: float
    peak_memory_bytes: int = 0
    per_second: float = 0.0
    per_second_unit: str = "tokens/s"
    artifact_bytes: int = 0
    cached: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageLineage:
    """Where an artifact comes from; `config` and `inputs` as its `lmworks.json` holds them."""

    stage: str
    sha256: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]  # field -> hash of what it pointed to


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextStep:
    """A command worth typing, and what it does."""

    command: str
    meaning: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """All that the page shows. `summary` is one or two plain sentences."""

    title: str
    summary: str
    facts: tuple[Fact, ...] = ()
    gains: tuple[GainTable, ...] = ()
    curves: tuple[CurvePlot, ...] = ()
    samples: tuple[Sample, ...] = ()
    costs: tuple[StageCost, ...] = ()
    lineage: tuple[StageLineage, ...] = ()
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    next_steps: tuple[NextStep, ...] = ()


def verdict(difference: Interval) -> Verdict:
    """What an interval of a difference in bits per byte allows to say. Lower is better."""
    if not difference.excludes_zero:
        return "no difference shown"
    return "better" if difference.high < 0 else "worse"


def agreed(*differences: Interval) -> Verdict:
    """What all intervals allow to say, for example over documents and over seeds."""
    found = {verdict(difference) for difference in differences}
    return found.pop() if len(found) == 1 else "no difference shown"


def write_report(folder: str | Path, report: Report) -> None:
    """Write `report.json` and `report.html` into `folder`, each whole or not at all.

    Raises: UserError when the folder can't be written.
    """
    from lmworks.evaluation.report_page import render

    write_json(Path(folder) / "report.json", to_mapping(report))
    write_text(Path(folder) / "report.html", render(report))


def to_mapping(report: Report) -> dict[str, Any]:
    """The report as plain JSON values: an end of an interval that is not known is null, every
    difference carries its verdict, and text is valid Unicode."""
    plain: dict[str, Any] = _plain(report)
    return plain


def plain_values(value: Any) -> Any:
    """Dataclasses, intervals and text of any report as plain JSON values, as in `to_mapping`."""
    return _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        ends = {"low": value.low, "high": value.high}
        return {"estimate": value.estimate} | {
            end: number if math.isfinite(number) else None for end, number in ends.items()
        }
    if isinstance(value, GainRow):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        for name in ("versus_ngram", "versus_previous"):
            difference = getattr(value, name)
            fields[f"{name}_verdict"] = verdict(difference) if difference else None
        return fields
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {clean(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return clean(value) if isinstance(value, str) else value


def clean(text: str) -> str:
    """Valid Unicode without control characters (line ends and tabs stay)."""
    text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return text.translate(_CONTROLS)
