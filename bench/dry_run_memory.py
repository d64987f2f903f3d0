"""Is the memory that a dry run forecasts the memory that processes take? One plan after another.

python bench/dry_run_memory.py [--hidden 384] [--rows 16]

Each plan trains two steps with real processes on this machine's CPU. Measured are the tensors that
the fullest process holds at its fullest moment, from the profiler's record of what is allocated and
freed; forecast is what the dry run says of the same sizes in float32, without the reserve for a
GPU. What a process holds in all is printed too: beside tensors that is what libraries keep.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from lmworks.core.config import from_mapping

PLANS: dict[str, dict[str, Any]] = {
    "one process": {},
    "data 2": {"data": 2},
    "shard 2, ZeRO-1": {"shard": 2, "zero": 1},
    "shard 2, ZeRO-2": {"shard": 2, "zero": 2},
    "shard 2, ZeRO-3": {"shard": 2, "zero": 3},
    "tensor 2": {"tensor": 2},
    "pipeline 2": {"pipeline": 2},
}


def child(path: Path) -> None:
    """One process: two steps of the real trainer's parts, and the most that they took."""
    import torch

    from lmworks.core import processes
    from lmworks.core.machine import PeakMemory, resident_bytes
    from lmworks.models.architectures.own import config_from_hf
    from lmworks.models.model import Model
    from lmworks.training.batches import Batch
    from lmworks.training.objectives.causal import causal
    from lmworks.training.strategy import Compute, OneProcess
    from lmworks.training.threads import set_threads
    from lmworks.training.trainer_config import LoopConfig

    spec = json.loads(path.read_text())
    set_threads(1)
    config = config_from_hf(spec["model"])
    loop = from_mapping(LoopConfig, spec["loop"])
    strategy: Any = OneProcess()
    if processes.several():
        from lmworks.training.distributed.strategy import Distributed

        strategy = Distributed(loop.parallel)
    # What a first product, a first backward and a first message leave behind is no model's.
    torch.nn.functional.cross_entropy(
        torch.nn.Linear(8, 8)(torch.ones(4, 8)), torch.zeros(4, dtype=torch.long)
    ).backward()
    before = resident_bytes()
    with (
        PeakMemory(interval_s=0.002) as peak,
        torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profiler,
    ):
        model = Model(config)
        model.reset_parameters(torch.Generator().manual_seed(0))
        trained = strategy.prepare(model, loop)
        optimizer = strategy.optimizer(trained, loop.optimizer)
        trained.train()
        trained.logits = trained.logits  # the plain way, as on a GPU; see `vocabulary_loss`
        for step in range(2):
            random = torch.Generator().manual_seed(step)
            shape = (spec["rows"], spec["length"] + 1)
            ids = torch.randint(0, config.vocab_size, shape, generator=random)
            trained.zero_grad(set_to_none=True)
            batch = Batch(input_ids=ids[:, :-1].contiguous(), labels=ids[:, 1:].contiguous())
            strategy.gradients(
                trained, causal, batch, Compute(micro_batch_size=loop.micro_batch_size)
            )
            optimizer.step(1.0)
    trace = path.with_suffix(f".{processes.rank()}.trace.json")
    profiler.export_chrome_trace(str(trace))
    live = most = 0
    events = json.loads(trace.read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    for event in sorted(changes, key=lambda event: event["ts"]):
        live += event["args"]["Bytes"]
        most = max(most, live)
    taken = processes.exchange((most, peak.bytes - before))
    if processes.is_main():
        path.with_suffix(".out.json").write_text(json.dumps(taken))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=8000)
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--plans", default="")
    parser.add_argument("--child", type=Path)
    options, rest = parser.parse_known_args()
    if rest:
        child(Path(rest[0]))
        return
    from lmworks.models.architectures.own import config_to_hf
    from lmworks.training.distributed.dry_run import DryRunConfig, dry_run, model_of
    from lmworks.training.distributed.launch import LaunchConfig, start_here
    from lmworks.training.distributed.plan import ParallelConfig

    print("| Plan | Tensors measured, MiB | Forecast, MiB | Forecast / measured | In all, MiB |")
    print("|---|---|---|---|---|")
    for name, plan in PLANS.items():
        if options.plans and name not in options.plans.split(";"):
            continue
        size = 1 if not plan else 2
        values = {
            "depth": 4,
            "vocab_size": options.vocab,
            "context_length": options.length,
            "batch_size": options.rows,
            "devices": size,
            "shape": {"hidden_size": options.hidden},
            "loop": {
                "parallel": plan,
                "device": "cpu",
                "micro_batch_size": options.rows // 2 if plan.get("tensor") or not plan else 0,
                "optimizer": {"name": options.optimizer},
            },
        }
        with tempfile.TemporaryDirectory() as folder:
            config = from_mapping(DryRunConfig, values)
            report = dry_run(config, Path(folder) / "report")
            parts = json.loads((report.path / "report.json").read_text())["memory_bytes"]
            parts.pop("reserve")
            spec = {
                "model": config_to_hf(model_of(config, None)),  # type: ignore[arg-type]
                "loop": values["loop"],
                "rows": options.rows,
                "length": options.length,
            }
            path = Path(folder) / "spec.json"
            path.write_text(json.dumps(spec))
            launch = LaunchConfig(nproc=size)
            if size == 1:
                import subprocess

                subprocess.run([sys.executable, __file__, str(path)], check=True)
            else:
                sys.path.insert(0, str(Path(__file__).parent))
                import os

                bench = str(Path(__file__).parent)
                os.environ["PYTHONPATH"] = f"{bench}:{os.environ.get('PYTHONPATH', '')}"
                start_here([str(path)], launch, module="dry_run_memory", cpu=True)
            taken, resident = max(json.loads(path.with_suffix(".out.json").read_text()))
        forecast = sum(parts.values())
        shown = ", ".join(f"{key} {value / 2**20:.0f}" for key, value in parts.items())
        print(
            f"| {ParallelConfig(**{'data': 1, **plan})} | {taken / 2**20:.0f} | "
            f"{forecast / 2**20:.0f} | {forecast / taken:.2f} | {resident / 2**20:.0f} |",
            flush=True,
        )
        print(f"  {shown}", file=sys.stderr)


if __name__ == "__main__":
    main()
