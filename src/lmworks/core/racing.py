"""A race: settings take turns at being timed, and those that fall behind leave.

All are timed once. Those near the best then take turns, round by round, and one whose ratio to the
leader within a round is behind in the median leaves: the machine's moods fall on all of a round.
Most of the time thus goes to those that are hard to tell apart (successive elimination: Even-Dar,
Mannor & Mansour 2006, JMLR 7; theirs counts on bounded noise, here a margin stands for that).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TypeVar

S = TypeVar("S")

NEAR = 1.15  # times the best time: still in after one look
BEHIND = 1.03  # times the leader's, in the median of the rounds: out


def race(
    settings: Sequence[S],
    time: Callable[[S], float],
    *,
    rounds: int = 3,
    near: float = NEAR,
    behind: float = BEHIND,
    champion: S | None = None,
    leave: Callable[[S], None] = lambda setting: None,
) -> S:
    """The setting that takes the least time.

    Args:
        settings: hashable, each once.
        time: times one, in any unit.
        champion: one of them that stays unless another is ahead of it by the margin: the usual
            setting, which luck should not unseat.
        leave: called with each setting that is out.
    """
    looks = {setting: time(setting) for setting in settings}
    least = min(looks.values())
    alive = _kept([s for s in settings if looks[s] <= near * least], settings, leave)
    seen: list[dict[S, float]] = []
    while len(alive) > 1 and len(seen) < rounds:
        seen.append({setting: time(setting) for setting in alive})
        leader = min(alive, key=lambda s: statistics.median(r[s] for r in seen))
        still = [
            setting
            for setting in alive
            if statistics.median(r[setting] / r[leader] for r in seen) <= behind
        ]
        alive = _kept(still, alive, leave)
    if champion is not None and champion in alive:
        return champion
    return min(alive, key=lambda s: statistics.median(r[s] for r in seen or [looks]))


def _kept(still: list[S], before: Sequence[S], leave: Callable[[S], None]) -> list[S]:
    for setting in before:
        if setting not in still:
            leave(setting)
    return still
