"""Attention patterns beside full attention, forward and backward: seconds and memory.

    python bench/attention_patterns.py

Ours are timed in turns with PyTorch's fused full attention (of the same kind: causal beside causal,
both ways beside both ways), 8 heads of 64, one row: over lengths at one window, over windows at one
length (with the straight line that fits them), and as layers with projections beside transformers'
Longformer. Seconds are wall time; processor seconds, which other work on the machine changes
less, stand beside them. Memory is what a fresh process reaches above its inputs.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from lmworks.models.bigbird_attention import bigbird_attention, draw_random_blocks
from lmworks.models.config import AttentionConfig, LongformerPattern, MLPConfig, ModelConfig
from lmworks.models.context import Context
from lmworks.models.longformer_attention import longformer_attention
from lmworks.models.windowed_attention import windowed_attention
from lmworks.training.threads import set_threads

HEADS, SIZE, WINDOW, BLOCK = 8, 64, 256, 64
LENGTHS, WINDOWS, LONG = (1024, 2048, 4096, 8192, 16384), (64, 128, 256, 512, 1024), 8192
RESULTS = Path(__file__).parent / "results" / "attention_patterns.json"
Run = Callable[[], object]


def patterns(length: int, window: int = WINDOW) -> dict[str, Run]:
    """What computes one forward and backward of each kind at `length`."""
    q, k, v = (torch.randn(1, HEADS, length, SIZE, requires_grad=True) for _ in range(3))
    upstream = torch.randn_like(q)
    tokens = torch.arange(length)[None] < 8
    blocks = draw_random_blocks(HEADS, length // BLOCK, 3, seed=0)
    forwards: dict[str, Callable[[], torch.Tensor]] = {
        "full, causal": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "window, causal": lambda: windowed_attention(q, k, v, window=window),
        "full": lambda: F.scaled_dot_product_attention(q, k, v),
        "longformer": lambda: longformer_attention(q, k, v, window=window, global_tokens=tokens),
        "bigbird": lambda: bigbird_attention(q, k, v, block_size=BLOCK, random_blocks=blocks),
    }

    def both(forward: Callable[[], torch.Tensor]) -> Run:
        return lambda: torch.autograd.grad(forward(), (q, k, v), upstream)

    return {name: both(forward) for name, forward in forwards.items()}


def layers(length: int) -> dict[str, Run]:
    """Self-attention with its projections, width 512, window 512, the first token global."""
    from transformers.models.longformer.modeling_longformer import (
        LongformerConfig,
        LongformerSelfAttention,
    )

    width = HEADS * SIZE
    x = torch.randn(1, length, width, requires_grad=True)
    upstream = torch.randn_like(x)
    theirs = LongformerSelfAttention(
        LongformerConfig(
            hidden_size=width,
            num_attention_heads=HEADS,
            attention_window=[512],
            attention_probs_dropout_prob=0.0,
        ),
        0,
    )
    state = torch.zeros(1, length)
    state[0, 0] = 10000.0
    ours = attention(width, LongformerPattern(window=512, num_global_tokens=1))
    full = attention(width, None)

    def hugging_face() -> torch.Tensor:
        found: torch.Tensor = theirs(
            x,
            attention_mask=state,
            is_index_masked=state < 0,
            is_index_global_attn=state > 0,
            is_global_attn=True,
        )[0]
        return found

    def both(module: Any, forward: Callable[[], torch.Tensor]) -> Run:
        inputs = [x, *module.parameters()]
        return lambda: torch.autograd.grad(forward(), inputs, upstream, allow_unused=True)

    return {
        "lmworks, longformer": both(ours, lambda: ours(x, Context())),
        "transformers, longformer": both(theirs, hugging_face),
        "lmworks, full": both(full, lambda: full(x, Context())),
    }


def attention(width: int, pattern: Any) -> Any:
    """One attention of ours."""
    from lmworks.models.attention import Attention

    config = AttentionConfig(
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=SIZE,
        rope=None,
        causal=False,
        bias="qkvo",
        pattern=pattern,
    )
    model = ModelConfig.uniform(
        vocab_size=8,
        hidden_size=width,
        num_hidden_layers=1,
        mixer=config,
        feed_forward=MLPConfig(intermediate_size=8),
    )
    return Attention(config, model)


def timed(contestants: dict[str, Run], rounds: int) -> dict[str, dict[str, Any]]:
    """Median seconds, wall and processor, of contestants that take turns."""
    wall: dict[str, list[float]] = {name: [] for name in contestants}
    work: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            started, worked = time.perf_counter(), time.process_time()
            run()
            if number:  # the first round is not measured
                wall[name].append(time.perf_counter() - started)
                work[name].append(time.process_time() - worked)
    return {
        name: {
            "seconds": statistics.median(wall[name]),
            "processor_seconds": statistics.median(work[name]),
            "all_seconds": wall[name],
        }
        for name in contestants
    }


def faster(rows: dict[str, dict[str, Any]], ours: str, than: str) -> dict[str, float]:
    """How many times as fast, the median of the rounds' pairs, and by processor seconds."""
    pairs = zip(rows[than]["all_seconds"], rows[ours]["all_seconds"], strict=True)
    return {
        "times_as_fast": statistics.median(a / b for a, b in pairs),
        "times_as_fast_by_processor": rows[than]["processor_seconds"]
        / rows[ours]["processor_seconds"],
    }


