"""Memory and time of a step on a target machine, out of what a rehearsal found and a plan's shares.

Every figure is a formula that stands beside it. Weights, gradients, optimizer states and traffic
are exact counts; activations are measured per token at narrow widths and lie on a line in the
width; times take the target's peak rates and a stated efficiency, so they are a guess of size.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError, unknown_name
from lmworks.core.files import read_json
from lmworks.models.compute import compute
from lmworks.training.distributed.traffic import (
    ACTIVATIONS,
    GRADIENTS,
    OWNERS,
    PIPELINE,
    STATES,
    TIED,
)

if TYPE_CHECKING:
    from lmworks.models.config import ModelConfig
    from lmworks.training.distributed.plan import ParallelConfig
    from lmworks.training.distributed.shares import Share, Work

GIB = 2**30
RESERVE = (1.0, 0.05)  # GiB of a GPU's context and libraries; share lost between blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One device of the target, and the wires around it; see targets.json for the presets."""

    devices_per_node: int
    memory_gib: float
    bfloat16_tflops: float
    float32_tflops: float
    within_node_gb_s: float
    between_nodes_gb_s: float


def target_of(name: str, changes: dict[str, float]) -> Target:
    """A preset with some figures changed. Raises: UserError for an unknown one."""
    from pathlib import Path

    presets = read_json(Path(__file__).with_name("targets.json"))
    if name not in presets:
        raise unknown_name("target", name, presets)
    names = [field.name for field in dataclasses.fields(Target)]
    values = {key: presets[name][key] for key in names}
    values |= {key: value for key, value in changes.items() if value}
    for key, value in values.items():
        if value <= 0:
            raise UserError(f"target: {key} = {value}: it must be above 0")
    return Target(**values)


@dataclasses.dataclass(frozen=True)
class Line:
    """Bytes per token as `fixed + slope * head_dim`."""

    fixed: float
    slope: float

    def at(self, head_dim: float) -> float:
        return self.fixed + self.slope * head_dim

    @classmethod
    def through(cls, points: Sequence[tuple[int, float]]) -> Line:
        (x0, y0), (x1, y1) = points
        slope = (y1 - y0) / (x1 - x0)
        return cls(y0 - slope * x0, slope)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes per token that a process keeps for the backward.

    Attributes:
        layers: of each layer of the model. first, last: outside of layers, on the first and the
            last stage (both, where there is one).
        error: largest relative difference between the lines and a third measurement.
    """

    layers: list[float]
    first: float
    last: float
    error: float


def activations_of(
    measured: list[list[dict[str, Any]]], kinds: list[list[int]], pick: list[int], head_dim: int
) -> Activations:
    """Lines through the first two measurements of each process, checked with the third.

    Args:
        measured: of each process of one copy with tensor 0, by stage: three measurements.
        kinds: of each stage, which kind each of its layers is.
        pick: of the whole model, which kind each layer is.
    """
    by_kind: dict[int, Line] = {}
    outside: list[Line] = []
    error = 0.0

    def line(values: list[tuple[int, int, float]]) -> Line:
        nonlocal error
        points = [(width, size / tokens) for width, tokens, size in values]
        found = Line.through(points[:2])
        width, tokens, size = values[2]
        if size:
            error = max(error, abs(found.at(width) * tokens / size - 1))
        return found

    for stage, runs in enumerate(measured):
        for index, kind in enumerate(kinds[stage]):
            if kind not in by_kind:
                by_kind[kind] = line(
                    [(r["head_dim"], r["tokens"], r["layers"][index]) for r in runs]
                )
        outside.append(line([(r["head_dim"], r["tokens"], r["outside"]) for r in runs]))
    return Activations(
        layers=[by_kind[kind].at(head_dim) for kind in pick],
        first=outside[0].at(head_dim),
        last=outside[-1].at(head_dim),
        error=error,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What a forecast is made for."""

    config: ModelConfig
    plan: ParallelConfig
    work: Work
    target: Target
    precision: str
    whole_updates: bool
    efficiency: float

    @property
    def in_lower(self) -> bool:
        return self.precision != "float32"


