"""Places on the pictures: inside the frame, in order, and honest about what does not fit."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmworks.evaluation.plots import curve_picture, dot_picture
from lmworks.evaluation.statistics import Interval

numbers = st.floats(-1e9, 1e9, allow_nan=False)


def _points(line):
    return [tuple(map(float, point.split(","))) for point in line.points.split()]


@given(st.lists(numbers, min_size=1, max_size=30))
def test_curves_stay_inside_and_keep_their_order(values):
    picture = curve_picture([("a", range(len(values)), values)])
    points = _points(picture.lines[0])
    assert len(points) == len(values)
    assert all(-0.01 <= x <= 100.01 and -0.01 <= y <= 100.01 for x, y in points)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert all(-0.01 <= tick.at <= 100.01 for tick in picture.x_ticks + picture.y_ticks)
    assert 1 <= len(picture.y_ticks) <= 8


def test_higher_is_drawn_higher_and_long_curves_become_means():
    picture = curve_picture([("a", [0, 1], [2.0, 8.0]), ("b", range(1200), [5.0] * 1200)])
    (_, low), (_, high) = _points(picture.lines[0])
    assert low > high
    assert len(_points(picture.lines[1])) == 240
    assert [tick.label for tick in picture.y_ticks] == ["2", "4", "6", "8"]


def test_points_that_are_not_numbers_are_left_out():
    assert curve_picture([("a", [0, 1], [math.nan, math.inf])]) is None
    picture = curve_picture([("a", [0, 1, 2], [1.0, math.nan, 2.0])])
    assert len(_points(picture.lines[0])) == 2


@given(st.lists(st.tuples(numbers, st.floats(0, 1e6), st.booleans()), min_size=1, max_size=8))
def test_dots_and_whiskers_stay_inside(rows):
    intervals = [
        Interval(e, e - half, e + half) if known else Interval(e, -math.inf, math.inf)
        for e, half, known in rows
    ]
    picture = dot_picture([("r", interval) for interval in intervals])
    assert 0 <= picture.zero <= 100
    for interval, row in zip(intervals, picture.rows):
        assert 0 <= row.dot <= 100
        assert (row.whisker is None) == (not interval.known or bool(row.beyond))
        if row.whisker:
            assert row.whisker[0] - 1e-6 <= row.dot <= row.whisker[1] + 1e-6


def test_a_far_row_becomes_an_arrow_and_leaves_room_for_the_rest():
    rows = [
        ("untrained", Interval(1.7, 1.6, 1.8)),
        ("base", Interval(-0.12, -0.14, -0.1)),
        ("chat", Interval(-0.09, -0.11, -0.07)),
    ]
    picture = dot_picture(rows)
    assert [row.beyond for row in picture.rows] == ["right", "", ""]
    assert picture.rows[1].whisker[1] - picture.rows[1].whisker[0] > 10
    assert dot_picture([]) is None


def test_zero_is_where_nothing_is_gained():
    picture = dot_picture([("a", Interval(0.0, -1.0, 1.0))])
    assert picture.zero == pytest.approx(50) == picture.rows[0].dot
    nothing = dot_picture([("a", Interval(0.0, 0.0, 0.0)), ("b", Interval(0.0, -5e-324, 5e-324))])
    assert nothing.rows[0].dot == nothing.rows[1].dot == nothing.zero
