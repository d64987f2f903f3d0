"""Gradients summed over the processes that have other rows: in buckets, while the backward runs.

A bucket is sent when the gradients of all its parameters are there; parameters are taken from the
last backwards, the order in which a backward makes them. Losses are weighted by their share of all
targets beforehand, so it is a sum and no mean. PyTorch's `DistributedDataParallel` wraps a module's
`forward`; objectives here call other methods of the model as well, and average over tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

_BUCKET_BYTES = 25 * 2**20


class GradientSum:
    """Args:
    parameters: those whose `.grad` is summed, in the order of the forward.
    group: the processes to sum over.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], group: dist.ProcessGroup) -> None:
        self._group, self._buckets = group, _buckets(parameters)
        self._bucket_of = {id(p): i for i, b in enumerate(self._buckets) for p in b}
        self._armed = False
        self._waiting: list[set[int]] = []
        self._sent: dict[int, tuple[dist.Work | None, torch.Tensor]] = {}
        self._next = 0
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._made)

    def arm(self) -> None:
        """The next backward is the last of this step: send what it finishes."""
        self._armed, self._next, self._sent = True, 0, {}
        self._waiting = [{id(p) for p in bucket} for bucket in self._buckets]

    def _made(self, parameter: torch.Tensor) -> None:
        if not self._armed:
            return
        self._waiting[self._bucket_of[id(parameter)]].discard(id(parameter))
        # In one order everywhere: a process must not send a later bucket first.
        while self._next < len(self._buckets) and not self._waiting[self._next]:
            self._send(self._next)

    def _send(self, index: int) -> None:
        bucket = self._buckets[index]
        flat = torch.cat([_gradient(p).reshape(-1) for p in bucket])
        work = dist.all_reduce(flat, group=self._group, async_op=True)
        self._sent[index], self._next = (work, flat), index + 1

    @torch.no_grad()
    def finish(self) -> None:
        """Send what is left, wait, and put the sums into `.grad`.

        A parameter that had no gradient anywhere stays without one.
        """
        if not self._armed:
            self.arm()
        while self._next < len(self._buckets):
            self._send(self._next)
        self._armed = False
        parameters = [p for bucket in self._buckets for p in bucket]
        if not parameters:
            return
        used = torch.tensor([float(p.grad is not None) for p in parameters])
        used = used.to(parameters[0].device)
        dist.all_reduce(used, group=self._group)
        found = dict(zip(map(id, parameters), used.tolist(), strict=True))
        for index, bucket in enumerate(self._buckets):
            work, flat = self._sent.pop(index)
            if work is not None:
                work.wait()
            for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket])):
                if not found[id(parameter)]:
                    continue
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                parameter.grad.copy_(part.view_as(parameter))


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    found: list[list[Any]] = []
    size = _BUCKET_BYTES
    for parameter in reversed(parameters):
        bytes_ = parameter.numel() * parameter.element_size()
        same = found and found[-1][0].dtype == parameter.dtype
        if size + bytes_ > _BUCKET_BYTES or not same:
            found.append([])
            size = 0
        found[-1].append(parameter)
        size += bytes_
    return found
