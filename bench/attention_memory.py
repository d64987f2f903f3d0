"""Memory of looking at the attention of a long text: what a whole fresh process reaches.

    python bench/attention_memory.py
    python bench/attention_memory.py --tokens 4096 --layer 2

SmolLM2-135M out of its GGUF file, matrices packed, reads random tokens up to a layer; three heads
of it are kept, and of one a picture of 512 cells is made from exact weights, a tile at a time. The
square of the length alone would be 4.3 GB for one head at 32,768 tokens in float32.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import time
from importlib import metadata
from pathlib import Path

import torch

from lmworks.models.attention_summaries import PooledImage
from lmworks.models.attention_trace import trace_attention
from lmworks.models.load import load_model

RESULTS = Path(__file__).parent / "results"


def peak_mb() -> float:
    """The most memory that this process has held, MB."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+)", status)
    assert found is not None
    return round(int(found[1]) / 1e3, 1)


def main() -> None:
    """Read, keep, draw, print and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--layer", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    peaks = {"imports": peak_mb()}
    model = load_model("smollm2-135m", packed=True)
    peaks["model loaded"] = peak_mb()
    ids = torch.randint(0, model.config.vocab_size, (given.tokens,),
                        generator=torch.Generator().manual_seed(0))  # fmt: skip
    started = time.process_time()
    trace = trace_attention(model, ids, keep={given.layer: [0, 3, 8]})
    peaks["text read"] = peak_mb()
    image = PooledImage(given.tokens, 512)
    for start, weights in trace.tiles(given.layer, 3):
        image.add(torch.arange(start, start + len(weights)), weights)
    peaks["picture made"] = peak_mb()
    result = {
        "claim": "attention_memory",
        "command": f"python bench/attention_memory.py --tokens {given.tokens} --layer "
        f"{given.layer} --threads {given.threads}",
        "machine": platform.machine(),
        "versions": {name: metadata.version(name) for name in ("torch", "numpy")},
        "peak_mb": peaks,
        "processor_seconds": round(time.process_time() - started, 1),
    }
    print(json.dumps(result, indent=1))
    name = f"attention_memory_{given.tokens}_{platform.machine()}.json"
    (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
