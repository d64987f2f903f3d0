"""Memory and time per token while a text grows to 32k tokens: a window's ring beside a full cache.

    python bench/decoding_memory.py

Two layers of random weights (hidden 128, 2 heads of 64, window 256), the same but for the window.
Memory is what the process has grown by since the model was made, read in chunks of 256; time is the
median of decoding one token there.
"""

from __future__ import annotations

import json
import platform
import re
import statistics
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

MARKS, CHUNK, WINDOW = (1024, 4096, 16384, 32768), 256, 256
RESULTS = Path(__file__).parent / "results" / "decoding_memory.json"


def resident_bytes() -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text).group(1)) * 1024  # type: ignore[union-attr]


def measure(window: int | None) -> None:
    import torch

    from lmworks.models.cache import KVCache
    from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig, SlidingWindow
    from lmworks.models.model import Model

    torch.set_num_threads(1)
    pattern = None if window is None else SlidingWindow(window=window)
    model = Model(
        ModelConfig.uniform(
            vocab_size=256,
            hidden_size=128,
            num_hidden_layers=2,
            mixer=AttentionConfig(
                num_attention_heads=2, num_key_value_heads=2, head_dim=64, pattern=pattern
            ),
            feed_forward=MLPConfig(intermediate_size=256),
        )
    )
    model.reset_parameters(torch.Generator().manual_seed(0))
    ids = torch.randint(256, (1, MARKS[-1]), generator=torch.Generator().manual_seed(1))
    cache = KVCache(model.config, 1, MARKS[-1] + 64)
    view = cache.view([0])
    with torch.inference_mode():
        model(ids[:, :CHUNK], cache=view, last_only=True)  # pools and tables are there now
        before = resident_bytes()
        for start in range(CHUNK, MARKS[-1], CHUNK):
            end = start + CHUNK
            model(ids[:, start:end], cache=view, last_only=True)
            if end in MARKS:
                taken = []
                held = cache.lengths[0]
                grown = resident_bytes() - before
                if end == MARKS[-1] or window is None:
                    for _ in range(20):
                        started = time.perf_counter()
                        model(ids[:, :1], cache=view, last_only=True)
                        taken.append(time.perf_counter() - started)
                        if window is None:
                            cache.truncate(0, held)
                seconds = statistics.median(taken) if taken else None
                row = {"tokens": end, "grown_bytes": grown, "seconds_per_token": seconds}
                print(json.dumps(row))


def main() -> None:
    if len(sys.argv) > 1:
        measure(None if sys.argv[1] == "full" else int(sys.argv[1]))
        return
    found = {}
    for name in (str(WINDOW), "full"):
        run = [sys.executable, __file__, name]
        lines = subprocess.run(run, check=True, capture_output=True, text=True).stdout
        found[name] = [json.loads(line) for line in lines.splitlines()]
        for row in found[name]:
            print(name, row)
    facts = {
        "command": "python bench/decoding_memory.py",
        "machine": platform.processor() or platform.machine(),
        "versions": {"torch": metadata.version("torch")},
        "chunk": CHUNK,
        "by_window": found,
    }
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
