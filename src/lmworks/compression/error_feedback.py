"""Columns of a matrix changed one after another, each making up for what those before it missed.

A row t is to become a row q of a poorer kind (codes, zeros) so that (q - t) H (q - t)^T is small, H
being the second moment of the inputs. Column by column, what was missed is made up for by the
columns that follow, over the inverse of H. All rows go together; the columns of a block are
followed up at once, those after it with one product.

Sources: Frantar et al. 2022, GPTQ, arXiv 2210.17323, algorithm 1; Frantar and Alistarh 2023,
SparseGPT, arXiv 2301.00774, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

# (first column, values (rows, block) as they are by now, U's diagonal there) -> for each column:
# a function of its values (rows,) that gives what they become.
Chooser = Callable[[int, torch.Tensor, torch.Tensor], Callable[[int, torch.Tensor], torch.Tensor]]
BLOCK = 128
DAMPING = 0.01  # of the moment, as a share of its mean


def feed_back(
    values: torch.Tensor, moment: np.ndarray, choose: Chooser, *, block: int = BLOCK,
    damping: float = DAMPING,
) -> torch.Tensor:  # fmt: skip
    """What `values` (rows, n) become, float32.

    Args:
        moment: (n, n) of the inputs. Inputs that were never anything but 0 leave their columns to
            themselves.
        choose: called once per block of columns; see Chooser.
    """
    left = values.detach().clone().float()
    rows, n = left.shape
    upper = inverse_factor(moment, damping)
    made = torch.empty_like(left)
    for first in range(0, n, block):
        last = min(first + block, n)
        here, factor = left[:, first:last], upper[first:last, first:last]
        diagonal = factor.diagonal()
        chosen = choose(first, here, diagonal)
        missed = torch.empty(rows, last - first)
        for j in range(last - first):
            column = here[:, j].clone()
            made[:, first + j] = new = chosen(j, column)
            off = (column - new) / diagonal[j]
            here[:, j:].addr_(off, factor[j, j:], alpha=-1)
            missed[:, j] = off
        left[:, last:].addmm_(missed, upper[first:last, last:], alpha=-1)
    return made


def inverse_factor(moment: np.ndarray, damping: float = DAMPING) -> torch.Tensor:
    """U, upper triangular, with U^T U the inverse of the damped moment; float32 (n, n)."""
    h = torch.from_numpy(moment).double()
    mean = float(h.diagonal().mean()) or 1.0
    h = h / mean + damping * torch.eye(len(h), dtype=torch.float64)
    lower = torch.linalg.cholesky(h)
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True).float()
