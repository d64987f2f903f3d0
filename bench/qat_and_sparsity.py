"""Training on the grid, and zeros that stay: a small model of bytes, with paired intervals.

    python bench/qat_and_sparsity.py

Trains a decoder of 128 channels on Python's documentation, then takes it further: as it is, and on
the grid of a GGUF type; and half of its weights at zero by three methods, before and after a
training that keeps them. Losses are on held-out texts, in nats per byte, of the model that is
exported; differences are paired by text.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import numpy as np
import torch

from lmworks.compression.quantize import encode
from lmworks.compression.sparsify import sparsify_model
from lmworks.core.gguf import dequantize
from lmworks.data.python_docs import read_python_docs
from lmworks.evaluation.statistics import mean_interval
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
from lmworks.models.model import Model
from lmworks.training.batches import Batch
from lmworks.training.callbacks.keep_zeros import KeepZeros
from lmworks.training.objectives.causal import causal
from lmworks.training.quantization_aware import rounded_weights
from lmworks.training.trainer import Trainer
from lmworks.training.trainer_config import LoopConfig

LENGTH, ROWS, TEXTS = 96, 8, 128
KIND, FIRST, THEN = "Q4_0", 200, 60


def windows() -> tuple[torch.Tensor, torch.Tensor]:
    """(training, held out) rows of bytes."""
    text = b""
    for document in read_python_docs():
        text += document.text.encode() + b"\n\n"
        if len(text) > 600_000:
            break
    rows = np.frombuffer(text[: len(text) // (LENGTH + 1) * (LENGTH + 1)], np.uint8)
    rows = np.random.default_rng(0).permutation(rows.reshape(-1, LENGTH + 1)).astype(np.int64)
    found = torch.from_numpy(rows)
    return found[TEXTS:], found[:TEXTS]


TRAIN, HELDOUT = windows()


def train(model: Model, steps: int, seed: int, *, qat: str = "", keep: bool = False) -> Model:
    """The same model, trained on."""
    order = torch.from_numpy(np.random.default_rng(seed).integers(0, len(TRAIN), (steps, ROWS)))

    def batches(number: int) -> Batch:
        rows = TRAIN[order[number % steps]]
        return Batch(input_ids=rows[:, :-1], labels=rows[:, 1:])

    loop = LoopConfig(warmup_steps=10, eval_every=10_000)
    callbacks = [KeepZeros(model)] if keep else []
    with tempfile.TemporaryDirectory() as work, rounded_weights(model, qat):
        Trainer(
            model, causal, batches, loop, num_steps=steps, work=Path(work), seed=seed,
            checkpoint_every_s=1e9, callbacks=callbacks,
        ).fit("training")  # fmt: skip
    return model.eval()


def exported(model: Model) -> Model:
    """As a file of the type gives it back."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            tensor = encode(name, parameter.detach().numpy(), KIND)
            parameter.copy_(torch.tensor(dequantize(tensor)))
    return other


def losses(model: Model) -> np.ndarray:
    """Nats per byte of each held-out text."""
    with torch.inference_mode():
        logits = model(HELDOUT[:, :-1])
        cross = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), HELDOUT[:, 1:].flatten(), reduction="none"
        )
    return cross.view(len(HELDOUT), -1).mean(1).numpy()


def tell(name: str, found: np.ndarray, than: np.ndarray | None = None) -> None:
    line = f"{name:44} {found.mean():.4f}"
    if than is not None:
        d = mean_interval(found - than)
        line += f"   {d.estimate:+.4f} [{d.low:+.4f}, {d.high:+.4f}]"
    print(line, flush=True)


def main() -> None:
    torch.set_num_threads(1)
    config = ModelConfig.uniform(
        vocab_size=256, hidden_size=128, num_hidden_layers=4,
        mixer=AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=32),
        feed_forward=MLPConfig(intermediate_size=256), max_position_embeddings=256,
        tie_word_embeddings=True,
    )  # fmt: skip
    base = Model(config)
    base.reset_parameters(torch.Generator().manual_seed(0))
    train(base, FIRST, 0)
    start = losses(base)
    tell("trained, float32", start)
    plain = train(copy.deepcopy(base), THEN, 1)
    aware = train(copy.deepcopy(base), THEN, 1, qat=KIND)
    float32, rounded = losses(plain), losses(exported(plain))
    tell("trained on, float32", float32)
    tell(f"trained on, then {KIND}, against float32", rounded, float32)
    tell(f"trained on the grid, {KIND}, against float32", losses(exported(aware)), float32)
    tell(f"trained on the grid, {KIND}, against rounded", losses(exported(aware)), rounded)
    rows = [row.numpy() for row in TRAIN[:64, :-1]]
    for pattern in (0.5, (2, 4)):
        for method in ("magnitude", "wanda", "sparsegpt"):
            sparse = copy.deepcopy(plain)
            sparsify_model(sparse, pattern, method, rows)
            tell(f"{pattern} of the weights, {method}, against float32", losses(sparse), float32)
            if pattern != 0.5 and method != "wanda":
                train(sparse, THEN, 2, keep=True)
                tell("    and trained on with its zeros", losses(sparse), float32)


if __name__ == "__main__":
    main()
