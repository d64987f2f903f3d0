"""Scores to weights of which most are exactly zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def sparsemax(scores: torch.Tensor) -> torch.Tensor:
    """The nearest point of the simplex to each row of scores.

    Args:
        scores: (B, S).
    Returns: (B, S), none below zero, each row with the sum 1.
    Source: Martins and Astudillo 2016, arXiv 1602.02068, algorithm 1.
    """
    import torch

    ordered = scores.sort(dim=1, descending=True).values
    count = torch.arange(1, scores.shape[1] + 1, dtype=scores.dtype)
    excess = ordered.cumsum(1) - 1
    support = (count * ordered > excess).sum(1, keepdim=True)
    threshold = excess.gather(1, support - 1) / support
    return (scores - threshold).clamp(min=0)
