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
_LARGEST_DAMPING = 1e4  # past that, inputs say nothing


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
    upper = torch.from_numpy(inverse_factor(damped(moment, damping)))
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


def damped(moment: np.ndarray, damping: float) -> np.ndarray:
    """The moment with `damping` of its mean on the diagonal, divided by that mean."""
    mean = float(np.diag(moment).mean()) or 1.0
    hessian = moment / np.float32(mean)
    hessian[np.diag_indices(len(hessian))] += np.float32(damping)
    return np.ascontiguousarray(hessian, dtype=np.float32)


def inverse_factor(hessian: np.ndarray) -> np.ndarray:
    """U with U^T U = H^-1, upper triangular, float32; more is added to a H that is not definite."""
    wide = torch.from_numpy(hessian).double()
    more = 1e-6
    while True:
        lower, failed = torch.linalg.cholesky_ex(wide)
        if not failed or more > _LARGEST_DAMPING:
            break
        wide = wide + more * torch.eye(len(wide), dtype=wide.dtype)
        more *= 10
    factor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return np.ascontiguousarray(factor.float().numpy())
