"""How far two tensors of one operation are apart, and where most."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

# Sums of the same numbers in another order: what float32 leaves open after one layer.
NOISE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float64: 2e-5}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two tensors (1, T, F) held against each other.

    Attributes:
        largest: of the absolute differences.
        relative: |a - b| / |a| of the worst position, so that a fault at one position shows.
        cosine: of the two as one long vector.
        position, feature: where the largest absolute difference is.
        values: the two values there.
        problem: why they can't be held against each other, or "".
    """

    largest: float = 0.0
    relative: float = 0.0
    cosine: float = 1.0
    position: int = 0
    feature: int = 0
    values: tuple[float, float] = (0.0, 0.0)
    problem: str = ""


def difference(a: torch.Tensor, b: torch.Tensor) -> Difference:
    """Hold b against a, both (1, T, F); heads that one of them repeats are repeated in the other.

    Tensors of different shapes, or NaN in different places, are infinitely far apart, with the
    reason.
    """
    a, b = same_heads(a, b)
    if a.shape != b.shape:
        shapes = f"{tuple(a.shape[1:])} against {tuple(b.shape[1:])}"
        return Difference(largest=math.inf, relative=math.inf, cosine=0.0, problem=shapes)
    a, b = a.detach().double(), b.detach().double()
    holes = a.isnan(), b.isnan()
    if not torch.equal(*holes):
        counts = [int(hole.sum()) for hole in holes]
        problem = f"{counts[0]} NaN against {counts[1]}"
        return Difference(largest=math.inf, relative=math.inf, cosine=0.0, problem=problem)
    a, b = a.masked_fill(holes[0], 0), b.masked_fill(holes[1], 0)
    apart = (a - b).abs()
    apart[(a == b)] = 0  # infinities of one sign
    norms = a.norm(dim=-1)
    floor = (norms.mean() * 0.1).clamp(min=1e-30)
    relative = float((apart.norm(dim=-1) / norms.clamp(min=floor)).max())
    where = int(apart.argmax())
    position, feature = divmod(where, a.shape[-1])
    position %= a.shape[1]
    both = (a.norm() * b.norm()).clamp(min=1e-300)
    return Difference(
        largest=float(apart.max()),
        relative=relative,
        cosine=float((a * b).sum() / both),
        position=position,
        feature=feature,
        values=(float(a[0, position, feature]), float(b[0, position, feature])),
    )


def same_heads(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as they are; a (1, T, K, D) beside (1, T, N, D) with its heads repeated.

    Operations by heads are kept as (1, T, heads, D) and come out as (1, T, heads * D).
    """
    if a.dim() == b.dim() == 4 and a.shape[-1] == b.shape[-1]:
        a, b = _repeated(a, b.shape[2]), _repeated(b, a.shape[2])
    return a.flatten(2), b.flatten(2)


def _repeated(heads: torch.Tensor, count: int) -> torch.Tensor:
    times = count // heads.shape[2] if count % heads.shape[2] == 0 else 1
    return heads.repeat_interleave(times, dim=2) if times > 1 else heads
