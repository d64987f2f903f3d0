"""Which rows of a step a process computes, and in which parts.

All processes know the whole batch, since it is a pure function of the step. So the order of samples
does not depend on how many there are, and the number of targets needs no asking around.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from lmworks.training.distributed.plan import ParallelConfig, check_rows

if TYPE_CHECKING:
    from lmworks.training.batches import Rows

R = TypeVar("R", bound="Rows")


def my_rows(batch: R, plan: ParallelConfig, group: int) -> R:
    """The rows of row group `group`; the last batch of an epoch may leave it one less, or none.

    Raises: UserError when a pipeline can't split them evenly.
    """
    if plan.pipeline > 1:
        check_rows(plan, batch.num_rows)
    start, stop = bounds(batch.num_rows, plan.row_groups, group)
    return batch.rows(start, stop)


def bounds(count: int, groups: int, group: int) -> tuple[int, int]:
    """Where the rows of a group begin and end: as even as can be, the first ones having more."""
    least, over = divmod(count, groups)
    start = group * least + min(group, over)
    return start, start + least + (group < over)


def weighted_parts(
    mine: R, whole: R, size: int, total: int, most: int = 0
) -> list[tuple[R, float, int]]:
    """(rows, weight, targets) of each micro-batch; the weights of all processes sum to 1.

    Every process goes through the same number of parts, since they meet in the middle of each. A
    part without a target computes a row that has one, and counts nothing.

    Args:
        most: rows of the process that has the most; this one's by default.
    """
    found = []
    for start in range(0, most or mine.num_rows, size):
        part = mine.rows(start, min(start + size, mine.num_rows))
        targets = part.num_targets if start < mine.num_rows else 0
        found.append((part if targets else _any_row(whole), targets / total, targets))
    return found


def part_size(rows: int, plan: ParallelConfig, micro_batch_size: int) -> int:
    """Rows of a micro-batch: what is asked, else one per pipeline part, else all.

    Args:
        rows: of the process that has the most.
    """
    if plan.pipeline > 1:
        count = plan.micro_batches or rows
        most = rows // count
        return min(most, micro_batch_size) if micro_batch_size else most
    return micro_batch_size or rows


def _any_row(batch: R) -> R:
    """The first row that has a target; there is one, or the batch would have been refused."""
    for index in range(batch.num_rows):
        row = batch.rows(index, index + 1)
        if row.num_targets:
            return row
    return batch
