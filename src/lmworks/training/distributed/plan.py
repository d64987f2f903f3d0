"""The plan: over which processes the rows, the states, the matrices and the layers are spread.

Processes stand in a grid (pipeline, data, shard, tensor), the last running fastest, so that the
processes of one tensor group, which talk most, are neighbours. `data` x `shard` groups of rows
share each batch; within `shard` a copy's states are spread as ZeRO does it (Rajbhandari et al.
2020, arXiv 1910.02054, section 5); `tensor` cuts matrices (Shoeybi et al. 2019, arXiv 1909.08053,
section 3), `pipeline` cuts the list of layers (Huang et al. 2019, arXiv 1811.06965; Narayanan et
al. 2021, arXiv 2104.04473, section 2.2).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from lmworks.core.config import option
from lmworks.core.errors import UserError

if TYPE_CHECKING:
    from lmworks.models.config import ModelConfig

AXES = ("pipeline", "data", "shard", "tensor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How many processes do what; the product is the number of processes."""

    data: int = option(0, help="copies of the model; 0 takes what the other numbers leave")
    shard: int = option(1, help="processes over which the states of a copy are spread")
    zero: Literal[1, 2, 3] = option(
        3, help="what `shard` spreads: 1 optimizer states, 2 gradients too, 3 weights too"
    )
    tensor: int = option(1, help="processes that share each matrix of a layer")
    pipeline: int = option(1, help="processes that share the list of layers")
    schedule: Literal["1f1b", "gpipe"] = option("1f1b", help="order of a pipeline's work")
    micro_batches: int = option(0, help="parts of the rows in a pipeline; 0: as many as possible")

    @property
    def row_groups(self) -> int:
        """Into how many parts the rows of a step are split."""
        return self.data * self.shard

    @property
    def size(self) -> int:
        """Processes that the plan needs."""
        return self.data * self.shard * self.tensor * self.pipeline

    @property
    def cuts(self) -> bool:
        """Whether the plan spreads the model, so that no process has all of it."""
        return max(self.shard, self.tensor, self.pipeline) > 1

    @property
    def replicated(self) -> bool:
        """Whether every process holds and updates all of the model."""
        return self.size == self.data

    def __str__(self) -> str:
        """`data 2 x tensor 2`, what is 1 left out."""
        parts = [
            f"{axis} {getattr(self, axis)}" for axis in ("data", "shard", "tensor", "pipeline")
        ]
        used = [part for part in parts if not part.endswith(" 1")]
        zero = f" (ZeRO-{self.zero})" if self.shard > 1 else ""
        return (" x ".join(used) or "one process") + zero


