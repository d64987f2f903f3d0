"""`kill -9` at random moments of a training: does it end with the same losses and the same weights?

    python bench/training_kills.py --kills 100

One process trains undisturbed; then others are killed at random and started again until they have
reached the end, as many times as it takes. All that moves in a training takes part: Muon's
momenta, an average of the weights, micro-batches, two batches of noise that the guard leaves out,
snapshots, and the weights of the lowest held-out loss. Prints how many of the losses, norms and
weights differ.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pairs import keep

STEPS, VOCAB, NOISE = 400, 64, (150, 300)


def train(folder: Path) -> None:
    """Train in `folder`, from what is there; writes result.json at the end."""
    import numpy as np
    import torch

    from lmworks.core.files import write_json
    from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
    from lmworks.models.model import Model
    from lmworks.training.batches import Batch
    from lmworks.training.objectives.causal import causal
    from lmworks.training.spikes import SpikeConfig
    from lmworks.training.tokens import PackedWindows, leading_windows
    from lmworks.training.trainer import Trainer
    from lmworks.training.trainer_config import LoopConfig

    torch.set_num_threads(1)
    config = ModelConfig.uniform(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        mixer=AttentionConfig(num_attention_heads=2, num_key_value_heads=1, head_dim=16),
        feed_forward=MLPConfig(intermediate_size=64),
        tie_word_embeddings=True,
        max_position_embeddings=32,
    )
    model = Model(config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    drawn = np.random.default_rng(3)
    tokens = ((np.arange(60_000) + drawn.integers(0, 3, 60_000)) % VOCAB).astype(np.int32)
    windows = PackedWindows(tokens, context_length=32, batch_size=4, seed=0)

    def batches(number: int) -> Batch:
        batch = windows(number)
        if number not in NOISE:
            return batch
        generator = torch.Generator().manual_seed(number)
        noise = torch.randint(0, VOCAB, batch.labels.shape, generator=generator)
        return dataclasses.replace(batch, labels=noise)

    loop = LoopConfig(
        eval_every=25,
        patience=100,
        ema=0.95,
        micro_batch_size=3,
        spikes=SpikeConfig(snapshot_every=50),
    )
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    heldout = leading_windows(np.arange(400) % VOCAB, context_length=32, count=8)
    trainer = Trainer(
        model, causal, batches, loop, num_steps=STEPS, heldout=heldout, work=work,
        checkpoint_every_s=0.1,
    )  # fmt: skip
    history = trainer.fit()
    weights = hashlib.sha256()
    for value in model.state_dict().values():
        weights.update(value.numpy().tobytes())
    write_json(
        folder / "result.json", dataclasses.asdict(history) | {"weights": weights.hexdigest()}
    )


def run_once(folder: Path, seconds: float | None) -> bool:
    """Start the training; kill it after `seconds` of work. Whether it reached the end."""
    child = subprocess.Popen([sys.executable, __file__, "--child", str(folder)])
    if seconds is not None:
        # Count from the first sign of work: what is killed before tells nothing.
        seen = len(list(folder.glob("work/*")))
        while child.poll() is None and len(list(folder.glob("work/*"))) <= seen and seen == 0:
            time.sleep(0.01)
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
    child.wait()
    return child.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        train(Path(options.child))
        return
    drawn = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as top:
        started = time.monotonic()
        assert run_once(Path(top) / "whole", None)
        whole_s = time.monotonic() - started
        expected = json.loads((Path(top) / "whole" / "result.json").read_text())
        assert expected["skipped"] == list(NOISE), expected["skipped"]
        kills = runs = differing = 0
        while kills < options.kills:
            folder = Path(top) / f"run{runs}"
            while not run_once(folder, drawn.uniform(0.3, 1.0) * whole_s * 0.6):
                kills += 1
            result = json.loads((folder / "result.json").read_text())
            differing += _differences(expected, result)
            runs += 1
            print(f"{kills} kills, {runs} runs, {differing} differing figures", flush=True)
    keep(
        "training_kills", kills=kills, runs=runs, steps=STEPS, differing=differing,
        skipped=expected["skipped"],
    )  # fmt: skip


def _differences(expected: dict[str, object], result: dict[str, object]) -> int:
    count = 0
    for name, values in expected.items():
        found = result[name]
        if isinstance(values, list) and isinstance(found, list) and len(values) == len(found):
            count += sum(a != b for a, b in zip(values, found, strict=True))
        else:
            count += values != found
    return count


if __name__ == "__main__":
    main()
