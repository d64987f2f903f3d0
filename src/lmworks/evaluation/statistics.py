"""Intervals: what a figure could have been, had the held-out documents been others.

Documents of one group (a manual's pages, a folder's files) are alike, so groups, not documents,
are drawn anew in a bootstrap, and both models of a comparison are judged on the same draws
(a paired bootstrap). Plain percentiles are too narrow when groups are few; they are widened the
way Hesterberg (2015) describes. With fewer than 6 groups no interval is given: even if all of
them agree, chance does as much in more than 5 % of cases (2 / 2^5).

Sources: Efron & Tibshirani 1993, "An introduction to the bootstrap", chapters 8 (other units than
single values) and 13 (percentiles); Koehn 2004, "Statistical significance tests for machine
translation evaluation" (the paired bootstrap over a corpus figure); Hesterberg 2015, "What
teachers should know about the bootstrap", The American Statistician 69(4) (expanded percentiles).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

MIN_GROUPS = 6
_BLOCK_CELLS = 4_000_000  # drawn indices held at once, about 32 MB


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate and where it lies with a given confidence; infinite ends mean "not known"."""

    estimate: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether there was enough to say how sure the estimate is."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is shown: both ends lie on the same side of zero."""
        return self.low > 0 or self.high < 0


def ratio_interval(
    numerator: Sequence[float] | np.ndarray,
    denominator: Sequence[float] | np.ndarray,
    groups: Sequence[str] | np.ndarray,
    *,
    seed: int = 0,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Interval of sum(numerator) / sum(denominator) over documents clustered by group.

    Args:
        numerator: (N,) per document, for example bits.
        denominator: (N,) per document, for example bytes; > 0 in every group.
        groups: (N,) names; documents of one group are drawn together.
    Source: Efron & Tibshirani 1993, chapter 8. Differs: expanded percentiles, see the module.
    """
    nothing = np.zeros(len(np.asarray(numerator)))
    return paired_interval(
        numerator,
        nothing,
        denominator,
        groups,
        seed=seed,
        num_resamples=num_resamples,
        confidence=confidence,
    )


def paired_interval(
    numerator: Sequence[float] | np.ndarray,
    other: Sequence[float] | np.ndarray,
    denominator: Sequence[float] | np.ndarray,
    groups: Sequence[str] | np.ndarray,
    *,
    seed: int = 0,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Interval of sum(numerator) / sum(denominator) - sum(other) / sum(denominator).

    Args:
        numerator, other: (N,) of two models on the same documents; below zero: the first is lower.
        denominator, groups: as in `ratio_interval`.
    Returns: the difference; infinite ends with fewer than MIN_GROUPS groups.
    Raises: ValueError for arrays of different lengths, none at all, or a group that sums to 0.
    Source: Koehn 2004. Differs: documents in clusters, expanded percentiles.
    """
    difference, size = _sum_by_group(numerator, other, denominator, groups)
    return _interval_of_ratio(difference, size, seed, num_resamples, confidence)


def share_of_gain(
    before: Sequence[float] | np.ndarray,
    kept: Sequence[float] | np.ndarray,
    best: Sequence[float] | np.ndarray,
    groups: Sequence[str] | np.ndarray,
    *,
    seed: int = 0,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Interval of sum(before - kept) / sum(before - best) over documents clustered by group.

    Args:
        before, kept, best: (N,) losses of three models on the same documents.
        groups: as in `ratio_interval`.
    Returns: the share; infinite ends with fewer than MIN_GROUPS groups, and where `best` is no
        better than `before`, surely enough to divide by.
    Raises: ValueError as `paired_interval`, and for a `best` that is not better at all.
    """
    gain, whole = (
        _sum_by_group(before, other, np.ones(len(groups)), groups)[0] for other in (kept, best)
    )
    if whole.sum() <= 0:
        raise ValueError("there is no gain to keep a share of")
    return _interval_of_ratio(gain, whole, seed, num_resamples, confidence)


def mean_interval(values: Sequence[float] | np.ndarray, *, confidence: float = 0.95) -> Interval:
    """Student's interval of the mean of independent values; infinite ends below two values.

    Raises: ValueError when there is no value.
    Source: Student 1908, "The probable error of a mean".
    """
    array = np.asarray(values, dtype=np.float64)
    if not array.size:
        raise ValueError("a mean needs at least one value")
    mean = float(array.mean())
    if array.size < 2:
        return Interval(mean, -math.inf, math.inf)
    error = float(array.std(ddof=1)) / math.sqrt(array.size)
    half = student_quantile(0.5 + confidence / 2, array.size - 1) * error
    return Interval(mean, mean - half, mean + half)


def share_interval(successes: int, trials: int, *, confidence: float = 0.95) -> Interval:
    """Interval of a probability from independent trials; it stays within 0 and 1.

    Raises: ValueError when there is no trial.
    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials")
    share, z = successes / trials, NormalDist().inv_cdf(0.5 + confidence / 2)
    shrink = 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / shrink
    half = z * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2) / shrink
    # Rounding must not put the share itself outside, where it is 0 or 1.
    low, high = min(share, middle - half), max(share, middle + half)
    return Interval(share, max(0.0, low), min(1.0, high))


def student_quantile(p: float, degrees: int) -> float:
    """The p-quantile of Student's t, right to 0.2 % for p up to 0.975 (exact for 1 and 2 degrees).

    Source: Abramowitz & Stegun 1964, 26.7.5 (the expansion in 1 / degrees).
    """
    if degrees == 1:
        return math.tan(math.pi * (p - 0.5))
    if degrees == 2:
        a = 2 * p - 1
        return a * math.sqrt(2 / (1 - a * a))
    z = NormalDist().inv_cdf(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))


