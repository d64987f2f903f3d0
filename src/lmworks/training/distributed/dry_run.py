"""Stage `dry_run`: a plan rehearsed on this machine, and a forecast for the one it is meant for.

The plan's own processes train a narrow model of the same layers over gloo: their losses are held
against those of one process, and what they hold and send against what the plan's formulas say. Then
the same formulas are taken at full size.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.files import write_json, write_text
from lmworks.core.stages import Run, stage
from lmworks.training.distributed.plan import ParallelConfig, check_rows, resolved
from lmworks.training.pretrain import Shape
from lmworks.training.trainer_config import LoopConfig

if TYPE_CHECKING:
    from lmworks.models.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetConfig:
    """Figures of the target that are not those of its preset; 0 keeps the preset's."""

    devices_per_node: int = option(0, help="devices that share fast wires")
    memory_gib: float = option(0.0, help="of each device")
    bfloat16_tflops: float = option(0.0, help="peak of dense products, of each device")
    float32_tflops: float = option(0.0, help="the same in float32")
    within_node_gb_s: float = option(0.0, help="what a device sends within a node, GB/s")
    between_nodes_gb_s: float = option(0.0, help="what a device sends to other nodes, GB/s")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DryRunConfig:
    """Rehearse a parallel plan here; forecast memory and time of a step where it is meant to run.

    Examples:
        lmworks train dry-run --depth 24 --context-length 2048 --batch-size 64 --devices 8 \\
            --set loop.parallel.tensor=2 --set loop.parallel.shard=4
        lmworks train dry-run --model smollm2-135m --batch-size 32 --target 4xrtx4090
        lmworks train dry-run --model config.json --context-length 4096 --batch-size 128 \\
            --devices 16 --set loop.parallel.pipeline=2 --set loop.precision=bfloat16
    """

    model: str = option("", role=REFERENCE, help="a model or config.json with the sizes")
    depth: int = option(12, help="layers, unless a model is given; width is 64 x depth")
    layers: str = option("attention", help="pattern of layers, unless a model is given")
    vocab_size: int = option(32000, help="tokens, unless a model is given")
    shape: Shape = option(Shape(), help="sizes that override the dial", flag=False)
    context_length: int = option(1024, help="tokens of a row")
    batch_size: int = option(32, help="rows of a step, of all devices together")
    devices: int = option(8, help="devices of the target that the plan is for")
    target: str = option("8xh100", help="8xh100, 8xh200, 8xa100, 8xl40s or 4xrtx4090")
    figures: TargetConfig = option(TargetConfig(), help="other figures of the target", flag=False)
    efficiency: float = option(0.4, help="share of the peak that products reach")
    max_processes: int = option(8, help="processes to rehearse with; more are told in copies")
    loop: LoopConfig = option(LoopConfig(), help="the plan, precision, optimizer", flag=False)


@stage("dry_run", makes="report")
def dry_run(config: DryRunConfig, run: Run) -> dict[str, Any]:
    """Rehearse and forecast; see DryRunConfig."""
    from lmworks.training.distributed.dry_run_report import as_text, findings
    from lmworks.training.distributed.narrow import head_size

    model = model_of(config, run)
    head_size(model)  # refuses early what can't be narrowed
    plan = resolved(config.loop.parallel, config.devices)
    check_rows(plan, config.batch_size)
    small = rehearsed_plan(plan, config.max_processes)
    found = findings(config, model, plan, small, lambda spec: rehearse(spec, small, run))
    write_json(run.folder / "report.json", found)
    write_text(run.folder / "report.md", as_text(found))
    return {"summary": found["summary"], **found["metrics"]}


def model_of(config: DryRunConfig, run: Run) -> ModelConfig:
    """The sizes that are asked about. Raises: UserError for a config that is no decoder's."""
    from lmworks.models.config import LMHeadConfig, ModelConfig
    from lmworks.models.config.patterns import decoder_config

    if config.model:
        found = _read_config(run.inputs["model"])
        if not isinstance(found, ModelConfig) or not isinstance(found.head, LMHeadConfig):
            raise UserError(f"{config.model} is no model that continues text")
        return found
    sizes = config.shape.sizes(config.depth, config.context_length)
    return decoder_config(
        config.layers, depth=config.depth, vocab_size=config.vocab_size, sizes=sizes
    )


def _read_config(path: Path) -> Any:
    from lmworks.core.files import read_json
    from lmworks.models.architectures.base import architecture
    from lmworks.models.load import open_weights

    if path.is_file() and path.suffix == ".json":
        values = read_json(path, "model config")
        if not isinstance(values, dict) or "model_type" not in values:
            raise UserError(f"{path} names no model_type: give the config.json of a model")
        return architecture(str(values["model_type"])).layout("hf").read_config(values)
    return open_weights(str(path)).config


def rehearsed_plan(plan: ParallelConfig, most: int) -> ParallelConfig:
    """The plan with fewer copies, shards and stages where it has too many; `tensor` stays.

    Raises: UserError when even that is too many.
    """
    small = plan
    for axis, least in (("data", 2), ("shard", 2), ("data", 1), ("pipeline", 2)):
        if small.size > most and getattr(small, axis) > least:
            small = dataclasses.replace(small, **{axis: least})  # type: ignore[arg-type]
    if small.size > most:
        raise UserError(
            f"{plan} can't be rehearsed with {most} processes: it takes {small.size} "
            f"(--max-processes {small.size}, a few hundred MB each)"
        )
    return small


def rehearse(spec: str, plan: ParallelConfig, run: Run) -> tuple[Any, Any]:
    """Findings of the plan's processes, and of one process alone; see `rehearsal`."""
    from lmworks.training.distributed.launch import LaunchConfig, start_here

    path, alone = run.work / "plan.json", run.work / "alone.json"
    write_text(path, spec)
    values = json.loads(spec)
    values["loop"]["parallel"] = {}
    write_text(alone, json.dumps(values))
    module = "lmworks.training.distributed.rehearsal"
    place = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    environment = {name: value for name, value in os.environ.items() if name not in place}
    # The rehearsal is of processes, not of this machine's devices.
    environment |= {"CUDA_VISIBLE_DEVICES": ""}
    one = subprocess.run(
        [sys.executable, "-m", module, str(alone)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if one.returncode:
        raise UserError(f"the rehearsal in one process failed: {one.stdout.strip()[-300:]}")
    if plan.size == 1:
        path.with_suffix(".found.json").write_text(alone.with_suffix(".found.json").read_text())
    else:
        status = start_here([str(path)], LaunchConfig(nproc=plan.size), module=module, cpu=True)
        if status:
            raise UserError(f"the rehearsal of {plan} failed with status {status}")
    return (
        json.loads(path.with_suffix(".found.json").read_text()),
        json.loads(alone.with_suffix(".found.json").read_text())[0],
    )
