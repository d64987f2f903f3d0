"""Which rows make up a batch: rows of like length together, in an order that only the seed decides.

Padding is work for nothing, so rows are sorted by length within pools of many batches. Batch number
`step` is a pure function of (seed, step); nothing is kept between steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

POOL_BATCHES = 16  # rows are sorted by length within pools of this many batches


class RowOrder:
    """Step -> row numbers; every row once per epoch.

    Args:
        lengths: (N,) tokens of each row.
        fixed: batches keep their rows in all epochs, and only the order of the batches changes; a
            row that would be left over joins the batch before it. An objective needs that which
            pairs the rows of a batch with each other and knows those pairs from before.
    """

    def __init__(
        self, lengths: Sequence[int], *, batch_size: int, seed: int, fixed: bool = False
    ) -> None:
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._batch_size, self._seed, self._fixed = batch_size, seed, fixed
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])

    @property
    def batches_per_epoch(self) -> int:
        """Batches that hold every row once; the last may be short."""
        return -(-len(self._lengths) // self._batch_size) - self._lone

    @property
    def _lone(self) -> bool:
        """Whether one row would be left over that has to have company."""
        count = len(self._lengths)
        return self._fixed and count > self._batch_size > 1 and count % self._batch_size == 1

    def __call__(self, step: int) -> np.ndarray:
        """Row numbers of batch `step`, counted from 0, through all epochs."""
        epoch, within = divmod(step, self.batches_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self.epoch(epoch))
        return self._epoch[1][within]

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """All batches of an epoch, in order."""
        random = np.random.default_rng([self._seed, 0 if self._fixed else epoch])
        order = random.permutation(len(self._lengths))
        pool = self._batch_size * POOL_BATCHES
        batches: list[np.ndarray] = []
        for start in range(0, len(order), pool):
            rows = order[start : start + pool]
            rows = rows[np.argsort(self._lengths[rows], kind="stable")]
            batches += np.split(rows, range(self._batch_size, len(rows), self._batch_size))
        if self._lone:
            last = batches.pop()
            batches[-1] = np.concatenate([batches[-1], last])
        if self._fixed:
            random = np.random.default_rng([self._seed, epoch, 1])
        return [batches[i] for i in random.permutation(len(batches))]
