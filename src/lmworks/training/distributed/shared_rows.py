"""An objective that needs all rows of a step together, its rows spread over processes.

Each process makes what the model says of its rows, all are given everybody's, and each computes the
whole loss from them. Gradients come out right without a further sum: what is done with the gathered
rows is the same in all processes, so each takes the gradient of its own rows, and the gradients of
the weights are summed as for any other objective. For in-batch negatives this is the usual way to
have as many wrong answers as all processes have rows.

Source: Radford et al. 2021 (CLIP), arXiv 2103.00020, section 2.5 (similarities over all GPUs).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional as F

from lmworks.training.batches import Rows
from lmworks.training.distributed.rows import bounds


class _Gather(torch.autograd.Function):
    """Everybody's rows, one behind the other; each process takes its part of the gradient."""

    @staticmethod
    def forward(
        ctx: Any, mine: torch.Tensor, sizes: list[int], group: dist.ProcessGroup
    ) -> torch.Tensor:
        ctx.sizes, ctx.rank = sizes, dist.get_rank(group)
        spare = [0, 0] * (mine.dim() - 1) + [0, max(sizes) - len(mine)]
        padded = F.pad(mine, spare).contiguous()
        everybody = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(everybody, padded, group=group)
        return torch.cat([part[:size] for part, size in zip(everybody, sizes)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        start = sum(ctx.sizes[: ctx.rank])
        return gradients[0][start : start + ctx.sizes[ctx.rank]].contiguous(), None, None


def spread_over(group: dist.ProcessGroup) -> Callable[..., torch.Tensor]:
    """What `objectives.in_parts.rows_shared` is given: (function, batch) -> that of all rows."""

    def share(function: Callable[[Any], torch.Tensor], batch: Rows) -> torch.Tensor:
        number, count = dist.get_rank(group), dist.get_world_size(group)
        places = [bounds(batch.num_rows, count, each) for each in range(count)]
        start, stop = places[number]
        # Whoever has no row computes one all the same, since processes meet in the model too.
        mine = function(batch.rows(start, stop) if stop > start else batch.rows(0, 1))
        sizes = [end - begin for begin, end in places]
        gathered: torch.Tensor = _Gather.apply(mine[: stop - start], sizes, group)  # type: ignore[no-untyped-call]
        return gathered

    return share
