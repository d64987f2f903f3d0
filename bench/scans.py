"""Forward and backward of recurrent models at 2,048 tokens: ours beside transformers and mambapy.

    python bench/scans.py [--rounds 5] [--threads 2] [--only mamba2]

The same random weights, one row of tokens, float32, a model of two layers of width 256. `mambapy`
is transformers' Mamba with mambapy's parallel scan (`use_mambapy=True`, if it is installed).
transformers' own loop is beside ours in `mamba_loop`, one layer of width 64, run once: its
backward takes time quadratic in the length, minutes here. `lengths` is ours alone, 512 to 8,192.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line sets it; see docs/log.md

import torch
import transformers
from pairs import report, take_turns

from lmworks.models.load import load_model

LENGTH, VOCAB = 2048, 256
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("MambaConfig", {}),
    "mamba2": ("Mamba2Config", {"num_heads": 8, "head_dim": 64, "n_groups": 1}),
    "rwkv": ("RwkvConfig", {"rescale_every": 0}),
}


def pair(name: str, hidden: int = 256, layers: int = 2) -> tuple[Any, Any]:
    """Ours and theirs with the same weights."""
    kind, settings = MODELS[name]
    sizes = {"vocab_size": VOCAB, "hidden_size": hidden, "num_hidden_layers": layers}
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**sizes, **settings)
    theirs = transformers.AutoModelForCausalLM.from_config(config).train()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return load_model(folder).train(), theirs


def both_ways(model: Any, length: int = LENGTH) -> Callable[[], None]:
    """A forward and a backward over one row."""
    ids = torch.randint(VOCAB, (1, length), generator=torch.Generator().manual_seed(0))

    def run() -> None:
        model.zero_grad(set_to_none=True)
        out = model(ids)
        logits = out if isinstance(out, torch.Tensor) else out.logits
        torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:]).backward()

    return run


def compare(name: str, rounds: int) -> None:
    """Ours beside transformers' model, or for Mamba beside mambapy's scan in it."""
    ours, theirs = pair(name)
    peer = "transformers"
    if name == "mamba":
        peer = "mambapy"
        for layer in theirs.backbone.layers:
            layer.mixer.use_mambapy = True
    seconds = take_turns({"lmworks": both_ways(ours), peer: both_ways(theirs)}, rounds)
    report(f"scan_{name}", "tokens/s", LENGTH, seconds, threads=torch.get_num_threads())


def mamba_loop() -> None:
    """Ours beside transformers' loop over positions, once."""
    ours, theirs = pair("mamba", hidden=64, layers=1)
    both_ways(ours)()
    seconds: dict[str, list[float]] = {}
    for name, model in (("lmworks", ours), ("transformers", theirs)):
        started = time.perf_counter()
        both_ways(model)()
        seconds[name] = [time.perf_counter() - started]
    report("scan_mamba_loop", "tokens/s", LENGTH, seconds, threads=torch.get_num_threads())


def lengths(name: str, rounds: int) -> None:
    """Ours at several lengths, and how much of the times' spread a straight line explains."""
    ours, _ = pair(name)
    runs = {str(n): both_ways(ours, n) for n in (512, 1024, 2048, 4096, 8192)}
    seconds = take_turns(runs, rounds)
    medians = [statistics.median(times) for times in seconds.values()]
    r_squared = statistics.correlation([float(n) for n in seconds], medians) ** 2
    for length, median in zip(seconds, medians, strict=True):
        print(f"{name} {length:>5} tokens: {median / int(length) * 1e6:8.1f} us for each")
    print(f"a straight line explains {r_squared:.4f} of it")
    threads = torch.get_num_threads()
    report(f"scan_lengths_{name}", "passes/s", 1, seconds, threads=threads, r_squared=r_squared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=[*MODELS, "mamba_loop", "lengths"])
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    for name in MODELS:
        if chosen.only in (None, name):
            compare(name, chosen.rounds)
    if chosen.only in (None, "lengths"):
        for name in MODELS:
            lengths(name, chosen.rounds)
    if chosen.only in (None, "mamba_loop"):
        mamba_loop()


if __name__ == "__main__":
    main()
