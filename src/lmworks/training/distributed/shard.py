"""States spread over processes by PyTorch's FSDP2 (`fully_shard`): ZeRO-2 and ZeRO-3.

Every layer is a unit, and what stands outside of layers another. A unit's weights are brought
together before its forward; with ZeRO-3 they are let go after it and brought together once more for
the backward, with ZeRO-2 they stay until then. Gradients are summed and spread in the backward.

Source: Zhao et al. 2023, "PyTorch FSDP", arXiv 2304.11277; Rajbhandari et al. 2020, arXiv
1910.02054.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from lmworks.training.distributed.pieces import Piece

if TYPE_CHECKING:
    from lmworks.training.distributed.groups import Grid
    from lmworks.training.objectives.base import Loss, Objective


def shard_states(model: nn.Module, grid: Grid, zero: int) -> None:
    """Spread the trained parameters of `model`, in place."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = grid.mesh["shard"]
    again = zero == 3
    units: list[Any] = [layer for layers in _layer_lists(model) for layer in layers]
    for unit in units:
        fully_shard(unit, mesh=mesh, reshard_after_forward=again)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for part in (*units, cast(Any, model)):
        part.set_gradient_divide_factor(1.0)  # losses are weighted already
        if hasattr(part, "set_force_sum_reduction_for_comms"):
            part.set_force_sum_reduction_for_comms(True)  # gloo can't scale while it sums
    setattr(model, _ENTRANCE, types.MethodType(_call, model))
    register_fsdp_forward_method(model, _ENTRANCE)


_ENTRANCE = "call_objective"


def _call(model: nn.Module, objective: Any, batch: Any, box: list[Loss]) -> tuple[Any, Any]:
    loss: Loss = objective(model, batch)
    box.append(loss)
    return loss.value, loss.value.new_zeros(()) if loss.auxiliary is None else loss.auxiliary


def entered_once(objective: Objective) -> Objective:
    """The objective, called through the sharded model as one forward of it.

    An objective calls several methods of a model. Each of them would be a forward of its own, and
    what stands outside of layers would be brought together, and its gradients summed, for each.
    """

    def call(model: Any, batch: Any) -> Loss:
        box: list[Loss] = []
        value, auxiliary = getattr(model, _ENTRANCE)(objective, batch, box)
        (loss,) = box
        auxiliary = None if loss.auxiliary is None else auxiliary
        return dataclasses.replace(loss, value=value, auxiliary=auxiliary)

    return call


def let_go(model: nn.Module) -> None:
    """Keep no whole weights after a forward that has no backward, which would let them go."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _layer_lists(model: nn.Module) -> list[nn.ModuleList]:
    found = [m for name, m in model.named_modules() if name.rpartition(".")[2] == "layers"]
    return [m for m in found if isinstance(m, nn.ModuleList)]


def local(parameter: torch.Tensor) -> torch.Tensor:
    """This process's part of a parameter, over the same memory."""
    from torch.distributed.tensor import DTensor

    data = parameter.detach()
    return data.to_local() if isinstance(data, DTensor) else data


def local_gradient(parameter: nn.Parameter) -> torch.Tensor | None:
    """This process's part of a gradient, over the same memory."""
    from torch.distributed.tensor import DTensor

    grad: Any = parameter.grad
    return grad.to_local() if isinstance(grad, DTensor) else grad


def sharded_pieces(
    held: Mapping[str, nn.Parameter], pieces: Mapping[str, Piece]
) -> dict[str, Piece]:
    """Pieces after the rows were spread: the i-th process has the i-th `torch.chunk` of them."""
    from torch.distributed.tensor import DTensor

    found = {}
    for name, piece in pieces.items():
        parameter = held[name]
        if isinstance(parameter, DTensor):
            mesh = parameter.device_mesh
            piece = rows_of_shard(piece, mesh.get_local_rank(), mesh.size())
            assert tuple(parameter.to_local().shape) == piece.sizes
        found[name] = piece
    return found


def rows_of_shard(piece: Piece, number: int, count: int) -> Piece:
    """What process `number` of `count` keeps of a piece."""
    rows = piece.sizes[0]
    chunk = -(-rows // count)
    start = min(rows, chunk * number)
    return piece.within(0, start, min(rows, start + chunk))
