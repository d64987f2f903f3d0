"""What it costs and spares that a thread keeps no small chunks: time and memory of a training.

    python bench/kept_chunks.py

The same steps in processes of their own, started in turns with and without the setting that the
command line gives itself (`training.threads.without_kept_chunks`). Time is the processor's, since
the machine may be busy; memory is the largest resident size.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from pairs import keep
from training_memory import TRAININGS, VOCAB, training

from lmworks.evaluation.statistics import mean_interval
from lmworks.training.threads import without_kept_chunks


def measured(given: dict[str, Any], steps: int) -> dict[str, float]:
    """Processor seconds of a step after the first two, and the most memory."""
    import resource

    from lmworks.training.objectives.causal import causal
    from lmworks.training.pretrain import new_model
    from lmworks.training.threads import set_threads
    from lmworks.training.trainer import Trainer

    set_threads(1)
    config, loop, batch = training(given)
    with tempfile.TemporaryDirectory() as work:
        trainer = Trainer(
            new_model(config, VOCAB), causal, lambda number: batch, loop,
            num_steps=steps + 2, work=Path(work),
        )  # fmt: skip
        trainer.model.train()
        seconds = []
        for step in range(steps + 2):
            started = time.process_time()
            trainer.take_step(step)
            seconds.append(time.process_time() - started)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": statistics.median(seconds[2:]), "bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", type=int, nargs="*", default=[2, 10])
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(measured(json.loads(options.alone), options.steps)))
        return
    environments = {"kept": {**os.environ}, "not kept": without_kept_chunks()}
    rows = []
    for given in [TRAININGS[i] for i in options.only]:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in environments}
        for _ in range(options.rounds):
            for name, environment in environments.items():
                command = [sys.executable, __file__, "--steps", str(options.steps)]
                done = subprocess.run(
                    [*command, "--alone", json.dumps(given)],
                    env=environment, check=True, capture_output=True, text=True,
                )  # fmt: skip
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
        row: dict[str, Any] = {"training": given}
        for figure in ("seconds", "bytes"):
            pairs = zip(found["not kept"], found["kept"], strict=True)
            logs = np.log([a[figure] / b[figure] for a, b in pairs])
            interval = mean_interval(logs)
            row[figure] = [
                float(np.exp(x)) for x in (interval.estimate, interval.low, interval.high)
            ]
            estimate, low, high = row[figure]
            print(f"{figure:8} {estimate:.3f} [{low:.3f}, {high:.3f}] of those with kept  {given}")
        rows.append(row)
    keep("kept_chunks", rounds=options.rounds, trainings=rows)


if __name__ == "__main__":
    main()
