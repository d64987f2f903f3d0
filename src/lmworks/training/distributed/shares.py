"""What each process of a plan holds and sends, without any process: the plan's own cuts, on shapes.

The same functions that cut a model for training run on a skeleton without memory, once for each
place in the grid. What they leave is counted; a rehearsal holds the counts against real processes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from lmworks.models.skeleton import skeleton
from lmworks.training.distributed.optimizer import ELEMENTWISE, shadow
from lmworks.training.distributed.optimizer_state import set_parameter
from lmworks.training.distributed.pieces import Piece, owners
from lmworks.training.distributed.pipeline import cut_layers
from lmworks.training.distributed.plan import AXES, ParallelConfig, check_model, layers_of_stage
from lmworks.training.distributed.shard import rows_of_shard
from lmworks.training.distributed.tensor import cut_matrices
from lmworks.training.distributed.traffic import (
    ACTIVATIONS,
    GRADIENTS,
    OWNERS,
    PIPELINE,
    STATES,
    TIED,
)
from lmworks.training.optimizers.base import OptimizerConfig, state_bytes

if TYPE_CHECKING:
    import torch.distributed as dist

    from lmworks.models.config import ModelConfig

Place = dict[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """One process's part of a training.

    Attributes:
        place: where it stands in the grid.
        layers: which layers it has.
        pieces: what it holds of each trained parameter.
        before_shard: the same before `shard` spread their rows.
        state_bytes: of its optimizer.
        partial: parameters whose gradients are summed within the tensor group.
    """

    place: Place
    layers: range
    pieces: dict[str, Piece]
    before_shard: dict[str, Piece]
    state_bytes: int
    partial: list[str]

    @property
    def numel(self) -> int:
        """Numbers of the parameters that it holds."""
        return sum(piece.numel for piece in self.pieces.values())


def shares(config: ModelConfig, plan: ParallelConfig, optimizer: OptimizerConfig) -> list[Share]:
    """Of every process of one copy of the model (the copies are alike), by rank within it.

    Raises: UserError for a model that the plan can't cut.
    """
    check_model(plan, config)
    structure = shadow(skeleton(config))
    cuts = [
        _cut(config, plan, dict(zip(AXES, place, strict=True)))
        for place in itertools.product(
            range(plan.pipeline), range(1), range(plan.shard), range(plan.tensor)
        )
    ]
    everyone = [after for _, _, after, _ in cuts]
    whole = plan.size > plan.data and (
        optimizer.name not in ELEMENTWISE or (plan.shard > 1 and plan.zero == 1)
    )
    owner = owners(everyone) if whole else {}
    found = []
    for rank, (place, before, after, partial) in enumerate(cuts):
        seen = (
            {n: after[n].shape for n, r in owner.items() if r == rank and n in after}
            if whole
            else {n: piece.sizes for n, piece in after.items()}
        )
        found.append(
            Share(
                place=place,
                layers=layers_of_stage(config.num_hidden_layers, plan.pipeline)[place["pipeline"]],
                pieces=after,
                before_shard=before,
                state_bytes=_state_bytes(structure, seen, optimizer),
                partial=partial,
            )
        )
    return found


def _cut(
    config: ModelConfig, plan: ParallelConfig, place: Place
) -> tuple[Place, dict[str, Piece], dict[str, Piece], list[str]]:
    model = skeleton(config)
    pieces = {name: Piece.whole(p) for name, p in model.named_parameters()}
    partial: list[str] = []
    if plan.tensor > 1:
        no_group = cast("dist.ProcessGroup", None)  # nothing is computed
        partial = cut_matrices(model, pieces, no_group, place["tensor"], plan.tensor)
    if plan.pipeline > 1:
        cut_layers(model, pieces, place["pipeline"], plan.pipeline)
    after = pieces
    if plan.shard > 1 and plan.zero > 1:
        after = {n: rows_of_shard(p, place["shard"], plan.shard) for n, p in pieces.items()}
    return place, dict(pieces), after, [n for n in partial if n in pieces]


def _state_bytes(structure: nn.Module, seen: dict[str, Any], config: OptimizerConfig) -> int:
    import torch

    local = shadow(structure)
    for name, parameter in list(local.named_parameters()):
        sizes = seen.get(name)
        shape = (0,) if sizes is None else sizes
        empty = torch.empty(shape, device="meta", dtype=parameter.dtype)
        set_parameter(local, name, nn.Parameter(empty, requires_grad=sizes is not None))
    return state_bytes(local, config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """The rows of a step, as a process sees them.

    Attributes:
        rows: of one micro-batch. length: tokens of a row. micro_batches: per step.
        itemsize: bytes of a number of the states between layers, and of a weight or gradient.
        checkpointing: whether layers are computed twice.
    """

    rows: int
    length: int
    micro_batches: int
    itemsize: int = 4
    checkpointing: bool = False

    @property
    def tokens(self) -> int:
        """Of one micro-batch."""
        return self.rows * self.length


def traffic(
    config: ModelConfig,
    plan: ParallelConfig,
    everyone: list[Share],
    rank: int,
    work: Work,
    *,
    whole_updates: bool,
) -> dict[str, int]:
    """Bytes that process `rank` of a copy sends in a step, by what for; see FORMULAS."""
    me, size = everyone[rank], work.itemsize
    sent: Counter[str] = Counter()
    spread = plan.shard > 1 and plan.zero > 1
    others = plan.data if spread else plan.row_groups
    if others > 1:
        # What is summed over copies, and which parameters had a gradient at all.
        held = me.numel * size + (0 if spread else len(me.pieces) * 4)
        sent[GRADIENTS] += _sum_bytes(held, others)
    if spread:
        sent[STATES] += _shard_bytes(me, plan, work)
    if plan.tensor > 1:
        sent[ACTIVATIONS] += _tensor_bytes(config, plan, me, work)
    stage = me.place["pipeline"]
    states = work.micro_batches * work.tokens * config.hidden_size * size
    sent[PIPELINE] += states * ((stage < plan.pipeline - 1) + (stage > 0))
    if plan.pipeline > 1 and config.tie_word_embeddings and "embed_tokens.weight" in me.pieces:
        sent[TIED] += _sum_bytes(me.pieces["embed_tokens.weight"].numel * size, 2)
    if whole_updates:
        sent[OWNERS] += _owner_bytes(everyone, rank) * size
    return {purpose: count for purpose, count in sent.items() if count}


FORMULAS = {
    GRADIENTS: "2 (n-1)/n x gradients held, n = copies with other rows",
    STATES: "(s-1)/s x weights x (1 gather, 2 with ZeRO-3, per micro-batch) + gradients once",
    ACTIVATIONS: "2 (t-1)/t x tokens x hidden x (2 forward + 2 backward sums per layer) + ends",
    PIPELINE: "tokens x hidden, per boundary and direction",
    TIED: "the embedding, between first and last stage",
    OWNERS: "what others own of my gradients, and what I own of their weights",
}


def _sum_bytes(num_bytes: int, n: int) -> int:
    return 2 * (n - 1) * num_bytes // n


def _shard_bytes(me: Share, plan: ParallelConfig, work: Work) -> int:
    inside = outside = 0
    for name, piece in me.before_shard.items():
        rows = -(-piece.sizes[0] // plan.shard)
        padded = rows * math.prod(piece.sizes[1:]) * work.itemsize  # of one process
        if name.startswith("layers."):
            inside += padded
        else:
            outside += padded
    gathers = (2 if plan.zero == 3 else 1) * inside + outside
    return (plan.shard - 1) * (work.micro_batches * gathers + inside + outside)


def _tensor_bytes(config: ModelConfig, plan: ParallelConfig, me: Share, work: Work) -> int:
    n, size, parts = plan.tensor, work.itemsize, work.micro_batches
    states = work.tokens * config.hidden_size * size
    blocks = sum(1 + (config.layers[i].feed_forward is not None) for i in me.layers)
    sums = blocks * (3 if work.checkpointing else 2)
    stage, last = me.place["pipeline"], plan.pipeline - 1
    sums += (stage == 0) + (stage == last)  # the embedding; what the head asks backwards
    total = parts * sums * _sum_bytes(states, n)
    if stage == last:  # of each token the largest logit, the sum and its own, in float32
        total += parts * (_sum_bytes(4 * work.tokens, n) + _sum_bytes(8 * work.tokens, n))
    shared = [me.before_shard[name] for name in me.partial]
    if shared:
        total += _sum_bytes(sum(math.prod(p.shape) for p in shared) * size, n)
    return total


def _owner_bytes(everyone: list[Share], rank: int) -> int:
    pieces = [share.pieces for share in everyone]
    owner = owners(pieces)
    first: dict[Any, int] = {}
    for number, held in enumerate(pieces):
        for name, piece in held.items():
            if piece.numel:
                first.setdefault((name, piece.box), number)
    sent = 0
    for name, piece in pieces[rank].items():  # gradients to their owners
        if owner[name] != rank and first.get((name, piece.box)) == rank:
            sent += piece.numel
    for number, held in enumerate(pieces):  # weights from their owner
        if number != rank:
            sent += sum(p.numel for n, p in held.items() if owner[n] == rank)
    return sent
