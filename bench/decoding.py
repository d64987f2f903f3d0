"""Greedy decoding of SmolLM2-135M, one sequence: ours (packed, float32) beside transformers.

    python bench/decoding.py

Prints tokens per second, the ratio, and the share of what reading the weights once per token
allows at this machine's measured read bandwidth.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from pairs import report, take_turns
from transformers import AutoModelForCausalLM

from lmworks.compression.measure import decode, weight_bytes
from lmworks.core.gguf import find_gguf
from lmworks.core.references import resolve
from lmworks.models.load import load_model

NUM_TOKENS = 32
ROUNDS = 7


def read_bandwidth() -> float:
    """Bytes per second that a sum over a large array reads, best of five."""
    array = torch.from_numpy(np.ones(64 * 2**20, dtype=np.float32))
    best = min(_timed(array.sum) for _ in range(5))
    return array.numel() * 4 / best


def _timed(run) -> float:  # type: ignore[no-untyped-def]
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def main() -> None:
    folder = resolve("smollm2-135m").path
    assert folder is not None
    gguf = find_gguf(folder)
    options = {"gguf_file": gguf.name} if gguf else {}
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    packed, floats = load_model(folder, packed=True), load_model(folder)
    prompt = torch.zeros(1, 1, dtype=torch.long)
    settings = {"max_new_tokens": NUM_TOKENS, "min_new_tokens": NUM_TOKENS, "do_sample": False}

    def generate() -> None:
        with torch.inference_mode():
            theirs.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)

    seconds = take_turns(
        {
            "lmworks, packed": lambda: decode(packed, NUM_TOKENS),
            "lmworks, float32": lambda: decode(floats, NUM_TOKENS),
            "transformers, float32": generate,
        },
        ROUNDS,
    )
    bandwidth = read_bandwidth()
    limit = {n: bandwidth / weight_bytes(m) for n, m in (("packed", packed), ("float32", floats))}
    print(f"read bandwidth {bandwidth / 1e9:.1f} GB/s; limits {limit}")
    report("decoding", "tokens/s", NUM_TOKENS, seconds, bandwidth_gb_s=bandwidth / 1e9, limit=limit)


if __name__ == "__main__":
    main()
