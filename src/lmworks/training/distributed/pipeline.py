"""Pipeline parallelism: each process has some of the layers; rows go through in micro-batches.

Two orders of work. GPipe (Huang et al. 2019, arXiv 1811.06965) does all forwards, then all
backwards. 1F1B (Narayanan et al. 2021, arXiv 2104.04473, section 2.2.1) begins a micro-batch's
backward as soon as it can, so that a stage holds at most as many micro-batches as
stages follow it. The bubble is the same, (stages - 1) / micro-batches of the work.

`torch.distributed.pipelining` does the same orders, but its stages fix the shapes of what they send
at the first batch (2.13: the second length of conversations ends in gloo's "received data size
doesn't match") and take a loss of tensors, where ours is an objective that calls a model. Every
stage calls the objective: those before the last leave it when it has asked for the hidden states.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.distributed as dist
from torch import nn

from lmworks.core.errors import UserError
from lmworks.training.distributed.plan import layers_of_stage
from lmworks.training.strategy import Compute, forward

if TYPE_CHECKING:
    from lmworks.models.model import Model
    from lmworks.training.batches import Rows
    from lmworks.training.distributed.groups import Grid
    from lmworks.training.distributed.pieces import Piece
    from lmworks.training.objectives.base import Loss, Objective

Task = tuple[Literal["forward", "backward"], int]


def tasks(schedule: str, stage: int, stages: int, micro_batches: int) -> Iterator[Task]:
    """What a stage does, in order."""
    ahead = micro_batches
    if schedule == "1f1b":
        ahead = min(stages - stage - 1, micro_batches)
    for index in range(ahead):
        yield "forward", index
    for index in range(micro_batches - ahead):
        yield "forward", ahead + index
        yield "backward", index
    for index in range(micro_batches - ahead, micro_batches):
        yield "backward", index


def cut_layers(model: Model, pieces: dict[str, Piece], stage: int, stages: int) -> dict[str, str]:
    """Leave this stage's layers in `model`, in place.

    Args:
        pieces: of all trained parameters by whole name; those of other stages go.
    Returns: this stage's name -> whole name, of all parameters and buffers that stay.
    """
    first, last = stage == 0, stage == stages - 1
    mine = layers_of_stage(model.config.num_hidden_layers, stages)[stage]
    tied = model.config.tie_word_embeddings and last
    model.layers = nn.ModuleList(model.layers[index] for index in mine)
    if not first:
        for name in ("embed_tokens", "embed_types", "embed_positions", "embed_norm", "embed_proj"):
            if hasattr(model, name) and not (tied and name == "embed_tokens"):
                setattr(model, name, None)
        rows, embed = _Received(), _as_it_is
        model._rows = rows  # type: ignore[method-assign, assignment]
        model._embed = embed  # type: ignore[method-assign, assignment]
    if not last:
        model.norm = model.head = model.lm_head = None
        states = model.hidden_states

        def leave(*args: Any, **inputs: Any) -> torch.Tensor:
            raise _Done(states(*args, **inputs))

        model.hidden_states = leave  # type: ignore[method-assign]
    names = {}
    for name in model.state_dict():
        head, _, rest = name.partition(".")
        whole = name
        if head == "layers":
            index, _, inner = rest.partition(".")
            whole = f"layers.{mine[int(index)]}.{inner}"
        names[name] = whole
    for gone in set(pieces) - set(names.values()):
        del pieces[gone]
    return names


class _Received:
    """In place of the embedding: the states that came from the stage before."""

    states: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor) -> torch.Tensor:
        if self.states is None:
            raise UserError(
                "this objective asks the model for hidden states twice a batch: a pipeline can't "
                "carry that; use data, shard or tensor"
            )
        states, self.states = self.states, None
        return states


def _as_it_is(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return x


class _Done(Exception):
    """Leaves the objective with what this stage made."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self.states = states


