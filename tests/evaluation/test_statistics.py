"""Coverage by simulation, hand-checkable cases, and tables of Student's t."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmworks.evaluation.statistics import (
    Interval,
    mean_interval,
    paired_interval,
    ratio_interval,
    student_quantile,
)


def _corpus(random, num_groups):
    """Documents in groups that share an offset; two models, the first better by 0.05 on average."""
    sizes = random.integers(1, 4, num_groups)
    group = np.repeat(np.arange(num_groups), sizes)
    num_bytes = random.integers(200, 3000, len(group)).astype(float)
    level = 2 + random.normal(0, 0.2, num_groups)[group] + random.normal(0, 0.1, len(group))
    gain = 0.05 + random.normal(0, 0.06, num_groups)[group] + random.normal(0, 0.03, len(group))
    bits_b = level * num_bytes
    return bits_b - gain * num_bytes, bits_b, num_bytes, [f"g{g}" for g in group]


@pytest.mark.parametrize("num_groups", [12, 60])
def test_covers_the_truth_95_times_in_100(num_groups):
    random = np.random.default_rng(11)
    inside_difference = inside_ratio = 0
    trials = 1000
    for seed in range(trials):
        a, b, num_bytes, groups = _corpus(random, num_groups)
        paired = paired_interval(a, b, num_bytes, groups, seed=seed, num_resamples=600)
        inside_difference += paired.low <= -0.05 <= paired.high
        single = ratio_interval(b, num_bytes, groups, seed=seed, num_resamples=600)
        inside_ratio += single.low <= 2 <= single.high
    assert 0.93 <= inside_difference / trials <= 0.97
    assert 0.93 <= inside_ratio / trials <= 0.97


def test_mean_interval_covers_too():
    random = np.random.default_rng(5)
    found = [mean_interval(random.normal(3, 1, 5)) for _ in range(2000)]
    assert 0.94 <= np.mean([i.low <= 3 <= i.high for i in found]) <= 0.96


def test_pairing_sees_what_two_single_intervals_do_not():
    a, b, num_bytes, groups = _corpus(np.random.default_rng(1), 60)
    one, two = ratio_interval(a, num_bytes, groups), ratio_interval(b, num_bytes, groups)
    assert one.high > two.low  # the single intervals overlap
    paired = paired_interval(a, b, num_bytes, groups)
    assert paired.excludes_zero and paired.high < 0
    assert paired.estimate == pytest.approx(one.estimate - two.estimate)
    assert paired.estimate == pytest.approx((a.sum() - b.sum()) / num_bytes.sum())


def test_groups_are_drawn_whole():
    # 200 equal documents in 8 groups: as single documents they would look very certain.
    values = np.repeat([0.0, 0, 0, 0, 1, 1, 1, 1], 25)
    ones = np.ones(200)
    clustered = ratio_interval(values, ones, np.repeat(list("abcdefgh"), 25))
    single = ratio_interval(values, ones, [str(i) for i in range(200)])
    assert clustered.high - clustered.low > 3 * (single.high - single.low)


def test_same_seed_same_interval_and_order_does_not_matter():
    a, b, num_bytes, groups = _corpus(np.random.default_rng(2), 20)
    first = paired_interval(a, b, num_bytes, groups, seed=4)
    assert paired_interval(a, b, num_bytes, groups, seed=4) == first
    assert paired_interval(a, b, num_bytes, groups, seed=5) != first
    order = np.random.default_rng(0).permutation(len(a))
    mixed = paired_interval(a[order], b[order], num_bytes[order], np.array(groups)[order], seed=4)
    assert (mixed.low, mixed.high) == pytest.approx((first.low, first.high), abs=1e-12)


@given(st.integers(1, 5))
def test_few_groups_show_nothing(num_groups):
    interval = ratio_interval(
        [-5.0] * num_groups, [1.0] * num_groups, list(map(str, range(num_groups)))
    )
    assert interval.estimate == -5 and not interval.known and not interval.excludes_zero


def test_interval_excludes_zero():
    assert Interval(1, 0.5, 2).excludes_zero and Interval(-1, -2, -0.5).excludes_zero
    assert not Interval(1, 0, 2).excludes_zero and not Interval(0, 0, 0).excludes_zero


@pytest.mark.parametrize(
    ("degrees", "table"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042)],
)
def test_student_quantile_is_that_of_the_tables(degrees, table):
    assert student_quantile(0.975, degrees) == pytest.approx(table, rel=2e-3)


def test_mean_interval_by_hand():
    interval = mean_interval([1, 2, 3])
    assert interval.estimate == 2
    assert interval.high - 2 == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert not mean_interval([4]).known


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ratio_interval([1, 2], [1], ["a", "b"]), "differ in length"),
        (lambda: ratio_interval([], [], []), "at least one document"),
        (lambda: ratio_interval([1], [0], ["a"]), "above zero"),
        (lambda: mean_interval([]), "at least one value"),
    ],
)
def test_wrong_calls_say_what_is_wrong(call, words):
    with pytest.raises(ValueError, match=words):
        call()
