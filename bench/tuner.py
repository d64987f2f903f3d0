"""What `train tune` finds, beside a search that tries everything.

    python bench/tuner.py --threads 1 2

A grid of rows at a time, layers computed again and threads is measured in full: whole training
steps, optimizer and all, the settings taking turns. Then the tuner looks at the same model and
batch, and what it chose is timed against the best of the grid, step by step in turns. Everything
happens in one process, so that a busy machine is as busy for one as for the other.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line has it

import numpy as np
from pairs import keep

from lmworks.evaluation.statistics import mean_interval


class Steps:
    """Takes whole training steps of one model under any setting."""

    def __init__(self, config: Any, vocab_size: int) -> None:
        import torch

        from lmworks.training.batches import Batch
        from lmworks.training.pretrain import new_model

        self._config, self._vocab = config, vocab_size
        self._model = new_model(config, vocab_size)
        ids = torch.randint(vocab_size, (config.batch_size, config.context_length))
        self._batch = Batch(input_ids=ids, labels=ids)

    def seconds(self, setting: Any) -> float:
        """One step: forward and backward of all parts, clip, optimizer."""
        import torch

        from lmworks.training.objectives.causal import causal
        from lmworks.training.trainer import Trainer

        torch.set_num_threads(setting.threads)
        with tempfile.TemporaryDirectory() as work:
            trainer = Trainer(
                self._model, causal, lambda number: self._batch, setting.loop(self._config.loop),
                num_steps=2, work=Path(work),
            )  # fmt: skip
            self._model.checkpoint_layers = setting.activation_checkpointing
            self._model.train()
            started = time.perf_counter()
            trainer.take_step(1)  # the first is for the optimizer's states
            return time.perf_counter() - started


def main() -> None:
    from lmworks.core import progress
    from lmworks.training.pretrain import PretrainConfig
    from lmworks.training.threads import set_threads
    from lmworks.training.tune import Setting, TuneConfig, tune

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--context-length", type=int, default=128)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3, help="of the whole grid")
    parser.add_argument("--pairs", type=int, default=12, help="of the chosen and the best setting")
    options = parser.parse_args()
    progress.set_mode("quiet")
    set_threads(max(options.threads))
    config = PretrainConfig(
        corpus="-", tokenizer="-", depth=options.depth, context_length=options.context_length,
        batch_size=options.batch_size,
    )  # fmt: skip
    steps = Steps(config, options.vocab_size)
    grid = [
        Setting(micro_batch_size=size, threads=threads, activation_checkpointing=again)
        for size in (options.batch_size, options.batch_size // 4, options.batch_size // 16)
        for again in (False, True)
        for threads in options.threads
    ]
    started = time.perf_counter()
    for setting in grid[:2]:
        steps.seconds(setting)
    tried: dict[Any, list[float]] = {setting: [] for setting in grid}
    for _ in range(options.rounds):
        for setting in grid:
            tried[setting].append(steps.seconds(setting))
    exhaustive_s = time.perf_counter() - started
    best = min(grid, key=lambda s: statistics.median(tried[s]))
    for setting in sorted(grid, key=lambda s: statistics.median(tried[s])):
        middle, low, high = (f(tried[setting]) for f in (statistics.median, min, max))
        print(f"{middle:7.3f} s [{low:.3f}, {high:.3f}]  {setting.words()}")
    with tempfile.TemporaryDirectory() as place:
        found = tune(
            TuneConfig(
                depth=options.depth, batch_size=options.batch_size,
                context_length=options.context_length, vocab_size=options.vocab_size,
            ),
            Path(place) / "tuning",
        ).metrics  # fmt: skip
    chosen = Setting(
        micro_batch_size=found["micro_batch_size"], threads=found["threads"],
        activation_checkpointing=found["activation_checkpointing"],
    )  # fmt: skip
    # The same setting is not timed against itself.
    ratios = [1.0, 1.0]
    if chosen != best:
        ratios = []
        for number in range(options.pairs):
            pair = [chosen, best] if number % 2 else [best, chosen]
            seconds = {setting: steps.seconds(setting) for setting in pair}
            ratios.append(seconds[chosen] / seconds[best])
    interval = mean_interval(np.log(ratios))
    ratio, low, high = (float(np.exp(x)) for x in (interval.estimate, interval.low, interval.high))
    print(f"best of {len(grid)}: {best.words()}; {exhaustive_s:.0f} s")
    print(
        f"chosen:     {chosen.words()}; {found['search_s']:.0f} s, {found['settings_timed']} timed"
    )
    print(f"the chosen one takes {ratio:.3f} [{low:.3f}, {high:.3f}] of the best one's time")
    keep(
        "tuner",
        grid={s.words(): tried[s] for s in grid}, best=best.words(), chosen=chosen.words(),
        exhaustive_s=exhaustive_s, search_s=found["search_s"], ratio=[ratio, low, high],
        same=chosen == best,
    )  # fmt: skip


if __name__ == "__main__":
    main()
