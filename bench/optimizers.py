"""What a step of each optimizer costs beside torch's fused AdamW, and what it keeps.

    python bench/optimizers.py --threads 1     # seconds of CPU, for a machine that is busy

A decoder's matrices with gradients that are there already; no forward, no backward.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from pairs import compared, keep, take_turns
from torch import nn

from lmworks.training.optimizers.base import OPTIMIZERS, OptimizerConfig, build_optimizer
from lmworks.training.threads import set_threads


def model(width: int, layers: int) -> nn.Module:
    """The shapes of Llama's matrices, an embedding and norms."""
    inner = 8 * width // 3
    parts: list[nn.Module] = [nn.Embedding(2048, width)]
    for _ in range(layers):
        parts += [nn.Linear(width, width, bias=False) for _ in range(4)]
        parts += [nn.Linear(width, inner, bias=False) for _ in range(2)]
        parts += [nn.Linear(inner, width, bias=False), nn.RMSNorm(width), nn.RMSNorm(width)]
    return nn.ModuleList(parts)


def stepper(name: str, width: int, layers: int) -> tuple[Callable[[], None], float]:
    """One step, and the bytes per parameter that are kept."""
    torch.manual_seed(0)
    trained = model(width, layers)
    for parameter in trained.parameters():
        parameter.grad = torch.randn_like(parameter) * 0.01
    optimizer = build_optimizer(trained, OptimizerConfig(name=name))
    count = sum(p.numel() for p in trained.parameters())
    return lambda: optimizer.step(0.1), optimizer.state_bytes / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args()
    threads = set_threads(given.threads)
    names = ["adamw", *(name for name in OPTIMIZERS if name != "adamw")]
    made = {name: stepper(name, given.width, given.layers) for name in names}
    clock = time.process_time if threads == 1 else time.perf_counter
    seconds = take_turns({name: step for name, (step, _) in made.items()}, given.rounds, clock)
    count = sum(p.numel() for p in model(given.width, given.layers).parameters())
    rows = compared("M parameters/s", count / 1e6, seconds)
    for name, (_, kept) in made.items():
        print(f"{name:28} {kept:.3f} bytes per parameter")
        rows[name]["state_bytes_per_parameter"] = kept
    keep("optimizers", parameters=count, threads=threads, rounds=given.rounds, rows=rows)


if __name__ == "__main__":
    main()