def memory(share: Share, setting: Setting, kept: Activations) -> dict[str, float]:
    """Bytes of one process at the fullest moment of a step, by what for; see MEMORY_FORMULAS.

    That is either when the loss of the last micro-batch turns into gradients, with all that was
    kept for the backward, or when the backward has ended, with all gradients on their way.
    """
    plan, work = setting.plan, setting.work
    before = {name: piece.numel * 4 for name, piece in share.before_shard.items()}
    spread = plan.shard > 1 and plan.zero > 1
    always = {"weights": 4.0 * share.numel, "optimizer": float(share.state_bytes)}
    owned = 0.0
    if setting.whole_updates:
        parts = plan.shard if spread else plan.shard * plan.tensor
        owned = sum(before.values()) / max(1, parts)
        always["whole tensors of the optimizer"] = owned
    if spread:
        always["brought together"] = _brought_together(before, plan.zero)
    gradients = 4.0 * share.numel
    at_loss = {**always, "activations": _kept_bytes(share, setting, kept)}
    if work.micro_batches > 1:
        at_loss["gradients"] = gradients
    if share.place["pipeline"] == plan.pipeline - 1:
        vocabulary = setting.config.vocab_size / plan.tensor
        at_loss["logits' gradients"] = 8.0 * work.tokens * vocabulary
    if setting.in_lower:
        at_loss["copies in lower precision"] = sum(
            piece.numel * 2.0 for piece in share.before_shard.values() if len(piece.shape) > 1
        )
    at_end = {**always, "gradients": gradients}
    if not spread and plan.row_groups > 1:
        at_end["buckets"] = gradients
    if setting.whole_updates:
        at_end["whole tensors of the optimizer"] = 2 * owned + gradients
    found = max((at_loss, at_end), key=lambda parts: sum(parts.values()))
    found["reserve"] = RESERVE[0] * GIB + RESERVE[1] * sum(found.values())
    return found


def _kept_bytes(share: Share, setting: Setting, kept: Activations) -> float:
    """What is kept for the backward of all micro-batches that are under way."""
    plan, work = setting.plan, setting.work
    stage, stages = share.place["pipeline"], plan.pipeline
    in_flight = 1
    if stages > 1:
        behind = stages - stage if plan.schedule == "1f1b" else work.micro_batches
        in_flight = min(behind, work.micro_batches)
    layers = [kept.layers[i] for i in share.layers]
    if work.checkpointing:
        per_token = len(layers) * setting.config.hidden_size * 4.0 * in_flight + max(layers)
    else:
        per_token = sum(layers) * in_flight
    if stage == 0:
        per_token += kept.first * in_flight
    if stages > 1 and stage == stages - 1:
        per_token += kept.last
    return per_token * work.tokens


MEMORY_FORMULAS = {
    "weights": "4 B x numbers held",
    "gradients": "4 B x numbers held, where they are there at that moment",
    "optimizer": "what the optimizer keeps for them, from its own count",
    "activations": "bytes per token, measured, x tokens of a micro-batch x those in flight "
    "(stages behind this one, with 1F1B)",
    "logits' gradients": "8 B x tokens x vocabulary / tensor: of the loss and of the softmax",
    "copies in lower precision": "2 B x matrices that are computed with (autocast keeps them)",
    "brought together": "ZeRO-3: two layers' weights, one's gradients, what is outside; "
    "ZeRO-2: all",
    "buckets": "4 B x gradients that are under way to be summed",
    "whole tensors of the optimizer": "4 B x numbers owned; when they travel 8 B, and what is sent",
    "reserve": f"{RESERVE[0]:g} GiB for context and libraries + {RESERVE[1]:.0%} lost between "
    "blocks",
}


