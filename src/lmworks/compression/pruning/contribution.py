"""What an input of a matrix adds to its outputs, and how the others take over when it goes.

Wx is a sum over the columns of W, each times its input. A column's part in it is the mean square
|W_j|^2 E[x_j^2], that of several columns together tr(W_g E[x_g x_g^T] W_g^T). When columns go, the
ones that stay are fitted anew so that the outputs on the calibration text come nearest to what they
were: W' = W M[:, kept] (M[kept, kept] + ridge)^-1, M being E[x x^T].

Source: the norm times the activation as a score: Sun et al. 2023 (Wanda), arXiv 2306.11695, eq. 1;
    the fit: Hassibi & Stork 1992 (Optimal Brain Surgeon) for many weights at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_RIDGE = 1e-2  # of the mean square; thousands of tokens say little about the rarest directions


def channel_contributions(weight: torch.Tensor, mean_square: torch.Tensor) -> torch.Tensor:
    """(out, n) and (n,) -> (n,): the mean square that each input adds to all outputs."""
    return weight.square().sum(dim=0) * mean_square


def group_contributions(weight: torch.Tensor, moment: torch.Tensor, size: int) -> torch.Tensor:
    """(out, n) and (n, n) -> (n / size,): the same of `size` neighbours, such as a head."""
    columns = weight.split(size, dim=1)
    return torch.stack(
        [
            ((w @ moment[start : start + size, start : start + size]) * w).sum()
            for start, w in zip(range(0, weight.shape[1], size), columns, strict=True)
        ]
    )


def refitted(
    weight: torch.Tensor, moment: torch.Tensor, kept: Sequence[int] | torch.Tensor
) -> torch.Tensor:
    """(out, n) -> (out, len(kept)): columns that give on `kept` nearest what all gave on all."""
    index = torch.as_tensor(kept)
    inner = moment[index][:, index].double()
    ridge = _RIDGE * inner.diagonal().mean().clamp(min=1e-12)
    inner.diagonal().add_(ridge)
    # The ridge pulls to the old columns and not to zero: a direction unseen stays as it was.
    old = weight[:, index].double()
    wanted = weight.double() @ moment[:, index].double() + ridge * old
    fitted = torch.linalg.solve(inner, wanted.T).T
    return fitted.to(weight.dtype)


def largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """(count,) indices of the largest, in their order; of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values
