"""Peak memory of a training, estimated before it starts and measured while it runs.

    python bench/training_memory.py

Twenty trainings: shapes, batches, optimizers, micro-batches, recomputed activations, mixtures of
experts, recurrent layers. Each is run for two steps in a process of its own, started as the command
line starts a training, whose largest resident size is what counts; another process estimates it
from the config alone. `--kept-chunks` starts them as Python does.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pairs import keep

CONTEXT, VOCAB = 256, 4096
# depth, layers, rows, micro-batch, optimizer, recomputed, vocabulary, context
TRAININGS: list[dict[str, Any]] = [
    {"depth": 2, "rows": 4},
    {"depth": 2, "rows": 32},
    {"depth": 4, "rows": 8},
    {"depth": 4, "rows": 8, "optimizer": "adamw"},
    {"depth": 4, "rows": 32, "optimizer": "adamw", "micro": 4},
    {"depth": 6, "rows": 16},
    {"depth": 6, "rows": 16, "optimizer": "adamw"},
    {"depth": 6, "rows": 16, "recompute": True},
    {"depth": 6, "rows": 16, "micro": 2},
    {"depth": 8, "rows": 4},
    {"depth": 8, "rows": 8, "recompute": True, "optimizer": "adamw"},
    {"depth": 12, "rows": 1, "optimizer": "adamw"},
    {"depth": 4, "rows": 8, "vocab": 32000},
    {"depth": 2, "rows": 4, "context": 2048},
    {"depth": 4, "rows": 8, "layers": "attention+moe"},
    {"depth": 4, "rows": 8, "layers": "mamba*3,attention"},
    {"depth": 4, "rows": 8, "layers": "gla,convolution"},
    {"depth": 4, "rows": 8, "layers": "window*3,attention", "context": 512},
    {"depth": 6, "rows": 8, "ema": 0.99},
    {"depth": 4, "rows": 8, "layers": "rwkv", "recompute": True},
]


def training(given: dict[str, Any]) -> tuple[Any, Any, Any]:
    """The stage's config, the loop's, and a batch."""
    import torch

    from lmworks.training.batches import Batch
    from lmworks.training.optimizers.base import OptimizerConfig
    from lmworks.training.pretrain import PretrainConfig
    from lmworks.training.trainer_config import LoopConfig

    length = given.get("context", CONTEXT)
    loop = LoopConfig(
        micro_batch_size=given.get("micro", 0),
        activation_checkpointing=given.get("recompute", False),
        ema=given.get("ema", 0.0),
        optimizer=OptimizerConfig(name=given.get("optimizer", "muon")),
    )
    config = PretrainConfig(
        corpus="-", tokenizer="-", depth=given["depth"], context_length=length,
        layers=given.get("layers", "attention"), loop=loop,
    )  # fmt: skip
    ids = torch.randint(given.get("vocab", VOCAB), (given["rows"], length + 1))
    return config, loop, Batch(input_ids=ids[:, :-1].contiguous(), labels=ids[:, 1:].contiguous())


def measured(given: dict[str, Any]) -> float:
    """Bytes that this process reaches in two steps."""
    from lmworks.training.objectives.causal import causal
    from lmworks.training.pretrain import new_model
    from lmworks.training.threads import set_threads
    from lmworks.training.trainer import Trainer

    set_threads(given.get("threads", 1))
    config, loop, batch = training(given)
    model = new_model(config, given.get("vocab", VOCAB))
    with tempfile.TemporaryDirectory() as work:
        Trainer(model, causal, lambda number: batch, loop, num_steps=2, work=Path(work)).fit()
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * float(found[1])


def estimated(given: dict[str, Any]) -> dict[str, Any]:
    """What is told beforehand."""
    import dataclasses

    from lmworks.models.skeleton import skeleton
    from lmworks.training.memory_estimate import estimate, process_baseline
    from lmworks.training.objectives.causal import causal
    from lmworks.training.pretrain import model_config
    from lmworks.training.threads import set_threads

    set_threads(given.get("threads", 1))
    config, loop, batch = training(given)
    model = skeleton(model_config(config, given.get("vocab", VOCAB)))
    found = estimate(model, causal, batch, loop, baseline=process_baseline())
    return dataclasses.asdict(found)


def alone(how: str, given: dict[str, Any], kept_chunks: bool) -> Any:
    from lmworks.training.threads import without_kept_chunks

    command = [sys.executable, __file__, "--alone", how, "--training", json.dumps(given)]
    environment = None if kept_chunks else without_kept_chunks()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{given}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--alone", choices=("measured", "estimated"), help=argparse.SUPPRESS)
    parser.add_argument("--training", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of trainings; all by default")
    parser.add_argument("--kept-chunks", action="store_true", help="leave malloc as it is")
    options = parser.parse_args()
    if options.alone:
        given = json.loads(options.training)
        print(json.dumps(measured(given) if options.alone == "measured" else estimated(given)))
        return
    rows = []
    for given in [TRAININGS[i] for i in options.only or range(len(TRAININGS))]:
        given = {**given, "threads": options.threads}
        truth, told = (alone(how, given, options.kept_chunks) for how in ("measured", "estimated"))
        error = told["peak"] / truth - 1
        rows.append({"training": given, "measured": truth, "estimated": told, "error": error})
        print(
            f"{truth / 1e6:7.0f} MB measured {told['peak'] / 1e6:7.0f} estimated "
            f"({told['baseline'] / 1e6:.0f} before the model, {told['live'] / 1e6:.0f} alive) "
            f"{error:+6.1%}  {given}"
        )
    errors = [abs(row["error"]) for row in rows]
    print(f"error: median {statistics.median(errors):.1%}, largest {max(errors):.1%}")
    claim = "training_memory_kept_chunks" if options.kept_chunks else "training_memory"
    keep(claim, trainings=rows, largest_error=max(errors))


if __name__ == "__main__":
    main()
