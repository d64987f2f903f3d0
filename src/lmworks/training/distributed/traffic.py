"""What a process sends: counted from the collectives that run, and told from a plan beforehand.

Counted is what the usual algorithms send per process: of a sum over n processes twice (n-1)/n of
its size, of a gather or scatter once, of an exchange what is not for oneself (Patarasuk & Yuan
2009, "Bandwidth optimal all-reduce algorithms"). Small talk (flags, objects) is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from lmworks.training.distributed.groups import Grid

# What a group of processes is there for.
GRADIENTS, STATES, ACTIVATIONS, PIPELINE, TIED, OWNERS = (
    "gradients",
    "sharded states",
    "tensor activations",
    "pipeline",
    "tied embedding",
    "optimizer exchange",
)


class Traffic(TorchDispatchMode):
    """Counts bytes that this process sends, by what for, while it is entered."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()
        groups = {
            grid.control: "",
            grid.rows: GRADIENTS,
            grid.data: GRADIENTS,
            grid.copy: OWNERS,
            grid.tensor: ACTIVATIONS,
            grid.down: PIPELINE,
            grid.up: PIPELINE,
            grid.mesh.get_group("shard"): STATES,
        }
        if grid.ends is not None:
            groups[grid.ends] = TIED
        self._purpose = {group.group_name: purpose for group, purpose in groups.items()}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "c10d":
            self._count(func.__name__.partition(".")[0], args)
        return result

    def _count(self, name: str, args: Any) -> None:
        group = next(filter(None, map(_as_group, args)), None)
        if group is None or not self._purpose.get(group.group_name):
            return
        first = next(_tensors(args), None)
        if first is None or not first.is_floating_point():
            return
        self.sent[self._purpose[group.group_name]] += _bytes_sent(name, args, group)


def _bytes_sent(name: str, args: Any, group: dist.ProcessGroup) -> int:
    """Of one collective, by one process."""
    n = group.size()
    if name == "allreduce_":
        return sum(2 * (n - 1) * t.nbytes // n for t in _tensors(args[0]))
    if name in ("_allgather_base_", "allgather_"):
        return sum(t.nbytes for t in _tensors(args[1])) * (n - 1)
    if name == "_reduce_scatter_base_":
        return sum((n - 1) * t.nbytes // n for t in _tensors(args[1]))
    if name == "alltoall_base_":
        splits = list(args[4])
        own = splits[group.rank()]
        return (sum(splits) - own) * args[1].element_size()
    if name == "send":
        return sum(t.nbytes for t in _tensors(args[0]))
    return 0


def _as_group(value: Any) -> dist.ProcessGroup | None:
    if isinstance(value, torch.ScriptObject):
        try:
            return dist.ProcessGroup.unbox(value)
        except RuntimeError:  # a ReduceOp
            return None
    return value if isinstance(value, dist.ProcessGroup) else None


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)
