"""The loss of a head whose vocabulary is cut over processes, without bringing the logits together.

Each process has the logits of its part. What all need of them are three numbers per token: the
largest, the sum of exponentials, and the label's own. Only these travel, and the widest tensor of a
step is as narrow as its part.

Source: Shoeybi et al. 2019, arXiv 1909.08053, section 3 (the fused parallel cross-entropy).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, labels: torch.Tensor, start: int, group: dist.ProcessGroup
    ) -> torch.Tensor:
        """(N, part) logits, (N,) labels of the whole vocabulary -> () mean cross-entropy."""
        largest = logits.max(dim=1).values
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        shifted = logits - largest[:, None]
        place = labels - start
        mine = (place >= 0) & (place < logits.shape[1])
        place = place.clamp(0, logits.shape[1] - 1)
        own = shifted.gather(1, place[:, None])[:, 0] * mine
        shares = shifted.exp_()
        both = torch.stack([shares.sum(dim=1), own])
        dist.all_reduce(both, group=group)
        total, own = both
        ctx.save_for_backward(shares.div_(total[:, None]), place, mine)
        return (total.log() - own).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        shares, place, mine = ctx.saved_tensors
        scale = gradients[0] / len(shares)
        grad = shares * scale
        grad[torch.arange(len(place), device=place.device), place] -= mine * scale
        return grad, None, None, None


def cut_loss(
    logits: Callable[[torch.Tensor], torch.Tensor], start: int, group: dist.ProcessGroup
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """What `objectives.vocabulary_loss` asks a model that is cut.

    Args:
        logits: (N, H) -> (N, part), whose gradients are summed over the processes of `group`.
        start: the first id of this process's part.
    """

    def loss(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        part = logits(hidden)
        wide = part if part.dtype == torch.float64 else part.float()
        found: torch.Tensor = _Loss.apply(wide, labels, start, group)  # type: ignore[no-untyped-call]
        return found

    return loss


class Join(torch.autograd.Function):
    """Parts of the last dimension, side by side; each process takes its part of the gradient.

    What follows is computed alike in all processes, so the gradients need no sum.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, sizes: list[int], group: dist.ProcessGroup
    ) -> torch.Tensor:
        ctx.sizes, ctx.rank = sizes, dist.get_rank(group)
        missing = max(sizes) - x.shape[-1]
        padded = F.pad(x, (0, missing)) if missing else x.contiguous()
        everybody = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(everybody, padded, group=group)
        return torch.cat([part[..., :size] for part, size in zip(everybody, sizes)], dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        start = sum(ctx.sizes[: ctx.rank])
        return gradients[0][..., start : start + ctx.sizes[ctx.rank]].contiguous(), None, None