def resolved(config: ParallelConfig, world_size: int) -> ParallelConfig:
    """The plan for `world_size` processes, `data` filled in.

    Raises: UserError for a plan that does not multiply to that number.
    """
    for axis in AXES:
        least = 0 if axis == "data" else 1
        if getattr(config, axis) < least:
            raise UserError(
                f"parallel.{axis} = {getattr(config, axis)}: it must be at least {least}"
            )
    others = config.shard * config.tensor * config.pipeline
    data = config.data or max(1, world_size // others)
    plan = dataclasses.replace(config, data=data)
    if plan.size != world_size:
        started = f"{world_size} process{'es were' if world_size > 1 else ' was'} started"
        raise UserError(
            f"parallel: data {data} x shard {config.shard} x tensor {config.tensor} x pipeline "
            f"{config.pipeline} = {plan.size} processes, but {started}: start {plan.size} "
            f"(--launch torchrun --nproc {plan.size}), or change the plan "
            "(--set loop.parallel.data=...)"
        )
    if plan.pipeline > 1 and plan.shard > 1 and plan.zero > 1:
        raise UserError(
            f"parallel: a pipeline goes with parallel.zero=1, not {plan.zero}: each of its parts "
            "of a batch would bring all weights together again"
        )
    return plan


def check_rows(plan: ParallelConfig, num_rows: int) -> None:
    """Raises: UserError for rows that can't be split evenly, naming numbers that can."""
    groups = plan.row_groups
    if num_rows % groups:
        below, above = num_rows // groups * groups, -(-num_rows // groups) * groups
        sizes = f"{below} or {above}" if below else f"{above}"
        raise UserError(
            f"a batch of {num_rows} rows can't be split evenly over data {plan.data} x shard "
            f"{plan.shard} = {groups} groups: take a batch size of {sizes}"
        )
    mine = num_rows // groups
    if plan.micro_batches and mine % plan.micro_batches:
        fitting = [n for n in range(1, mine + 1) if mine % n == 0]
        raise UserError(
            f"parallel.micro_batches = {plan.micro_batches} can't split the {mine} rows of a "
            f"process evenly: take one of {', '.join(map(str, fitting))}"
        )


def check_model(plan: ParallelConfig, config: ModelConfig | None) -> None:
    """Raises: UserError for a model that can't be cut in this way, naming what stands against it.

    Args:
        config: None of a model that is no `Model`: it can be copied and sharded, not cut.
    """
    if plan.tensor == 1 and plan.pipeline == 1:
        return
    if config is None or config.encoder is not None or config.inputs is not None:
        what = "this kind of model" if config is None else "a model with an encoder or other inputs"
        raise UserError(f"{what} can't be cut by tensor or pipeline: use data and shard")
    if plan.pipeline > config.num_hidden_layers:
        raise UserError(
            f"parallel.pipeline = {plan.pipeline}, but the model has {config.num_hidden_layers} "
            "layers: each stage needs one at least"
        )
    if config.relative_positions is not None:
        raise UserError(
            "relative positions belong to all layers and heads at once: a model that has them "
            "can't be cut by tensor or pipeline; use data and shard"
        )
    if plan.tensor > 1:
        _check_tensor(plan.tensor, config)


def _check_tensor(tensor: int, config: ModelConfig) -> None:
    from lmworks.models.config import AttentionConfig, LMHeadConfig, MLPConfig

    for index, layer in enumerate(config.layers):
        mixer, inner = layer.mixer, layer.feed_forward
        where = f"parallel.tensor = {tensor}: layer {index}"
        if type(mixer) is not AttentionConfig:
            raise UserError(f"{where} mixes by {mixer.kind}, only attention can be cut; use shard")
        if inner is not None and type(inner) is not MLPConfig:
            raise UserError(f"{where} has a {inner.kind}, only an mlp can be cut; use shard")
        pattern = getattr(mixer.pattern, "kind", "window")
        if mixer.alibi or pattern != "window":
            what = "alibi" if mixer.alibi else f"the pattern {pattern}"
            raise UserError(f"{where} has {what}, which knows all heads; use shard")
        if mixer.qk_norm is not None and mixer.qk_norm_over == "all":
            raise UserError(f"{where} norms queries over all heads at once; use shard")
        heads, groups = mixer.num_attention_heads, mixer.num_key_value_heads
        if heads % tensor or (groups % tensor and tensor % groups):
            fitting = [
                n
                for n in range(1, heads + 1)
                if heads % n == 0 and (groups % n == 0 or n % groups == 0)
            ]
            raise UserError(
                f"{where} has {heads} heads and {groups} key-value heads, which {tensor} processes "
                f"can't share evenly: take tensor from {', '.join(map(str, fitting))}"
            )
        if isinstance(inner, MLPConfig) and inner.intermediate_size < tensor:
            raise UserError(f"{where}: {inner.intermediate_size} inner features are too few")
    head = config.head
    if (
        not isinstance(head, LMHeadConfig)
        or head.transform
        or config.embedding_size != (config.hidden_size)
    ):
        raise UserError(
            f"parallel.tensor = {tensor}: only a plain head over the vocabulary can be cut; "
            "use shard"
        )


def layers_of_stage(num_layers: int, stages: int) -> list[range]:
    """Which layers each stage has: as even as can be, the middle ones taking what is over.

    The first stage also embeds and the last one also makes logits, so these get fewer.
    """
    least, over = divmod(num_layers, stages)
    order = sorted(range(stages), key=lambda s: (s == stages - 1, s == 0, s))
    counts = [least] * stages
    for stage in order[:over]:
        counts[stage] += 1
    starts = [sum(counts[:i]) for i in range(stages)]
    return [range(start, start + count) for start, count in zip(starts, counts, strict=True)]
