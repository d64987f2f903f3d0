"""What a cache of float16 or of 8-bit blocks saves, costs and changes, on SmolLM2-135M.

    python bench/cache_types.py

Prints bytes per position, the time of a decode step after 256 positions (in turns, with what a
compiled step takes beside it), and the mean KL to float32 over texts of Python's documentation,
with its interval.
"""

from __future__ import annotations

import numpy as np
import torch
from pairs import report, take_turns
from torch.nn.functional import log_softmax

from lmworks.compression.calibration import calibration_rows
from lmworks.core.references import resolve
from lmworks.evaluation.statistics import mean_interval
from lmworks.models.cache import KVCache
from lmworks.models.load import load_language_model
from lmworks.models.model import Model
from lmworks.tokenizers.load import load_tokenizer

CONTEXT, STEPS, ROUNDS, TEXTS, LENGTH = 256, 4, 5, 6, 128


def main() -> None:
    folder = resolve("smollm2-135m").path
    assert folder is not None
    model, tokenizer = load_language_model(folder, packed=True), load_tokenizer(folder)
    rows = calibration_rows(None, tokenizer, max_tokens=TEXTS * LENGTH, length=LENGTH)
    plain = [_logits(model, row, "f32") for row in rows]
    facts = {}
    for kind in ("f16", "q8_0"):
        pairs = zip(plain, rows, strict=True)
        found = mean_interval([_kl(p, _logits(model, row, kind)) for p, row in pairs])
        facts[f"kl_{kind}"] = [found.estimate, found.low, found.high]
        print(
            f"{kind}: mean KL to f32 {found.estimate:.2e} [{found.low:.2e}, {found.high:.2e}] nats"
        )
    caches = {
        kind: KVCache(model.config, 1, 300, cache_type=kind) for kind in ("f32", "f16", "q8_0")
    }
    for kind, cache in caches.items():
        facts[f"bytes_{kind}"] = cache.page_bytes // 16
        print(f"{kind}: {cache.page_bytes // 16} bytes per position")
        with torch.inference_mode():
            model(torch.zeros(1, CONTEXT, dtype=torch.long), cache=cache.view([0]))

    def steps(kind: str, hooked: bool = False) -> None:
        cache = caches[kind]
        cache.truncate(0, CONTEXT)
        handle = model.norm.register_forward_hook(lambda *_: None) if hooked else None
        with torch.inference_mode():
            for _ in range(STEPS):
                model(torch.zeros(1, 1, dtype=torch.long), cache=cache.view([0]))
        if handle:
            handle.remove()

    seconds = take_turns(
        {
            "f32, operation by operation": lambda: steps("f32", hooked=True),
            "f32, compiled step": lambda: steps("f32"),
            "f16": lambda: steps("f16"),
            "q8_0": lambda: steps("q8_0"),
        },
        ROUNDS,
    )
    report("cache_types", "tokens/s", STEPS, seconds, **facts)


def _logits(model: Model, row: np.ndarray, kind: str) -> torch.Tensor:
    cache = KVCache(model.config, 1, len(row), cache_type=kind)
    with torch.inference_mode():
        return log_softmax(model(torch.from_numpy(row)[None], cache=cache.view([0]))[0], dim=-1)


def _kl(p: torch.Tensor, q: torch.Tensor) -> float:
    return float((p.exp() * (p - q)).sum(-1).mean())


if __name__ == "__main__":
    main()
