"""Decoding rows that ask for different LoRA adapters of one base: one forward for all, against one
forward per adapter, and what the same rows cost without adapters.

    python bench/many_adapters.py                      # SmolLM2-135M, Q4_1, 8 rows, 8 adapters
    python bench/many_adapters.py --adapters 4 --rank 8 --rows 16

Memory is counted too: the base once and its adapters, against a copy of the base for each.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from pairs import report, take_turns

from lmworks.compression.measure import weight_bytes
from lmworks.models.adapters.base import add_adapter
from lmworks.models.adapters.files import save_adapter
from lmworks.models.adapters.lora import LoRAConfig
from lmworks.models.adapters.shared import SharedAdapters
from lmworks.models.cache import KVCache
from lmworks.models.load import load_model

PROMPT = 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = load_model(given.model, packed=True)
    shared = SharedAdapters(model)
    with tempfile.TemporaryDirectory() as place:
        for number in range(given.adapters):
            adapter = add_adapter(model, LoRAConfig(rank=given.rank), seed=number)
            with torch.no_grad():
                for parameter in adapter.parameters:
                    parameter.normal_(std=0.01)
            save_adapter(adapter, Path(place) / str(number), base=given.model)
            adapter.remove()
        for number in range(given.adapters):
            shared.load(f"a{number}", Path(place) / str(number))
    names = [f"a{row % given.adapters}" for row in range(given.rows)]
    by_adapter = [
        [row for row, name in enumerate(names) if name == wanted] for wanted in dict.fromkeys(names)
    ]
    cache = KVCache(model.config, given.rows, PROMPT + given.steps + 1)
    prompt = torch.randint(model.config.vocab_size, (1, PROMPT))
    with torch.inference_mode():
        for row in range(given.rows):
            model(prompt, cache=cache.view([row]), last_only=True)

    @torch.inference_mode()
    def decode(groups: list[list[int]], rows: list[str]) -> torch.Tensor:
        for row in range(given.rows):
            cache.truncate(row, PROMPT)
        last = torch.empty(given.rows, model.config.vocab_size)
        for step in range(given.steps):
            for group in groups:
                ids = torch.full((len(group), 1), 100 + step)
                with shared.active([rows[row] for row in group]) as adapted:
                    logits = adapted(ids, cache=cache.view(group), last_only=True)
                last[group] = logits[:, -1]
        return last

    everyone = [list(range(given.rows))]
    apart = (decode(everyone, names) - decode(by_adapter, names)).abs().max()
    print(f"logits of the two ways differ by {apart:.1e} at most")
    own = sum(shared.num_bytes(name) for name in shared.names)
    base = weight_bytes(model)
    print(
        f"memory: {base / 1e6:.0f} MB base + {own / 1e6:.0f} MB of {given.adapters} adapters, "
        f"{given.adapters * base / 1e6 + own / 1e6:.0f} MB with a base for each"
    )
    seconds = take_turns(
        {
            "one forward": lambda: decode(everyone, names),
            "a forward per adapter": lambda: decode(by_adapter, names),
            "the base alone": lambda: decode(everyone, [""] * given.rows),
        },
        given.rounds,
    )
    report(
        "many_adapters",
        "tokens/s",
        given.rows * given.steps,
        seconds,
        base_bytes=base,
        adapter_bytes=own,
        largest_difference=float(apart),
        settings=vars(given),
    )


if __name__ == "__main__":
    main()