def straight_line(x: list[float], y: list[float]) -> float:
    """R squared of the least-squares line."""
    return statistics.correlation(x, y) ** 2


def peak_bytes(name: str, length: int) -> int:
    """What one forward and backward takes above its inputs, in a process of its own."""
    run = subprocess.run(
        [sys.executable, __file__, "--memory", name, str(length)],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(run.stdout.split()[-1])


def measure_memory(name: str, length: int) -> None:
    """Print the bytes for `peak_bytes`."""
    set_threads(0)
    run = (layers if "," in name and "causal" not in name else patterns)(length)[name]

    def held(key: str) -> int:
        text = Path("/proc/self/status").read_text()
        return int(re.search(rf"{key}:\s+(\d+)", text).group(1)) * 1024  # type: ignore[union-attr]

    before = held("VmRSS")
    run()
    print(held("VmHWM") - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", nargs=2, metavar=("NAME", "LENGTH"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0 takes all cores")
    arguments = parser.parse_args()
    if arguments.memory:
        measure_memory(arguments.memory[0], int(arguments.memory[1]))
        return
    threads, rounds = set_threads(arguments.threads), arguments.rounds
    found: dict[str, Any] = {"by_length": {}, "by_window": {}, "layers": {}, "peak_bytes": {}}

    def keep() -> None:
        facts = {
            "command": " ".join(["python bench/attention_patterns.py", *sys.argv[1:]]),
            "shape": f"1 row, {HEADS} heads of {SIZE}, float32, forward and backward",
            "threads": threads,
            "rounds": rounds,
            "machine": platform.processor() or platform.machine(),
            "versions": {p: metadata.version(p) for p in ("torch", "transformers")},
        }
        RESULTS.write_text(json.dumps(facts | found, indent=1) + "\n")

    for length in LENGTHS:
        rows = timed(patterns(length), rounds if length <= LONG else max(1, rounds // 2))
        ratios = {
            "window, causal": faster(rows, "window, causal", "full, causal"),
            "longformer": faster(rows, "longformer", "full"),
            "bigbird": faster(rows, "bigbird", "full"),
        }
        found["by_length"][length] = {"rows": rows, "beside_full": ratios}
        print(length, {name: round(row["seconds"], 4) for name, row in rows.items()}, ratios)
        keep()
    windows = {w: patterns(LONG, w)["window, causal"] for w in WINDOWS}
    rows = timed({str(w): run for w, run in windows.items()}, rounds)
    spread = [rows[str(w)][key] for key in ("seconds", "processor_seconds") for w in WINDOWS]
    fits = [straight_line(list(WINDOWS), part) for part in (spread[:5], spread[5:])]
    found["by_window"] = {"length": LONG, "rows": rows, "r_squared": fits[0]}
    found["by_window"]["r_squared_by_processor"] = fits[1]
    print("windows", {w: round(row["seconds"], 4) for w, row in rows.items()}, fits)
    keep()
    for length in (1024, 4096, 8192):
        rows = timed(layers(length), rounds)
        ratios = {
            than: faster(rows, "lmworks, longformer", than)
            for than in ("transformers, longformer", "lmworks, full")
        }
        found["layers"][length] = {"rows": rows, "longformer_beside": ratios}
        print(length, {name: round(row["seconds"], 4) for name, row in rows.items()}, ratios)
        keep()
    for name in (*patterns(1024), *layers(1024)):
        found["peak_bytes"][name] = {n: peak_bytes(name, n) for n in (4096, 8192)}
        print(name, found["peak_bytes"][name])
        keep()


if __name__ == "__main__":
    main()
