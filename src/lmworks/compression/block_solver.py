"""Rows of quantised blocks whose products come as near to wanted ones as codes and scales allow.

A row t of float weights is to become a row q of blocks so that (q - t) H (q - t)^T is small, where
H is the second moment of the inputs that the row is multiplied with: what the layer puts out is to
stay right, not the weights. Three kinds of steps:

1. Error feedback: column by column the nearest code is taken, and what it missed is made up for by
   the columns that come after, over the inverse of H (Frantar et al. 2022, GPTQ, arXiv 2210.17323).
   Columns with large inputs come first, while there are most left to make up for them.
2. Single codes: each moves to where the error is least given all others (coordinate descent;
   Behdin et al. 2023, QuantEase, arXiv 2309.01885).
3. Scales and shifts: the best float16 for a block's d and m, the best whole number for a group's.

Steps 2 and 3 go over the row block by block, and again; none makes the error larger. Within a block
they are loops of `block_kernels`; what a block's change means for the slopes of all others is one
matrix product for all rows, which is what makes it fast.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from lmworks.compression.block_rows import BlockRows
from lmworks.compression.error_feedback import damped, inverse_factor

SWEEPS = 8
_ROWS_AT_ONCE = 4096
_FEEDBACK_COLUMNS = 64  # between two matrix products


def solve(
    blocks: BlockRows,
    target: np.ndarray,
    moment: np.ndarray,
    *,
    damping: float,
    feedback: bool = True,
    sweeps: int = SWEEPS,
) -> np.ndarray:
    """Change `blocks` in place so that they come near to `target`.

    Args:
        blocks: where to start: its scales, and without feedback its codes.
        target: (rows, n) float32. moment: (n, n) float32, of the inputs.
        damping: added to the diagonal of the moment, as a share of its mean: how much the weights
            themselves count beside the outputs.
        feedback: begin with step 1. sweeps: how often steps 2 and 3 go over a row.
    Returns: (rows,) float64: the error that is left, damping included, in units of the mean
        square of an input.
    """
    hessian, order, factor = _prepared(moment, damping, feedback)
    errors = np.empty(len(target))
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(target), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            part = blocks.rows(rows)
            wanted = np.ascontiguousarray(target[rows], dtype=np.float32)
            work = _Work(part, wanted, hessian, pool, threads)
            if factor is not None:
                work.feed_back(factor, order)
            errors[rows] = work.descend(sweeps)
    return errors


_latest: tuple[Any, ...] = (None, 0.0, False)


def _prepared(
    moment: np.ndarray, damping: float, feedback: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Second moments as the steps want them; the latest are kept, since matrices share inputs."""
    global _latest
    kept = _latest
    if kept[0] is moment and kept[1] == damping and kept[2] >= feedback:
        return kept[3], kept[4], kept[5] if feedback else None
    hessian = damped(moment, damping)
    order = np.argsort(-np.diag(hessian), kind="stable")
    factor = inverse_factor(hessian[order][:, order]) if feedback else None
    _latest = (moment, damping, feedback, hessian, order, factor)
    return hessian, order, factor


class _Work:
    """Some rows on their way."""

    def __init__(
        self,
        blocks: BlockRows,
        target: np.ndarray,
        hessian: np.ndarray,
        pool: ThreadPoolExecutor,
        threads: int,
    ) -> None:
        self.blocks, self.target, self.hessian = blocks, target, hessian
        self.ends, self.levels = blocks.limits.astype(np.float32), blocks.levels
        self._pool = pool
        bounds = [len(target) * i // threads for i in range(threads + 1)]
        self._parts = [(a, b) for a, b in itertools.pairwise(bounds) if a < b]

    def _each(self, kernel: Callable[..., None], *arguments: Any) -> None:
        work = [self._pool.submit(kernel, *arguments, *part) for part in self._parts]
        for part in work:
            part.result()

    def feed_back(self, factor: np.ndarray, order: np.ndarray) -> None:
        """Step 1, in the given order of columns."""
        from lmworks.compression.block_kernels import feed_back

        blocks = self.blocks
        steps, shifts = (np.ascontiguousarray(a[:, order]) for a in blocks.grid())
        left = np.ascontiguousarray(self.target[:, order])
        codes = np.ascontiguousarray(blocks.codes[:, order])
        count = left.shape[1]
        behind = torch.from_numpy(left)
        for first in range(0, count, _FEEDBACK_COLUMNS):
            end = min(first + _FEEDBACK_COLUMNS, count)
            corner = np.ascontiguousarray(factor[first:end, first:end])
            missed = np.empty((len(left), end - first), dtype=np.float32)
            self._each(
                feed_back, left, corner, steps, shifts, codes, missed, self.ends, self.levels, first
            )  # fmt: skip
            if end < count:
                beside = torch.from_numpy(factor[first:end, end:])
                behind[:, end:].addmm_(torch.from_numpy(missed), beside, alpha=-1)
        blocks.codes[:, order] = codes

    def descend(self, sweeps: int) -> np.ndarray:
        """Steps 2 and 3. Returns: the error of each row."""
        from lmworks.compression.block_kernels import improve

        blocks, hessian = self.blocks, torch.from_numpy(self.hessian)
        off = blocks.values() - self.target
        slope = torch.from_numpy(off) @ hessian
        width = off.shape[1] // blocks.d.shape[1]
        moved = np.empty((len(off), width), dtype=np.float32)
        for _ in range(sweeps):
            for block in range(blocks.d.shape[1]):
                here = slice(block * width, (block + 1) * width)
                corner = np.ascontiguousarray(self.hessian[here, here])
                kept = slope[:, here].clone()
                self._each(
                    improve, off, slope.numpy(), corner, blocks.codes, blocks.d, blocks.m,
                    blocks.scales, blocks.offsets, moved, self.ends, self.levels, block,
                )  # fmt: skip
                slope[:, here] = kept  # the product below has it too
                slope.addmm_(torch.from_numpy(moved), hessian[here])
        errors: np.ndarray = np.einsum("ij,ij->i", off, slope.numpy(), dtype=np.float64)
        return errors