@dataclasses.dataclass
class _Part:
    """A micro-batch between its forward and its backward."""

    received: torch.Tensor | None
    made: torch.Tensor
    auxiliary: torch.Tensor | None


class Pipeline:
    """Runs micro-batches through this process's stage."""

    def __init__(self, model: Model, grid: Grid) -> None:
        self._model, self._grid = model, grid
        self._stage, self._stages = grid.place["pipeline"], grid.plan.pipeline
        self._hidden = model.config.hidden_size

    def run(
        self,
        objective: Objective,
        parts: Sequence[tuple[Rows, float]],
        compute: Compute,
        *,
        backward: bool,
    ) -> list[Loss]:
        """The last stage's losses of all micro-batches; empty on the others.

        Args:
            parts: micro-batches, and what the loss of each is multiplied by before its backward.
        """
        schedule = self._grid.plan.schedule if backward else "gpipe"
        waiting: dict[int, _Part] = {}
        losses: list[Loss] = []
        sent: list[tuple[dist.Work | None, torch.Tensor]] = []  # kept until the other side has it
        for kind, index in tasks(schedule, self._stage, self._stages, len(parts)):
            batch, weight = parts[index]
            if kind == "forward":
                part, loss = self._forward(objective, batch, compute, backward)
                if loss is not None:
                    losses.append(loss)
                else:
                    sent.append(self._send(part.made.detach(), self._stage + 1, self._grid.down))
                if backward:
                    waiting[index] = part
            elif backward:
                sent += self._backward(waiting.pop(index), weight)
        for work, _ in sent:
            if work is not None:
                work.wait()
        return losses

    def _forward(
        self, objective: Objective, batch: Rows, compute: Compute, backward: bool
    ) -> tuple[_Part, Loss | None]:
        received = None
        if not self._grid.first_stage:
            received = self._receive(self._shape(batch), self._stage - 1, self._grid.down)
            received.requires_grad_(backward)
            cast(Any, self._model._rows).states = received
        loss = None
        with torch.set_grad_enabled(backward):
            try:
                loss = forward(self._model, objective, batch, compute)
                made = loss.value
                auxiliary = loss.auxiliary
            except _Done as done:
                made, auxiliary = done.states, self._model.auxiliary_loss()
        return _Part(received, made, auxiliary), loss

    def _backward(self, part: _Part, weight: float) -> list[tuple[dist.Work | None, torch.Tensor]]:
        if self._grid.last_stage:
            grad = torch.full_like(part.made, weight)
        else:
            grad = self._receive(tuple(part.made.shape), self._stage + 1, self._grid.up, part.made)
        ends, grads = [part.made], [grad]
        if part.auxiliary is not None and part.auxiliary.requires_grad:
            ends.append(part.auxiliary)
            grads.append(torch.full_like(part.auxiliary, weight))
        torch.autograd.backward(ends, grads)
        if part.received is None:
            return []
        assert part.received.grad is not None
        return [self._send(part.received.grad, self._stage - 1, self._grid.up)]

    def _shape(self, batch: Rows) -> tuple[int, ...]:
        ids = getattr(batch, "input_ids", None)
        if ids is None:
            raise UserError(
                f"a pipeline carries batches of input_ids, not {type(batch).__name__}: use data, "
                "shard or tensor"
            )
        return (*ids.shape, self._hidden)

    def _send(
        self, tensor: torch.Tensor, to: int, group: dist.ProcessGroup
    ) -> tuple[dist.Work | None, torch.Tensor]:
        tensor = tensor.contiguous()
        return dist.isend(tensor, group=group, group_dst=to), tensor

    def _receive(
        self,
        shape: tuple[int, ...],
        source: int,
        group: dist.ProcessGroup,
        like: torch.Tensor | None = None,
    ) -> torch.Tensor:
        like = next(self._model.parameters()) if like is None else like
        tensor = torch.empty(shape, dtype=like.dtype, device=like.device)
        dist.recv(tensor, group=group, group_src=source)
        return tensor
