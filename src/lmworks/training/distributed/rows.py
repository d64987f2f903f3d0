"""Which rows of a step a process computes, and in which parts.

All processes know the whole batch, since it is a pure function of the step. So the order of samples
does not depend on how many there are, and the number of targets needs no asking around.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from lmworks.training.distributed.plan import ParallelConfig, check_rows

if TYPE_CHECKING:
    from lmworks.training.batches import Rows

R = TypeVar("R", bound="Rows")


def my_rows(batch: R, plan: ParallelConfig, group: int) -> R:
    """The rows of row group `group`. Raises: UserError when they can't be split evenly."""
    check_rows(plan, batch.num_rows)
    size = batch.num_rows // plan.row_groups
    return batch.rows(group * size, (group + 1) * size)


def weighted_parts(mine: R, whole: R, size: int, total: int) -> list[tuple[R, float, int]]:
    """(rows, weight, targets) of each micro-batch; the weights of all processes sum to 1.

    Every process goes through the same number of parts, since they meet in the middle of each. A
    part without a target computes a row that has one, and counts nothing.
    """
    found = []
    for start in range(0, mine.num_rows, size):
        part = mine.rows(start, min(start + size, mine.num_rows))
        targets = part.num_targets
        found.append((part if targets else _any_row(whole), targets / total, targets))
    return found


def part_size(mine: Rows, plan: ParallelConfig, micro_batch_size: int) -> int:
    """Rows of a micro-batch: what is asked, else one per pipeline part, else all."""
    if plan.pipeline > 1:
        count = plan.micro_batches or mine.num_rows
        most = mine.num_rows // count
        return min(most, micro_batch_size) if micro_batch_size else most
    return micro_batch_size or mine.num_rows


def _any_row(batch: R) -> R:
    """The first row that has a target; there is one, or the batch would have been refused."""
    for index in range(batch.num_rows):
        row = batch.rows(index, index + 1)
        if row.num_targets:
            return row
    return batch


def whole_rows(batches: Sequence[R], plan: ParallelConfig) -> list[tuple[R, bool]]:
    """Held-out batches, and whether each can be split over the row groups."""
    return [(batch, batch.num_rows % plan.row_groups == 0) for batch in batches]
