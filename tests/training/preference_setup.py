"""What the preference parity runs on, the same for TRL and for us: a model, a tokenizer, rows.

`tools/make_preference_oracles.py` asks TRL and keeps its answers; the tests ask us. Weights come
from NumPy by name, so that they are the same with any version of torch.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.training import tiny

from lmworks.models.config import ModelConfig
from lmworks.models.model import Model
from lmworks.models.save import save_model
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.train import train_bpe

NUM_STEPS, BATCH_SIZE = 50, 4
LEARNING_RATES = {"tiny": 1e-3, "smollm2": 1e-2}
# Where a step of that size makes losses leap, and with them what rounding has begun.
SMALLER_RATES = {"smollm2": {"ipo": 2e-5, "reward": 1e-3, "simpo": 1e-3}}
# AdamW's two moments of 135 million weights would be a gigabyte more, for nothing.
OPTIMIZERS = {"tiny": "adamw_torch", "smollm2": "sgd"}
# What our objective is told, and what their trainer is told.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "dpo": ("dpo", {"beta": 0.1}, {"beta": 0.1}),
    "dpo_sft": (
        "dpo",
        {"beta": 0.3, "nll_weight": 0.5},
        {"beta": 0.3, "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    ),
    "ipo": ("ipo", {"beta": 0.5}, {"beta": 0.5, "loss_type": ["ipo"]}),
    "kto": (
        "kto",
        {"beta": 0.1, "undesirable_weight": 1.5},
        {"beta": 0.1, "undesirable_weight": 1.5},
    ),
    "orpo": ("orpo", {"beta": 0.1}, {"beta": 0.1}),
    "simpo": (
        "simpo",
        {"beta": 2.0, "gamma": 1.0, "label_smoothing": 0.1},
        {
            "beta": 2.0,
            "simpo_gamma": 1.0,
            "label_smoothing": 0.1,
            "loss_type": "simpo",
            "cpo_alpha": 0.0,
        },
    ),
    "cpo_simpo": (
        "simpo",
        {"beta": 2.0, "gamma": 1.0, "nll_weight": 1.0},
        {"beta": 2.0, "simpo_gamma": 1.0, "loss_type": "simpo", "cpo_alpha": 1.0},
    ),
    "reward": ("reward", {"centring": 0.01}, {"center_rewards_coefficient": 0.01}),
}
# TRL's older trainers know texts only.
AS_TEXT = ("orpo", "simpo", "cpo_simpo")
_NOUNS = ("apple", "river", "lamp", "stone", "letter", "train", "garden", "window")


def rows(count: int, *, as_text: bool = False) -> list[dict[str, Any]]:
    """Pairs of short answers of several lengths; the same every time."""
    found = []
    for number in range(count):
        noun, other = _NOUNS[number % 8], _NOUNS[(number * 3 + 1) % 8]
        prompt = f"What is {number} {noun}s and {number % 5} {other}s?" + " Say it." * (number % 3)
        chosen = f" It is {number + number % 5} things" + "." * (number % 4)
        rejected = f" Nobody knows what {other}s are" + " at all" * (number % 3)
        row: dict[str, Any] = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        if not as_text:
            row = {
                name: [{"role": "user" if name == "prompt" else "assistant", "content": text}]
                for name, text in row.items()
            }
        found.append(row)
    return found


def batch_size(name: str, kind: str) -> int:
    """Pairs of a step, or answers: of a large model one pair, which is two rows of its own."""
    if kind == "tiny":
        return BATCH_SIZE
    return 2 if name == "kto" else 1


def learning_rate(name: str, kind: str) -> float:
    """The constant rate of a case."""
    return SMALLER_RATES.get(kind, {}).get(name, LEARNING_RATES[kind])


def is_text(name: str, kind: str) -> bool:
    """Whether rows are plain texts: SmolLM2's chat template would double their length."""
    return name in AS_TEXT or kind == "smollm2"


def judged_rows(count: int, *, as_text: bool = False) -> list[dict[str, Any]]:
    """Single answers with labels, out of the pairs."""
    return [
        {
            "prompt": row["prompt"],
            "completion": row["chosen" if number % 3 else "rejected"],
            "label": bool(number % 3),
        }
        for number, row in enumerate(rows(count, as_text=as_text))
    ]


@functools.cache
def tiny_tokenizer() -> PipelineTokenizer:
    """Byte-level BPE with a chat template, learnt from the rows."""
    texts = [" ".join(row.values()) for row in rows(40, as_text=True)]
    return train_bpe(texts, vocab_size=300)


def tiny_config(vocab_size: int) -> ModelConfig:
    """A Llama of two layers."""
    return tiny.tiny_config(
        vocab_size,
        hidden_size=64,
        heads=(4, 2),
        inner=96,
        length=128,
        tie_word_embeddings=False,
    )


def fill(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights by name out of NumPy: spread 0.08, norms near 1."""
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
            drawn = np.random.default_rng([seed, index]).standard_normal(parameter.shape)
            parameter.copy_(torch.from_numpy(drawn * 0.08 + ("norm" in name)))


def tiny_model() -> Model:
    """The language model of the parity runs."""
    model = Model(tiny_config(tiny_tokenizer().vocab_size))
    fill(model)
    return model.eval()


def write_tiny(folder: Path) -> None:
    """Model and tokenizer, as transformers reads them."""
    save_model(tiny_model(), folder, tokenizer=tiny_tokenizer())


def reward_head(size: int, kind: str) -> torch.Tensor:
    """(1, H): what the reward head begins with.

    SmolLM2's last states are long: wider weights than transformers begins with would make rewards
    of some tens, whose float32 roundings alone move a loss by 1e-5.
    """
    spread = 0.08 if kind == "tiny" else 0.02
    return torch.from_numpy(np.random.default_rng(7).standard_normal((1, size)) * spread).float()
