"""What is said of a model that judges pairs: accuracy, calibration, bias for length; paired."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from lmworks.evaluation.statistics import Interval, paired_interval, ratio_interval

_BINS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgement:
    """A model's view of N pairs.

    Attributes:
        kept: where each pair stands, which names it.
        difference: (N,) reward of the better answer minus that of the other.
        longer: (N,) tokens by which the better answer is the longer one.
        groups: of each pair, for the intervals.
        is_probability: whether the sigmoid of a difference is meant to be the probability that the
            better answer is the better one, as with Bradley-Terry.
    """

    kept: Sequence[str]
    difference: np.ndarray
    longer: np.ndarray
    groups: Sequence[str]
    is_probability: bool

    def only(self, wanted: Collection[str]) -> Judgement:
        """The pairs of these names."""
        rows = [i for i, where in enumerate(self.kept) if where in wanted]
        return dataclasses.replace(
            self,
            kept=[self.kept[i] for i in rows],
            difference=self.difference[rows],
            longer=self.longer[rows],
            groups=[self.groups[i] for i in rows],
        )


def figures(one: Judgement, *, seed: int) -> dict[str, Any]:
    """Figures with their intervals, [estimate, low, high]; None where nothing can be said."""
    right = hits(one.difference)
    ones = np.ones(len(right))
    groups = np.asarray(one.groups)
    shorter, longer = one.longer < 0, one.longer > 0
    return {
        "accuracy": told(ratio_interval(right, ones, groups, seed=seed)),
        "margin": told(ratio_interval(one.difference, ones, groups, seed=seed)),
        "calibration_error": calibration_error(one) if one.is_probability else None,
        "accuracy_where_the_better_is_longer": _of(right, groups, longer, seed),
        "accuracy_where_it_is_shorter": _of(right, groups, shorter, seed),
        "length_bias": length_bias(one, seed=seed),
    }


def compare(one: Judgement, other: Judgement, *, seed: int) -> dict[str, Any]:
    """How much more often `one` is right than `other`, on the same pairs."""
    interval = paired_interval(
        hits(one.difference),
        hits(other.difference),
        np.ones(len(one.kept)),
        np.asarray(one.groups),
        seed=seed,
    )
    return {"accuracy": told(interval), "is_shown": interval.excludes_zero}


def hits(difference: np.ndarray) -> np.ndarray:
    """(N,) 1 where the better answer has the higher reward, 1/2 for a tie."""
    return (np.sign(difference) + 1) / 2


def calibration_error(one: Judgement) -> float:
    """Expected calibration error: how far confidence and accuracy lie apart, over ten bins.

    Confidence is that in the answer which the model prefers, from 1/2 to 1.

    Source: Guo et al. 2017, arXiv 1706.04599, eq. 3.
    """
    confidence = 1 / (1 + np.exp(-np.abs(one.difference)))
    right = hits(one.difference)
    place = np.minimum((confidence - 0.5) * 2 * _BINS, _BINS - 1).astype(int)
    gaps = np.abs(np.bincount(place, confidence - right, minlength=_BINS))
    return float(gaps.sum() / len(right))


def length_bias(one: Judgement, *, seed: int) -> list[float | None] | None:
    """How much oftener the model is right where the better answer is the longer one.

    Zero for a model that does not look at length; pairs of equal length are left out. None where
    there are no pairs of one kind.
    """
    right, groups = hits(one.difference), np.asarray(one.groups)
    longer, shorter = one.longer > 0, one.longer < 0
    if not longer.any() or not shorter.any():
        return None
    # A difference of two means over the same draws of groups.
    names, place = np.unique(groups, return_inverse=True)
    sums = [np.bincount(place, right * kind, minlength=len(names)) for kind in (longer, shorter)]
    counts = [np.bincount(place, kind, minlength=len(names)) for kind in (longer, shorter)]
    estimate = right[longer].mean() - right[shorter].mean()
    if len(names) < 6:
        return [float(estimate), None, None]
    random = np.random.default_rng(seed)
    drawn = random.integers(0, len(names), (2000, len(names)))
    with np.errstate(invalid="ignore", divide="ignore"):
        means = [s[drawn].sum(1) / c[drawn].sum(1) for s, c in zip(sums, counts)]
    low, high = np.nanquantile(means[0] - means[1], [0.025, 0.975])
    return [float(estimate), float(low), float(high)]


def _of(
    right: np.ndarray, groups: np.ndarray, kind: np.ndarray, seed: int
) -> list[float | None] | None:
    if not kind.any():
        return None
    return told(ratio_interval(right[kind], np.ones(kind.sum()), groups[kind], seed=seed))


def told(interval: Interval) -> list[float | None]:
    """[estimate, low, high]; ends that are not known are None, since JSON has no infinity."""
    ends = (interval.low, interval.high) if interval.known else (None, None)
    return [interval.estimate, *ends]
