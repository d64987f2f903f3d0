"""Forgetting: what a model lost of each task by learning those after it.

A table of scores has a row for the state after each task and a column for each task's held-out
rows. Of a task, what was forgotten is its figure at the end less its figure just after it was
learnt; what was learnt is the figure just after. Both are pooled over all tasks but the last, by
bytes, since that is how bits per byte are.

Source: Lopez-Paz & Ranzato 2017, arXiv 1706.08840, section 2 (backward transfer); Chaudhry et al.
2018, arXiv 1801.10112, section 3. Differs: in bits per byte, so that below zero is a gain, and
against the state just after a task, not the best one before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from lmworks.evaluation.report import agreed
from lmworks.evaluation.statistics import (
    Interval,
    mean_interval,
    paired_interval,
    ratio_interval,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Course:
    """Scores of one method along the tasks, over seeds.

    Attributes:
        bits: task -> (seeds, states, rows): state 0 is before the first task.
    """

    tasks: tuple[str, ...]
    bits: Mapping[str, np.ndarray]
    num_bytes: Mapping[str, np.ndarray]
    groups: Mapping[str, np.ndarray]

    def _pooled(self, tasks: Sequence[str], values: Mapping[str, np.ndarray]) -> np.ndarray:
        """(seeds, rows of all those tasks)."""
        return np.concatenate([values[task] for task in tasks], axis=-1)

    def _at(self, task: str, state: int) -> np.ndarray:
        return self.bits[task][:, state]

    @property
    def earlier(self) -> tuple[str, ...]:
        """The tasks that others came after."""
        return self.tasks[:-1]

    def matrix(self) -> list[list[float]]:
        """Bits per byte, the mean over seeds: a row for each state, a column for each task."""
        states = range(len(self.tasks) + 1)
        return [
            [float(self._at(t, s).mean(0).sum() / self.num_bytes[t].sum()) for t in self.tasks]
            for s in states
        ]

    def forgotten(self) -> np.ndarray:
        """(seeds, rows): bits at the end less bits just after the row's task was learnt."""
        last = len(self.tasks)
        found = {
            task: self._at(task, last) - self._at(task, number + 1)
            for number, task in enumerate(self.earlier)
        }
        return self._pooled(self.earlier, found)

    def learnt(self) -> np.ndarray:
        """(seeds, rows): bits just after the row's task was learnt, all tasks."""
        found = {task: self._at(task, number + 1) for number, task in enumerate(self.tasks)}
        return self._pooled(self.tasks, found)

    def at_end(self) -> np.ndarray:
        """(seeds, rows): bits once all tasks are learnt, all tasks."""
        return self._pooled(self.tasks, {t: self._at(t, len(self.tasks)) for t in self.tasks})

    def sizes(self, tasks: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(rows,) bytes and groups; a group is one of its task."""
        groups = [np.char.add(f"{task}\0", self.groups[task].astype(str)) for task in tasks]
        return np.concatenate([self.num_bytes[task] for task in tasks]), np.concatenate(groups)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of one method, and its difference from the first method.

    Attributes:
        value: over rows, the mean of the seeds.
        by_rows, by_seeds: the difference, paired by row and by seed; None for the first method.
        verdict: what both intervals allow to say.
    """

    method: str
    value: Interval
    by_rows: Interval | None = None
    by_seeds: Interval | None = None
    verdict: str = ""


FIGURES = {
    "forgotten": "Forgotten of earlier tasks",
    "learnt": "Just after each task",
    "at_end": "After the last task",
}


def figures(courses: Mapping[str, Course], name: str) -> list[Figure]:
    """A figure (of FIGURES) of every method, in bits per byte.

    Args:
        courses: by method; the first is what the others are compared with.
    """
    first = next(iter(courses))
    found = []
    for method, course in courses.items():
        mine = getattr(course, name)()
        size, groups = course.sizes(course.earlier if name == "forgotten" else course.tasks)
        value = ratio_interval(mine.mean(0), size, groups)
        if method == first:
            found.append(Figure(method=method, value=value))
            continue
        base = getattr(courses[first], name)()
        by_rows = paired_interval(mine.mean(0), base.mean(0), size, groups)
        by_seeds = mean_interval(((mine - base).sum(1) / size.sum()).tolist())
        found.append(
            Figure(
                method=method,
                value=value,
                by_rows=by_rows,
                by_seeds=by_seeds,
                verdict=agreed(by_rows, by_seeds),
            )
        )
    return found


def markdown(courses: Mapping[str, Course]) -> str:
    """All figures and the tables of scores."""
    parts = ["In bits per byte of held-out rows, lower is better, with 95 % intervals.\n"]
    for name, title in FIGURES.items():
        lines = [
            f"## {title}\n",
            "| Method | Bits per byte | Against the first, by row | By seed | Verdict |",
            "|---|---|---|---|---|",
        ]
        for one in figures(courses, name):
            cells = [one.method, _ends(one.value), _ends(one.by_rows), _ends(one.by_seeds)]
            lines.append(f"| {' | '.join([*cells, one.verdict])} |")
        parts.append("\n".join(lines) + "\n")
    for method, course in courses.items():
        lines = [f"## {method}\n", "| After | " + " | ".join(course.tasks) + " |"]
        lines.append("|---" * (len(course.tasks) + 1) + "|")
        for state, row in zip(("nothing", *course.tasks), course.matrix()):
            lines.append(f"| {state} | " + " | ".join(f"{value:.3f}" for value in row) + " |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _ends(interval: Interval | None) -> str:
    if interval is None:
        return ""
    known = f" [{interval.low:+.4f}, {interval.high:+.4f}]" if interval.known else ""
    return f"{interval.estimate:+.4f}{known}"
