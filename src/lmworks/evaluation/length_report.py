"""The figures of `length_extrapolation`: bits per byte by position, differences, and the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmworks.core.files import write_json, write_text
from lmworks.evaluation.plots import CurvePicture, curve_picture
from lmworks.evaluation.position_schemes import SCHEMES
from lmworks.evaluation.report import agreed
from lmworks.evaluation.statistics import (
    Interval,
    mean_interval,
    paired_interval,
    ratio_interval,
)

if TYPE_CHECKING:
    from lmworks.evaluation.length_extrapolation import LengthExtrapolationConfig, LongWindows

_BINS_PER_CONTEXT = 2
_HIGHEST = 1.3  # times the trained level: what lies above is drawn at the edge


@dataclasses.dataclass(frozen=True, kw_only=True)
class Region:
    """Positions from `first` to `last`, and what a scheme costs there.

    Attributes:
        bits_per_byte: mean over the seeds, with its interval over texts.
        versus: difference from the baseline, paired by text; None for the baseline.
        versus_over_seeds: the same paired by seed, with Student's interval.
    """

    name: str
    first: int
    last: int
    bits_per_byte: Interval
    versus: Interval | None
    versus_over_seeds: Interval | None

    @property
    def verdict(self) -> str:
        """What both intervals allow to say."""
        if self.versus is None or self.versus_over_seeds is None:
            return ""
        return agreed(self.versus, self.versus_over_seeds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """All schemes on the same windows.

    Attributes:
        bits: name -> (seeds, windows, bins).
        num_bytes: (windows, bins).
        bins: (first, last + 1) position of each; counted from 0, the first that is predicted.
    """

    bits: dict[str, np.ndarray]
    num_bytes: np.ndarray
    groups: np.ndarray
    bins: list[tuple[int, int]]
    context: int

    @classmethod
    def of(
        cls, found: Mapping[str, Sequence[np.ndarray]], windows: LongWindows, context: int
    ) -> Measured:
        """Sum (windows, positions) bits of every seed up in bins of half a context."""
        width = context // _BINS_PER_CONTEXT
        length = windows.num_bytes.shape[1]
        bins = [(at, min(at + width, length)) for at in range(0, length, width)]
        starts = [first for first, _ in bins]
        return cls(
            bits={
                name: np.stack([np.add.reduceat(bits, starts, axis=1) for bits in seeds])
                for name, seeds in found.items()
            },
            num_bytes=np.add.reduceat(windows.num_bytes, starts, axis=1),
            groups=windows.groups,
            bins=bins,
            context=context,
        )

    @property
    def baseline(self) -> str:
        """What the others are held against."""
        return "rope" if "rope" in self.bits else next(iter(self.bits))

    def curve(self, name: str) -> list[float]:
        """Bits per byte of each bin, the mean over seeds."""
        totals = self.bits[name].mean(0).sum(0) / self.num_bytes.sum(0)
        return [float(value) for value in totals]

    def seed_curves(self, name: str) -> list[list[float]]:
        """`curve` of each seed."""
        return (self.bits[name].sum(1) / self.num_bytes.sum(0)).tolist()  # type: ignore[no-any-return]

    def regions(self, name: str) -> list[Region]:
        """Where it was trained, just beyond, and at the far end."""
        end = self.bins[-1][1]
        places = [("trained", self.context // 2, self.context)]
        if end >= 2 * self.context:
            places.append(("twice as far", self.context, 2 * self.context))
        if end > 2 * self.context:
            places.append(("at the end", end - self.context, end))
        return [self._region(name, *place) for place in places]

    def _region(self, name: str, title: str, first: int, last: int) -> Region:
        inside = [i for i, (start, _) in enumerate(self.bins) if first <= start < last]
        sizes = self.num_bytes[:, inside].sum(1)
        mine = self.bits[name][:, :, inside].sum(-1)
        level = ratio_interval(mine.mean(0), sizes, self.groups)
        if name == self.baseline:
            return Region(name=title, first=first, last=last, bits_per_byte=level, versus=None,
                          versus_over_seeds=None)  # fmt: skip
        other = self.bits[self.baseline][:, :, inside].sum(-1)
        return Region(
            name=title,
            first=first,
            last=last,
            bits_per_byte=level,
            versus=paired_interval(mine.mean(0), other.mean(0), sizes, self.groups),
            versus_over_seeds=mean_interval((mine - other).sum(1) / sizes.sum()),
        )


def about(name: str) -> str:
    """What a scheme does, in a sentence."""
    if name in SCHEMES:
        return SCHEMES[name]
    return f"the rope models, stretched by the scaling {name.partition(', ')[2]}, not trained again"


def write(folder: Path, measured: Measured, config: LengthExtrapolationConfig) -> None:
    """Write `report.json` and `report.html`."""
    from lmworks.evaluation.pages import render_page

    found = to_mapping(measured, config)
    write_json(folder / "report.json", found)
    page = render_page(
        "length.html.jinja",
        report=found,
        config=config,
        baseline=measured.baseline,
        rows=[(name, about(name), measured.regions(name)) for name in measured.bits],
        picture=picture(found),
        sentence=sentence(measured),
    )
    write_text(folder / "report.html", page)


def to_mapping(measured: Measured, config: LengthExtrapolationConfig) -> dict[str, Any]:
    """The whole report as plain values; a page draws from it."""
    return {
        "kind": "length_extrapolation",
        "summary": sentence(measured),
        "baseline": measured.baseline,
        "context_length": config.context_length,
        "test_length": config.test_length,
        "depth": config.depth,
        "num_steps": config.num_steps,
        "seeds": config.seeds,
        "windows": len(measured.groups),
        "documents": len(set(measured.groups.tolist())),
        "bins": [list(pair) for pair in measured.bins],
        "schemes": [
            {
                "name": name,
                "about": about(name),
                "curve": measured.curve(name),
                "seeds": measured.seed_curves(name),
                "regions": [_plain(region) for region in measured.regions(name)],
            }
            for name in measured.bits
        ],
    }


def _plain(region: Region) -> dict[str, Any]:
    def ends(interval: Interval | None) -> dict[str, float | None] | None:
        if interval is None:
            return None
        known = interval.known
        return {
            "estimate": interval.estimate,
            "low": interval.low if known else None,
            "high": interval.high if known else None,
        }

    return {
        "name": region.name,
        "first": region.first,
        "last": region.last,
        "bits_per_byte": ends(region.bits_per_byte),
        "versus": ends(region.versus),
        "versus_over_seeds": ends(region.versus_over_seeds),
        "verdict": region.verdict,
    }


def picture(report: Mapping[str, Any]) -> CurvePicture | None:
    """The curves over common axes, clipped where they leave all scale."""
    middles = [(first + last) / 2 for first, last in report["bins"]]
    trained = min(min(s["curve"][:_BINS_PER_CONTEXT]) for s in report["schemes"])
    most = _HIGHEST * trained
    curves = [
        (s["name"], middles, [min(value, most) for value in s["curve"]]) for s in report["schemes"]
    ]
    return curve_picture(curves)


def sentence(measured: Measured) -> str:
    """Who carries farthest, as the figures allow to say."""
    last = {name: measured.regions(name)[-1] for name in measured.bits}
    best = min(last, key=lambda name: last[name].bits_per_byte.estimate)
    where = last[best]
    held = (
        "the baseline"
        if best == measured.baseline
        else f"against {measured.baseline}: {where.verdict}"
    )
    trained = measured.regions(best)[0].bits_per_byte.estimate
    return (
        f"From position {where.first} to {where.last}, {best} costs least: "
        f"{where.bits_per_byte.estimate:.3f} bits per byte ({held}); where it was trained it costs "
        f"{trained:.3f}."
    )


def summary(measured: Measured) -> dict[str, Any]:
    """The figures that a manifest keeps."""
    return {
        "summary": sentence(measured),
        "bits_per_byte": {
            name: {
                region.name: round(region.bits_per_byte.estimate, 4)
                for region in measured.regions(name)
            }
            for name in measured.bits
        },
    }
