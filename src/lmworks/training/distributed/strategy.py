"""The strategy of many processes: any plan, with the losses and states of one process.

What the trainer gets back for the model is one that holds this process's part of it. The model that
it was given is emptied meanwhile, so that nothing is held twice, and filled in the main process at
the end.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import nn

from lmworks.core import processes
from lmworks.core.errors import UserError
from lmworks.training.distributed.groups import Grid, join, lay_grid, local_device, summed
from lmworks.training.distributed.optimizer import ELEMENTWISE, SplitOptimizer, shadow
from lmworks.training.distributed.optimizer_state import from_native, native_state
from lmworks.training.distributed.pieces import Layout, Piece
from lmworks.training.distributed.pipeline import Pipeline, cut_layers
from lmworks.training.distributed.plan import ParallelConfig, check_model
from lmworks.training.distributed.reduce import GradientSum
from lmworks.training.distributed.rows import bounds, my_rows, part_size, weighted_parts
from lmworks.training.distributed.shard import (
    entered_once,
    let_go,
    local,
    local_gradient,
    shard_states,
    sharded_pieces,
)
from lmworks.training.distributed.shared_rows import spread_over
from lmworks.training.distributed.tensor import cut_matrices, sum_partial
from lmworks.training.objectives.in_parts import rows_shared
from lmworks.training.optimizers.base import OptimizerConfig, build_optimizer
from lmworks.training.strategy import Compute, Figures, forward, load_trained_state, trained_state

if TYPE_CHECKING:
    from lmworks.models.model import Model
    from lmworks.training.batches import Rows
    from lmworks.training.objectives.base import Loss, Objective
    from lmworks.training.trainer_config import LoopConfig


class Distributed:
    """A `Strategy` over the processes of a plan; join them first (`groups.join`).

    Args:
        config: the plan; every process gives the same.
        device: where this process computes; its GPU if it has one.
    """

    def __init__(self, config: ParallelConfig, device: torch.device | None = None) -> None:
        join(device)
        self.device = device or local_device()
        self.grid: Grid = lay_grid(config, self.device)
        self.plan = self.grid.plan
        self.is_main = dist.get_rank() == 0
        self._names: dict[str, str] = {}  # of what this process holds -> whole names
        self._partial: list[str] = []
        self._pipeline: Pipeline | None = None
        self._sum: GradientSum | None = None
        self._optimizer: Any = None

    def any_process(self, flag: bool) -> bool:
        """See `Strategy`."""
        return summed([float(flag)], self.grid.control)[0] > 0

    def prepare(self, model: nn.Module, config: LoopConfig) -> nn.Module:
        """See `Strategy`. Raises: UserError for a model or setting that the plan can't carry."""
        check_model(self.plan, getattr(model, "config", None) if _is_decoder(model) else None)
        self._structure = shadow(model)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        pieces = {name: Piece.whole(p) for name, p in trained.items()}
        names = {name: name for name in model.state_dict()}
        worker = model
        if not self.plan.replicated:
            _refuse_whole_settings(config, self.plan)
            worker = _taken_over(model)
            if self.plan.tensor > 1:
                self._partial = cut_matrices(
                    cast("Model", worker),
                    pieces,
                    self.grid.tensor,
                    self.grid.place["tensor"],
                    self.plan.tensor,
                )
            if self.plan.pipeline > 1:
                stage = self.grid.place["pipeline"]
                names = cut_layers(cast("Model", worker), pieces, stage, self.plan.pipeline)
                self._partial = [n for n in self._partial if n in pieces]
                self._pipeline = Pipeline(cast("Model", worker), self.grid)
            if self._shards:
                shard_states(worker, self.grid, self.plan.zero)
        self._names = names
        self._held = {names[n]: p for n, p in worker.named_parameters() if p.requires_grad}
        if self._shards:
            pieces = sharded_pieces(self._held, pieces)
        self.layout = Layout(pieces, self.grid.copy)
        group = self.grid.data if self._shards else self.grid.rows
        if dist.get_world_size(group) > 1 and not self._shards:
            self._sum = GradientSum(list(self._held.values()), group)
        return worker

    @property
    def _shards(self) -> bool:
        """Whether FSDP spreads gradients, and perhaps weights."""
        return self.plan.shard > 1 and self.plan.zero > 1

    @property
    def _parts(self) -> dict[str, torch.Tensor]:
        """What this process holds of each trained parameter, plain tensors."""
        return {name: local(p) for name, p in self._held.items()}

    def optimizer(self, model: nn.Module, config: OptimizerConfig) -> Any:
        """See `Strategy`."""
        if self.plan.replicated:
            self._optimizer = build_optimizer(model, config)
        else:
            by_number = config.name in ELEMENTWISE
            spreads = self.plan.shard > 1 and self.plan.zero == 1
            self._optimizer = SplitOptimizer(
                self._structure,
                self._parts,
                self._gradients_of_parts,
                self.layout,
                config,
                whole=spreads or not by_number,
            )
        return self._optimizer

    def _gradients_of_parts(self) -> dict[str, torch.Tensor | None]:
        return {name: local_gradient(p) for name, p in self._held.items()}

    def gradients(
        self, model: nn.Module, objective: Objective, batch: Rows, compute: Compute
    ) -> Figures:
        """See `Strategy`. Raises: UserError for rows that a pipeline can't split, or an objective
        that needs them together in one."""
        total = batch.num_targets
        if not total:
            raise UserError("a batch has no target at all: nothing could be learned from it")
        if getattr(objective, "whole_batch", False):
            return self._gradients_of_whole(model, objective, batch, compute)
        mine = my_rows(batch, self.plan, self.grid.row_group)
        most = bounds(batch.num_rows, self.plan.row_groups, 0)[1]
        size = part_size(most, self.plan, compute.micro_batch_size)
        parts = weighted_parts(mine, batch, size, total, most)
        if self._pipeline is not None:
            weighted = [(part, weight * compute.scale) for part, weight, _ in parts]
            losses = self._pipeline.run(objective, weighted, compute, backward=True)
        else:
            losses = self._accumulate(model, objective, parts, compute)
        self._reduce(compute.scale)
        found = list(zip((targets for *_, targets in parts), losses))
        return self._figures(found, total)

    def _gradients_of_whole(
        self, model: nn.Module, objective: Objective, batch: Rows, compute: Compute
    ) -> Figures:
        """Every process makes its rows, and the loss out of everybody's."""
        if self._pipeline is not None:
            raise UserError(
                "this objective compares all rows of a step with each other, and a pipeline has "
                "them one after the other: take parallel.data, shard or tensor"
            )
        total = batch.num_targets
        speaks = self.grid.row_group == 0
        with rows_shared(spread_over(self.grid.rows)):
            parts = [(batch, 1.0, total if speaks else 0)]
            losses = self._accumulate(model, objective, parts, compute)
        self._reduce(compute.scale)
        return self._figures([(parts[0][2], losses[0])], total)

    def _accumulate(
        self,
        model: nn.Module,
        objective: Objective,
        parts: Sequence[tuple[Rows, float, int]],
        compute: Compute,
    ) -> list[Loss]:
        losses = []
        objective = entered_once(objective) if self._shards else objective
        for index, (part, weight, _) in enumerate(parts):
            last = index == len(parts) - 1
            if self._shards:
                model.set_requires_gradient_sync(last)  # type: ignore[operator]
            elif last and self._sum is not None:
                self._sum.arm()
            loss = forward(model, objective, part, compute)
            whole = loss.value if loss.auxiliary is None else loss.value + loss.auxiliary
            (whole * (weight * compute.scale)).backward()
            losses.append(loss)
        return losses

    @torch.no_grad()
    def _reduce(self, scale: float) -> None:
        """Sum gradients over all processes that hold the same parameter."""
        if self._sum is not None:
            self._sum.finish()
        if self._shards and self.plan.data > 1:
            for parameter in self._held.values():
                grad = local_gradient(parameter)
                if grad is not None:
                    dist.all_reduce(grad, group=self.grid.data)
        found = {n: local_gradient(self._held[n]) for n in self._partial}
        sum_partial(
            {n: g for n, g in found.items() if g is not None}, self.layout.mine, self.grid.tensor
        )
        tied = self._tied()
        if self.grid.ends is not None and tied is not None:
            if tied.grad is None:
                tied.grad = torch.zeros_like(tied)
            dist.all_reduce(tied.grad, group=self.grid.ends)
        if scale != 1:
            for parameter in self._held.values():
                if parameter.grad is not None:
                    parameter.grad.div_(scale)

    def _tied(self) -> nn.Parameter | None:
        """The embedding that the first and the last stage both have."""
        config = getattr(self._structure, "config", None)
        if not getattr(config, "tie_word_embeddings", False):
            return None
        return self._held.get("embed_tokens.weight")

    def _figures(self, found: Sequence[tuple[int, Loss]], total: int) -> Figures:
        """Means over all processes' targets; each row group speaks once."""
        names = sorted({name for _, loss in found for name in loss.metrics})
        if self.plan.pipeline > 1:  # only the last stage has seen them
            box: list[Any] = [names]
            last = dist.get_world_size() - 1
            dist.broadcast_object_list(box, src=last, group=self.grid.control)
            names = box[0]
        sums = [sum(loss.value.item() * count for count, loss in found if count)]
        for name in names:
            sums.append(sum(loss.metrics.get(name, 0.0) * count for count, loss in found))
        speaks = self.grid.place["tensor"] == 0 and self.grid.last_stage
        sums = summed([value if speaks else 0.0 for value in sums], self.grid.control)
        loss, *metrics = [value / total for value in sums]
        return Figures(loss=loss, num_targets=total, metrics=dict(zip(names, metrics)))

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float) -> float:
        """See `Strategy`; each number counts once, however many processes hold it."""
        gradients = {
            name: grad for name, p in self._held.items() if (grad := local_gradient(p)) is not None
        }
        mine = sum(
            float(grad.double().square().sum())
            for name, grad in gradients.items()
            if self.layout.speaks(name)
        )
        norm = math.sqrt(summed([mine], self.grid.control)[0] / self.plan.data)
        factor = max_norm / (norm + 1e-6)
        if factor < 1:
            for grad in gradients.values():
                grad.mul_(factor)
        return norm

    def evaluate(
        self, model: nn.Module, objective: Objective, batches: Sequence[Rows], compute: Compute
    ) -> Figures:
        """See `Strategy`. Batches that can't be split are computed by all and counted once."""
        found: list[tuple[int, Loss]] = []
        total = 0
        whole = getattr(objective, "whole_batch", False)
        objective = entered_once(objective) if self._shards else objective
        with torch.no_grad():
            for batch in batches:
                total += batch.num_targets
                splits = not whole and batch.num_rows % self.plan.row_groups == 0
                counts = splits or self.grid.row_group == 0
                mine = my_rows(batch, self.plan, self.grid.row_group) if splits else batch
                size = compute.micro_batch_size or mine.num_rows
                parts = weighted_parts(mine, batch, size, 1)
                if self._pipeline is not None:
                    weighted = [(part, weight) for part, weight, _ in parts]
                    losses = self._pipeline.run(objective, weighted, compute, backward=False)
                else:
                    losses = [forward(model, objective, part, compute) for part, *_ in parts]
                targets = [count if counts else 0 for *_, count in parts]
                found += zip(targets, losses)
        if self._shards:
            let_go(model)
        return self._figures(found, total)

    def model_state(self, model: nn.Module) -> dict[str, Any]:
        """See `Strategy`: whole in the main process, empty in the others."""
        if self.plan.replicated:
            return trained_state(model) if self.is_main else {}
        state = {n: v for n, v in self._state_of(model).items() if n not in self._held}
        return self.layout.whole({**state, **self._parts}) or {} if self._saves else {}

    @property
    def _saves(self) -> bool:
        """Whether this process belongs to the copy that is saved."""
        return self.grid.place["data"] == 0

    def _state_of(self, model: nn.Module) -> dict[str, Any]:
        return {self._names.get(n, n): value for n, value in trained_state(model).items()}

    @torch.no_grad()
    def load_model_state(self, model: nn.Module, state: dict[str, Any]) -> None:
        """See `Strategy`; every process gives the whole state."""
        if self.plan.replicated:
            load_trained_state(model, state)
            return
        for name, part in self._parts.items():
            if name not in state:
                raise KeyError(f"the checkpoint lacks {name}")
            part.copy_(self.layout.cut(name, state[name]))
        for name, buffer in model.named_buffers():
            whole = self._names.get(name, name)
            if whole in state:
                buffer.copy_(state[whole])
        if isinstance(self._optimizer, SplitOptimizer):
            self._optimizer.refresh()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """See `Strategy`: as one process would save it, in the main one; empty in the others."""
        if not isinstance(optimizer, SplitOptimizer):
            return optimizer.state_dict() if self.is_main else {}
        if not self._saves:
            return {}
        whole = self.layout.whole(optimizer.named_state())
        if whole is None:
            return {}
        return native_state(self._structure, optimizer.config, whole)

    def load_optimizer_state(self, optimizer: Any, state: dict[str, Any]) -> None:
        """See `Strategy`; every process gives the whole state."""
        if not isinstance(optimizer, SplitOptimizer):
            optimizer.load_state_dict(state)
            return
        whole = from_native(self._structure, optimizer.config, state)
        if not optimizer.works_whole:
            whole = {name: self.layout.cut(name, value) for name, value in whole.items()}
        optimizer.load_named_state(whole)

    def finish(self, model: nn.Module, worker: nn.Module) -> None:
        """See `Strategy`: `model` is whole again in the main process.

        Raises: Leave in the others, inside of a stage.
        """
        if worker is not model:
            state = self.model_state(worker)
            if self.is_main:
                self._fill(model, state)
        processes.leave_if_following()

    def _fill(self, model: nn.Module, state: dict[str, Any]) -> None:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data = state[name].to(parameter.dtype)
        for name, buffer in model.named_buffers():
            if name in state:
                buffer.copy_(state[name])


def _is_decoder(model: nn.Module) -> bool:
    from lmworks.models.model import Model

    return isinstance(model, Model)


def _taken_over(model: nn.Module) -> nn.Module:
    """A module over the same memory; the given one keeps no trained weight."""
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.data) if parameter.requires_grad else parameter
    worker = copy.deepcopy(model, memo)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.new_empty(0)
    return worker


def _refuse_whole_settings(config: LoopConfig, plan: ParallelConfig) -> None:
    """Raises: UserError for settings that need the whole model in each process."""
    for name in ("ema", "sample_every"):
        if getattr(config, name):
            raise UserError(
                f"loop.{name} needs the whole model in each process, and {plan} cuts it: set it to "
                "0, or take a plan of parallel.data alone"
            )
