"""Weights set to zero: which ones, and what the others do about it.

A share of each matrix goes, or two of every four neighbours of a row (2:4, which GPUs multiply
twice as fast). Three ways to choose, all within a row of the matrix or within four of it:

- magnitude: the smallest numbers.
- wanda: the smallest products of a number with the size of what it is multiplied with.
- sparsegpt: those whose loss the row can best make up for, which it then does (`error_feedback`).

Sources: Sun et al. 2023, Wanda, arXiv 2306.11695, section 3; Frantar and Alistarh 2023, SparseGPT,
arXiv 2301.00774, section 3; Mishra et al. 2021 (2:4), arXiv 2104.08378.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from lmworks.compression.error_feedback import BLOCK, feed_back
from lmworks.core.errors import UserError, unknown_name

if TYPE_CHECKING:
    from lmworks.compression.layer_inputs import LayerInputs

METHODS = ("sparsegpt", "wanda", "magnitude")
Pattern = float | tuple[int, int]  # the share that goes, or how many of how many neighbours


def parse_pattern(text: str) -> Pattern:
    """ "0.5" as the share that goes, "2:4" as two of each four.

    Raises: UserError for anything else, or for all or nothing.
    """
    if found := re.fullmatch(r"(\d+):(\d+)", text.strip()):
        gone, of = int(found[1]), int(found[2])
        if 0 < gone < of <= 64:
            return gone, of
    else:
        try:
            share = float(text.strip().removesuffix("%")) / (100 if "%" in text else 1)
        except ValueError:
            share = 0.0
        if 0 < share < 1:
            return share
    raise UserError(f"sparsity {text!r}: give a share such as 0.5 or 50%, or N:M such as 2:4")


def check_pattern(pattern: Pattern, columns: int, name: str) -> None:
    """Raises: UserError for rows that groups of M don't divide."""
    if isinstance(pattern, tuple) and columns % pattern[1]:
        raise UserError(
            f"{name} has rows of {columns}, which groups of {pattern[1]} do not divide: "
            "give a share such as 0.5"
        )


def lowest(scores: torch.Tensor, pattern: Pattern) -> torch.Tensor:
    """(rows, n) bool: True where a row's scores are the lowest, as many as the pattern says."""
    if isinstance(pattern, tuple):
        gone, of = pattern
        groups = scores.view(len(scores), -1, of)
        order = groups.argsort(dim=-1, stable=True)[..., :gone]
        mask = torch.zeros(groups.shape, dtype=torch.bool)
        return mask.scatter_(-1, order, True).view(scores.shape)
    count = round(scores.shape[1] * pattern)
    order = scores.argsort(dim=-1, stable=True)[:, :count]
    return torch.zeros(scores.shape, dtype=torch.bool).scatter_(-1, order, True)


def sparsify_matrix(
    values: torch.Tensor, pattern: Pattern, method: str, inputs: LayerInputs | None
) -> torch.Tensor:
    """(rows, n) float32 with zeros.

    Args:
        inputs: what the matrix is multiplied with; `magnitude` needs none, `sparsegpt` the moment.
    Raises: UserError for an unknown method.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if method == "magnitude":
        return values.masked_fill(lowest(values.abs(), pattern), 0)
    assert inputs is not None
    if method == "wanda":
        size = torch.from_numpy(inputs.mean_square).sqrt()
        return values.masked_fill(lowest(values.abs() * size, pattern), 0)
    return _sparsegpt(values, pattern, inputs)


def _sparsegpt(values: torch.Tensor, pattern: Pattern, inputs: LayerInputs) -> torch.Tensor:
    of = pattern[1] if isinstance(pattern, tuple) else 1

    def choose(
        first: int, here: torch.Tensor, diagonal: torch.Tensor
    ) -> Callable[[int, torch.Tensor], torch.Tensor]:
        whole = None if of > 1 else lowest((here / diagonal).square(), pattern)
        masks: list[torch.Tensor] = []

        def column(j: int, given: torch.Tensor) -> torch.Tensor:
            if whole is not None:
                return given.masked_fill(whole[:, j], 0)
            if j % of == 0:  # on the values as they are by now
                part = slice(j, j + of)
                masks.append(lowest((here[:, part] / diagonal[part]).square(), pattern))
            return given.masked_fill(masks[-1][:, j % of], 0)

        return column

    assert inputs.moment is not None
    block = BLOCK // of * of
    return feed_back(values, inputs.moment, choose, block=block)


def sparsity_of(values: torch.Tensor) -> float:
    """The share of zeros."""
    return float((values == 0).float().mean())


def holds_pattern(values: torch.Tensor, pattern: Pattern) -> bool:
    """Whether as many are zero as the pattern says, in each group of M or in all."""
    if isinstance(pattern, tuple):
        gone, of = pattern
        zeros = (values.reshape(-1, of) == 0).sum(dim=-1)
        return bool((zeros >= gone).all())
    return sparsity_of(values) >= pattern - 0.5 / values.shape[-1]
