"""A dry run's findings as numbers, and as a page of Markdown."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lmworks.core.config import to_mapping
from lmworks.training.distributed.forecast import (
    GIB,
    MEMORY_FORMULAS,
    TIME_FORMULAS,
    Activations,
    Setting,
    activations_of,
    advice,
    gib,
    memory,
    seconds,
    target_of,
)
from lmworks.training.distributed.narrow import head_size, layers_kept, narrowed
from lmworks.training.distributed.optimizer import ELEMENTWISE
from lmworks.training.distributed.plan import AXES, ParallelConfig, layers_of_stage
from lmworks.training.distributed.rehearsal import MEASURED, Spec
from lmworks.training.distributed.shares import FORMULAS, Share, Work, shares, traffic

if TYPE_CHECKING:
    from lmworks.models.config import ModelConfig
    from lmworks.training.distributed.dry_run import DryRunConfig

_MICRO_BATCHES = 4  # rehearsed at most


def findings(
    config: DryRunConfig,
    model: ModelConfig,
    plan: ParallelConfig,
    small: ParallelConfig,
    rehearse: Callable[[str], tuple[Any, Any]],
) -> dict[str, Any]:
    """Everything that the report says.

    Args:
        plan, small: the plan that is asked about, and as it is rehearsed.
        rehearse: a rehearsal's spec -> findings of all its processes, and of one alone.
    """
    work = _work(config, plan)
    kept = layers_kept(model, 2 * small.pipeline)
    rehearsed = dataclasses.replace(model, layers=tuple(kept))
    # Measured without recomputation: what a layer keeps is needed either way.
    loop = dataclasses.replace(config.loop, parallel=small, activation_checkpointing=False)
    tried = min(work.micro_batches, _MICRO_BATCHES)
    found, alone = rehearse(_spec(rehearsed, loop, tried * small.row_groups))
    off = [abs(a - b) for a, b in zip(found[0]["losses"], alone["losses"], strict=True)]
    setting = Setting(
        config=model,
        plan=plan,
        work=work,
        target=target_of(config.target, to_mapping(config.figures)),
        precision=config.loop.precision,
        whole_updates=_whole_updates(config, plan),
        efficiency=config.efficiency,
    )
    measured = _activations(model, kept, small, found)
    everyone = shares(model, plan, config.loop.optimizer)
    fullest, parts = max(
        ((share, memory(share, setting, measured)) for share in everyone),
        key=lambda pair: sum(pair[1].values()),
    )
    times, sent = _slowest(setting, everyone)
    total, second = sum(parts.values()), sum(times.values())
    fits = total <= setting.target.memory_gib * GIB
    tokens = config.batch_size * config.context_length
    flops = sum(s for name, s in times.items() if name == "compute")
    summary = (
        f"{plan}: losses within {max(off):.1e} of one process; {gib(total)} of "
        f"{setting.target.memory_gib:g} GiB: {'fits' if fits else 'does not fit'}; about "
        f"{second:.3g} s per step, {tokens / second:,.0f} tokens/s"
    )
    return {
        "summary": summary,
        "metrics": {
            "loss_difference": max(off),
            "fits": fits,
            "memory": {name: gib(size) for name, size in parts.items()} | {"total": gib(total)},
            "seconds": {name: round(value, 5) for name, value in times.items()}
            | {"step": round(second, 5)},
            "sent_per_step": {name: gib(size) for name, size in sent.items()},
            "counts_equal": all(row["equal"] for row in _counts(config, rehearsed, small, found)),
            "activation_error": round(measured.error, 6),
            **({} if fits else {"change": "; ".join(advice(setting, parts))}),
        },
        "plan": to_mapping(plan),
        "rehearsed": to_mapping(small),
        "losses": {"plan": found[0]["losses"], "one_process": alone["losses"]},
        "counts": _counts(config, rehearsed, small, found),
        "memory_bytes": parts,
        "fullest": fullest.place,
        "seconds": times,
        "share_of_peak": flops * config.efficiency / second,
        "sent_bytes": sent,
        "processes": [
            {"place": s.place, "layers": [s.layers.start, s.layers.stop], "parameters": s.numel}
            for s in everyone
        ],
        "formulas": {"memory": MEMORY_FORMULAS, "time": TIME_FORMULAS | FORMULAS},
    }


def _spec(model: ModelConfig, loop: Any, rows: int) -> str:
    from lmworks.models.architectures.own import config_to_hf

    spec = Spec(model=json.dumps(config_to_hf(model)), loop=loop, rows=rows)
    return json.dumps(to_mapping(spec))


def _work(config: DryRunConfig, plan: ParallelConfig) -> Work:
    mine = config.batch_size // plan.row_groups
    size = config.loop.micro_batch_size or mine
    if plan.pipeline > 1:
        size = min(size, mine // (plan.micro_batches or mine))
    return Work(
        rows=min(size, mine),
        length=config.context_length,
        micro_batches=-(-mine // size),
        checkpointing=config.loop.activation_checkpointing,
    )


def _whole_updates(config: DryRunConfig, plan: ParallelConfig) -> bool:
    return plan.cuts and (
        config.loop.optimizer.name not in ELEMENTWISE or (plan.shard > 1 and plan.zero == 1)
    )


def _activations(
    model: ModelConfig, kept: list[Any], small: ParallelConfig, found: list[Any]
) -> Activations:
    kinds = [kept.index(layer) for layer in kept]
    stages = layers_of_stage(len(kept), small.pipeline)
    per_stage = small.row_groups * small.tensor
    return activations_of(
        [found[stage * per_stage]["measured"] for stage in range(small.pipeline)],
        [[kinds[i] for i in stage] for stage in stages],
        [kept.index(layer) for layer in model.layers],
        head_size(model),
    )


def _slowest(setting: Setting, everyone: list[Share]) -> tuple[dict[str, float], dict[str, int]]:
    ways = []
    for rank, share in enumerate(everyone):
        sent = traffic(
            setting.config,
            setting.plan,
            everyone,
            rank,
            setting.work,
            whole_updates=setting.whole_updates,
        )
        ways.append((seconds(share, setting, sent), sent))
    return max(ways, key=lambda way: sum(way[0].values()))


def _counts(
    config: DryRunConfig, model: ModelConfig, small: ParallelConfig, found: list[Any]
) -> list[dict[str, Any]]:
    """What each rehearsed process held and sent, beside what the formulas say of it."""
    head_dim, _, length = MEASURED[1]
    narrow = narrowed(model, head_dim)
    everyone = shares(narrow, small, config.loop.optimizer)
    plan_work = _work(config, small)
    work = Work(rows=1, length=length, micro_batches=min(plan_work.micro_batches, _MICRO_BATCHES))
    whole = _whole_updates(config, small)
    grid = itertools.product(*(range(getattr(small, axis)) for axis in AXES))
    rows = []
    for rank, place in enumerate(grid):
        where = dict(zip(AXES, place, strict=True))
        in_copy = next(i for i, s in enumerate(everyone) if s.place == where | {"data": 0})
        share = everyone[in_copy]
        told = {
            "weights": 4 * share.numel,
            "gradients": 4 * share.numel,
            "optimizer": share.state_bytes,
        }
        told |= traffic(narrow, small, everyone, in_copy, work, whole_updates=whole)
        counted = found[rank]["counted"]
        seen = {name: counted[name] for name in ("weights", "gradients", "optimizer")}
        seen |= {name: size for name, size in counted["sent"].items() if size}
        for name in sorted(told.keys() | seen.keys()):
            one, other = told.get(name, 0), seen.get(name, 0)
            rows.append(
                {
                    "process": rank,
                    "what": name,
                    "formula": one,
                    "counted": other,
                    "equal": abs(one - other) <= max(4, 1e-6 * other),
                }
            )
    return rows


def as_text(found: dict[str, Any]) -> str:
    """The report in Markdown."""
    memory_formulas, time_formulas = found["formulas"]["memory"], found["formulas"]["time"]
    lines = ["# Dry run", "", found["summary"], ""]
    lines += ["## Losses of the rehearsal", "", "| Step | Plan | One process |", "|---|---|---|"]
    pairs = zip(found["losses"]["plan"], found["losses"]["one_process"], strict=True)
    lines += [f"| {i} | {a:.15f} | {b:.15f} |" for i, (a, b) in enumerate(pairs)]
    lines += ["", "## Counted in the rehearsal, beside the formulas", ""]
    lines += ["| Process | What | Formula, bytes | Counted, bytes |", "|---|---|---|---|"]
    lines += [
        f"| {r['process']} | {r['what']} | {r['formula']:,} | {r['counted']:,} |"
        for r in found["counts"]
    ]
    lines += ["", f"## Memory of the fullest process, {found['fullest']}", ""]
    lines += ["| What | Size | How |", "|---|---|---|"]
    parts = found["memory_bytes"]
    lines += [f"| {name} | {gib(size)} | {memory_formulas[name]} |" for name, size in parts.items()]
    lines += [f"| total | {gib(sum(parts.values()))} | |", "", "## A step", ""]
    lines += ["| What | Seconds | Sent | How |", "|---|---|---|---|"]
    for name, value in found["seconds"].items():
        sent = found["sent_bytes"].get(name)
        how, size = time_formulas.get(name, ""), gib(sent) if sent else ""
        lines.append(f"| {name} | {value:.4f} | {size} | {how} |")
    lines += [f"| step | {sum(found['seconds'].values()):.4f} | | |", ""]
    if "change" in found["metrics"]:
        lines += [f"It does not fit. Try: {found['metrics']['change']}", ""]
    return "\n".join(lines)
