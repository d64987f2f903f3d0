from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.racing import race


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.5, 2), min_size=1, max_size=7, unique=True), st.integers(0, 99))
def test_the_winner_is_within_the_margin_of_the_best_whatever_the_moods(speeds, seed):
    """A mood of the machine that lasts a round is shared by all who are timed in it."""
    random = np.random.default_rng(seed)
    left: list[int] = []

    def time(index):
        return speeds[index] * (1 + 0.002 * random.random())

    winner = race(range(len(speeds)), time, leave=left.append)
    assert speeds[winner] <= min(speeds) * 1.035
    assert winner not in left and len(left) == len(set(left))


def test_time_goes_to_those_that_are_hard_to_tell_apart():
    counts: Counter[str] = Counter()
    seconds = {"best": 1.0, "near": 1.01, "behind": 1.08, "far": 2.0}

    def time(name):
        counts[name] += 1
        return seconds[name]

    left: list[str] = []
    assert race(list(seconds), time, rounds=4, leave=left.append) == "best"
    assert counts == {"best": 5, "near": 5, "behind": 2, "far": 1}
    assert left == ["far", "behind"]


def test_one_setting_is_timed_once():
    assert race(["only"], lambda name: 1.0) == "only"


def test_without_rounds_the_first_look_decides():
    seconds = {"near": 1.01, "best": 1.0}
    assert race(list(seconds), seconds.__getitem__, rounds=0) == "best"


def test_a_champion_stays_unless_another_is_ahead_by_the_margin():
    seconds = {"usual": 1.0, "lucky": 0.99, "slow": 1.4}
    assert race(list(seconds), seconds.__getitem__, champion="usual") == "usual"
    assert race(list(seconds), seconds.__getitem__) == "lucky"
    seconds["lucky"] = 0.9
    assert race(list(seconds), seconds.__getitem__, champion="usual") == "lucky"
