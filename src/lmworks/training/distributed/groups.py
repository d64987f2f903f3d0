"""The processes of a run: joining them, the grid they stand in, what is said between them."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from lmworks.core.errors import UserError
from lmworks.training.distributed.plan import AXES, ParallelConfig, resolved

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_TIMEOUT_S = 1800.0


def join(device: torch.device | None = None) -> None:
    """Meet the other processes that a launcher started; nothing to do where it was done before.

    RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say where (torchrun, Slurm and Kubernetes set them
    or what `launch` makes of them). A GPU talks through NCCL, small
    talk and CPUs through gloo.

    Raises: UserError when they don't all come.
    """
    if dist.is_initialized():
        return
    device = device or local_device()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    timeout_s = float(os.environ.get("LMWORKS_JOIN_TIMEOUT_S", _TIMEOUT_S))
    try:
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_s))
    except (RuntimeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        raise UserError(
            f"process {os.environ.get('RANK', '?')} of {os.environ.get('WORLD_SIZE', '?')} could "
            f"not meet the others at {where}: {reason[:160]}"
        ) from error


def local_device() -> torch.device:
    """The GPU that belongs to this process, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """Where this process stands, and whom it talks to.

    Attributes:
        rows: processes with the same part of the model and other rows.
        copy: processes that hold one copy of the model together (`data` is the same).
        down, up: the pipeline twice, so that states and gradients do not wait for each other.
        ends: first and last stage, which share a tied embedding; None elsewhere.
        control: all processes, over the CPU: flags, objects, barriers.
    """

    plan: ParallelConfig
    mesh: DeviceMesh
    place: dict[str, int]
    rows: dist.ProcessGroup
    data: dist.ProcessGroup
    tensor: dist.ProcessGroup
    copy: dist.ProcessGroup
    down: dist.ProcessGroup
    up: dist.ProcessGroup
    ends: dist.ProcessGroup | None
    control: dist.ProcessGroup

    @property
    def row_group(self) -> int:
        """Which part of the rows of a step this process computes."""
        return self.place["data"] * self.plan.shard + self.place["shard"]

    @property
    def first_stage(self) -> bool:
        return self.place["pipeline"] == 0

    @property
    def last_stage(self) -> bool:
        return self.place["pipeline"] == self.plan.pipeline - 1


def lay_grid(config: ParallelConfig, device: torch.device) -> Grid:
    """Make the groups of a plan; every process calls this with the same one.

    Raises: UserError for a plan of another size than the processes that there are.
    """
    from torch.distributed.device_mesh import init_device_mesh

    plan = resolved(config, dist.get_world_size())
    sizes = tuple(getattr(plan, axis) for axis in AXES)
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=AXES)
    grid = torch.arange(plan.size).view(sizes)
    place = dict(zip(AXES, (int(i) for i in mesh.get_coordinate() or ()), strict=True))

    def group(*along: str, backend: str | None = None) -> dist.ProcessGroup:
        """The group that this process forms with those that differ in `along` alone."""
        rest = [axis for axis in AXES if axis not in along]
        order = [AXES.index(axis) for axis in (*rest, *along)]
        lists = (
            grid.permute(order)
            .reshape(-1, int(torch.tensor([1] + [getattr(plan, axis) for axis in along]).prod()))
            .tolist()
        )
        mine = None
        for ranks in lists:  # every process has to make every group
            made = dist.new_group(ranks, backend=backend)
            if dist.get_rank() in ranks:
                mine = made
        assert mine is not None
        return mine

    ends = None
    if plan.pipeline > 1:
        pipelines = grid.permute(1, 2, 3, 0).reshape(-1, plan.pipeline).tolist()
        for ranks in pipelines:
            made = dist.new_group([ranks[0], ranks[-1]])
            if dist.get_rank() in (ranks[0], ranks[-1]):
                ends = made
    return Grid(
        plan=plan,
        mesh=mesh,
        place=place,
        rows=group("data", "shard"),
        data=group("data"),
        tensor=group("tensor"),
        copy=group("pipeline", "shard", "tensor"),
        down=group("pipeline"),
        up=group("pipeline"),
        ends=ends,
        control=control(),
    )


def gathered(value: Any, group: dist.ProcessGroup) -> list[Any]:
    """Everybody's value, for everybody."""
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def summed(values: Sequence[float], group: dist.ProcessGroup) -> list[float]:
    """Sums over the processes of a group, in double precision."""
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor, group=group)
    found: list[float] = tensor.tolist()
    return found


_control: dist.ProcessGroup | None = None


def control() -> dist.ProcessGroup:
    """All processes over the CPU, for objects and flags; they meet here if they have not yet."""
    global _control
    join()
    if _control is None:
        _control = dist.new_group(backend="gloo", timeout=datetime.timedelta(days=7))
    return _control


def exchange(value: Any) -> list[Any]:
    """See `core.processes.exchange`."""
    return gathered(value, control())