def _brought_together(before: dict[str, int], zero: int) -> float:
    if zero == 2:
        return float(sum(before.values()))
    layers: dict[str, int] = {}
    outside = 0
    for name, size in before.items():
        if name.startswith("layers."):
            number = name.split(".")[1]
            layers[number] = layers.get(number, 0) + size
        else:
            outside += size
    return 3.0 * max(layers.values(), default=0) + outside


def seconds(share: Share, setting: Setting, sent: dict[str, int]) -> dict[str, float]:
    """Seconds of a step, by what for; see TIME_FORMULAS."""
    plan, work, target = setting.plan, setting.work, setting.target
    rate = target.bfloat16_tflops if setting.in_lower else target.float32_tflops
    cost = compute(setting.config, work.length)
    passes = 4 if work.checkpointing else 3
    tokens = work.tokens * work.micro_batches
    flops = passes * cost.forward_flops * tokens / (plan.tensor * plan.pipeline)
    busy = flops / (rate * 1e12 * setting.efficiency)
    found = {"compute": busy}
    if plan.pipeline > 1:
        found["bubble"] = busy * (plan.pipeline - 1) / work.micro_batches
    inner = {"tensor": plan.tensor, "shard": plan.tensor * plan.shard}
    reach = {
        ACTIVATIONS: inner["tensor"],
        STATES: inner["shard"],
        GRADIENTS: plan.tensor * plan.row_groups,
        PIPELINE: plan.size,
        TIED: plan.size,
        OWNERS: inner["shard"] * plan.pipeline,
    }
    for purpose, num_bytes in sent.items():
        within = reach[purpose] <= target.devices_per_node
        wire = target.within_node_gb_s if within else target.between_nodes_gb_s
        found[purpose] = num_bytes / (wire * 1e9)
    hidden = min(found.get(GRADIENTS, 0.0) + found.get(STATES, 0.0), 2 / 3 * busy)
    if hidden:
        found["hidden behind the backward"] = -hidden
    return found


TIME_FORMULAS = {
    "compute": "passes x forward operations x tokens / (tensor x pipeline) / (peak x efficiency)",
    "bubble": "compute x (stages - 1) / micro-batches",
    "traffic": "bytes sent / bandwidth: within a node where the group fits into one, else between",
    "hidden behind the backward": "of gradients and sharded states, at most two thirds of compute",
}


def advice(setting: Setting, parts: dict[str, float]) -> list[str]:
    """What to change when it does not fit, the largest part first."""
    plan, work = setting.plan, setting.work
    order = sorted(parts, key=lambda name: -parts[name])
    found: list[str] = []
    for name in order[:4]:
        if name in ("activations", "logits' gradients"):
            if not work.checkpointing and name == "activations":
                found.append("--set loop.activation_checkpointing=true")
            if work.rows > 1:
                found.append(f"--set loop.micro_batch_size={max(1, work.rows // 2)}")
        elif name in ("weights", "gradients", "optimizer", "buckets"):
            if plan.shard == 1 and plan.data > 1:
                found.append(f"--set loop.parallel.shard={plan.data} --set loop.parallel.data=1")
            elif plan.shard > 1 and plan.zero < 3 and plan.pipeline == 1:
                found.append("--set loop.parallel.zero=3")
            elif name == "optimizer":
                found.append("--set loop.optimizer.name=adamw_8bit")
        elif name == "brought together" and plan.zero == 2:
            found.append("--set loop.parallel.zero=3")
        elif name in ("copies in lower precision", "brought together"):
            found.append(f"--set loop.parallel.tensor={plan.tensor * 2}")
    return list(dict.fromkeys(found)) or [f"--set loop.parallel.tensor={plan.tensor * 2}"]


def gib(num_bytes: float) -> str:
    """`3.21 GiB`, or smaller units below a tenth."""
    for unit, size in (("GiB", GIB), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(num_bytes) >= size / 10:
            return f"{num_bytes / size:.2f} {unit}"
    return f"{math.ceil(num_bytes)} B"