def _expanded_tail(num_groups: int, confidence: float) -> float:
    """The share to cut off at each end, so that percentiles are as wide as Student's interval."""
    t = student_quantile(0.5 + confidence / 2, num_groups - 1)
    return NormalDist().cdf(-t * math.sqrt(num_groups / (num_groups - 1)))


def _sum_by_group(
    numerator: Sequence[float] | np.ndarray,
    other: Sequence[float] | np.ndarray,
    denominator: Sequence[float] | np.ndarray,
    groups: Sequence[str] | np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(G,) sums of numerator - other, and (G,) sums of the denominator, groups sorted by name."""
    columns = [np.asarray(c, dtype=np.float64) for c in (numerator, other, denominator)]
    lengths = [len(column) for column in columns] + [len(groups)]
    if len(set(lengths)) > 1:
        raise ValueError(f"numerators, denominator and groups differ in length: {lengths}")
    if not lengths[0]:
        raise ValueError("an interval needs at least one document")
    _, place = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    size = np.bincount(place, columns[2])
    if not (size > 0).all():
        raise ValueError("every group needs a denominator above zero")
    return np.bincount(place, columns[0] - columns[1]), size


def _interval_of_ratio(
    numerator: np.ndarray,
    denominator: np.ndarray,
    seed: int,
    num_resamples: int,
    confidence: float,
) -> Interval:
    """Of sums over G groups, drawn with replacement.

    Infinite ends for too few groups, and where a drawn denominator is not above zero.
    """
    estimate, num_groups = float(numerator.sum() / denominator.sum()), len(numerator)
    unknown = Interval(estimate, -math.inf, math.inf)
    if num_groups < MIN_GROUPS:
        return unknown
    random = np.random.default_rng(seed)
    rows = max(1, _BLOCK_CELLS // num_groups)
    blocks = []
    for start in range(0, num_resamples, rows):
        shape = (min(rows, num_resamples - start), num_groups)
        drawn = random.integers(0, num_groups, shape)
        sizes = denominator[drawn].sum(1)
        if sizes.min() <= 0:
            return unknown
        blocks.append(numerator[drawn].sum(1) / sizes)
    tail = _expanded_tail(num_groups, confidence)
    low, high = np.quantile(np.concatenate(blocks), [tail, 1 - tail])
    return Interval(estimate, float(low), float(high))
