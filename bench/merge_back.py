"""What merging an adapter into blocks keeps of a small gain, type by type, against rounding anew.

A small Llama is trained from scratch on chains of words, written as a GGUF file of each type, and a
LoRA learns, on the blocks, chains with another habit. Gains are on chains that nobody saw:

    python bench/merge_back.py --types Q4_0 Q4_1 Q8_0 Q4_K Q6_K
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from lmworks.cli.main import main as lmworks
from lmworks.core.stages import Artifact
from lmworks.models.adapters.base import add_adapter
from lmworks.models.adapters.files import save_adapter
from lmworks.models.adapters.lora import LoRAConfig
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig, RoPEConfig
from lmworks.models.load import load_language_model
from lmworks.models.model import Model
from lmworks.models.save import save_model
from lmworks.tokenizers.train import train_bpe

WIDTH, LAYERS, LENGTH = 256, 2, 48
NUM_WORDS = 60
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def words() -> list[str]:
    random = np.random.default_rng(0)
    return ["".join(random.choice(list(LETTERS), 4)) for _ in range(NUM_WORDS)]


def chain(seed: int, skips: float) -> str:
    """Words that follow each other in order; a share `skips` of the steps leaves one out."""
    random, all_words = np.random.default_rng(seed), words()
    at, out = int(random.integers(NUM_WORDS)), []
    for _ in range(60):
        out.append(all_words[at % NUM_WORDS])
        draw = random.random()
        at = int(random.integers(NUM_WORDS)) if draw > 0.9 else at + (2 if draw < skips else 1)
    return " ".join(out)


def learn(model: Any, parameters: Any, tokens: torch.Tensor, steps: int, rate: float) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        ids = tokens[torch.arange(step * 8, step * 8 + 8) % len(tokens)]
        loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def rows(tokenizer: Any, seeds: range, skips: float) -> torch.Tensor:
    return torch.tensor([tokenizer.encode(chain(seed, skips))[:LENGTH] for seed in seeds])


def write(path: Path, seeds: range, skips: float) -> None:
    made = [
        {"id": f"d{i}", "title": "t", "source": "s", "group": f"g{i}", "text": chain(i, skips)}
        for i in seeds
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")


def base(folder: Path, steps: int) -> Any:
    """A model that knows chains without skips, in `folder`; its tokenizer."""
    tokenizer = train_bpe([chain(seed, 0.0) for seed in range(40)], vocab_size=400)
    config = ModelConfig.uniform(
        vocab_size=tokenizer.vocab_size,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        mixer=AttentionConfig(
            num_attention_heads=4, num_key_value_heads=2, head_dim=64, rope=RoPEConfig(theta=1e4)
        ),
        feed_forward=MLPConfig(intermediate_size=2 * WIDTH),
        max_position_embeddings=128,
    )
    model = Model(config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    learn(model, model.parameters(), rows(tokenizer, range(800), 0.1), steps, 2e-3)
    save_model(model, folder, tokenizer=tokenizer)
    return tokenizer


def measure(folder: Path, tokenizer: Any, kind: str, steps: int) -> dict[str, Any]:
    out, made = folder / kind, ["--out", str(folder / kind / "file")]
    source = ["--model", str(folder / "base"), "--type", kind]
    assert lmworks(["--quiet", "compress", "quantize", *source, *made]) == 0
    model = load_language_model(out / "file", packed=True)
    adapter = add_adapter(model, LoRAConfig(rank=4, alpha=8.0))
    learn(model, adapter.parameters, rows(tokenizer, range(2000, 2400), 0.25), steps, 4e-4)
    save_adapter(adapter, out / "adapter", base=str(out / "file"))
    given = ["--adapter", str(out / "adapter"), "--calibration", str(folder / "corpus")]
    merge = ["compress", "merge-adapter", *given, "--out", str(out / "merged")]
    assert lmworks(["--quiet", *merge]) == 0
    return Artifact.load(out / "merged").metrics


def shown(kept: dict[str, Any]) -> str:
    return f"{kept['estimate']:6.1%} ({kept['low']:.1%} to {kept['high']:.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", nargs="+", default=["Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K"])
    parser.add_argument("--base-steps", type=int, default=150)
    parser.add_argument("--adapter-steps", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        write(folder / "corpus" / "train.jsonl", range(3000, 3060), 0.25)
        write(folder / "corpus" / "heldout.jsonl", range(4000, 4080), 0.25)
        tokenizer = base(folder / "base", options.base_steps)
        print("type   bits/byte base, adapted   kept, solved for            kept, rounded anew")
        for kind in options.types:
            found = measure(folder, tokenizer, kind, options.adapter_steps)
            bits = found["bits_per_byte"]
            print(
                f"{kind}   {bits['base']:.4f}  {bits['adapted']:.4f}   "
                f"{shown(found['gain_kept'])}   {shown(found['gain_kept_rounded'])}",
                flush=True,
            )


if __name__ == "__main__":
    main()
