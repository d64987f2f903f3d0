"""One process of a test: trains tiny models under plans, and leaves what happened in a file.

`python worker.py CASES.json`; RANK and the like say which process this is. All cases go through
the same processes, since starting one takes longer than a case.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lmworks.core import processes
from lmworks.core.config import from_mapping
from lmworks.core.errors import UserError
from lmworks.models.config.patterns import Sizes, decoder_config
from lmworks.models.model import Model
from lmworks.training.batches import IGNORED, Batch, Texts
from lmworks.training.callbacks.base import Callback
from lmworks.training.embed import embedding_model
from lmworks.training.embedding_rows import EmbeddingBatch
from lmworks.training.objectives.base import build_objective
from lmworks.training.objectives.causal import causal
from lmworks.training.preferences.batches import EncodedAnswer, judged_batch, pair_batch
from lmworks.training.tokens import PackedWindows
from lmworks.training.trainer import Trainer
from lmworks.training.trainer_config import LoopConfig

VOCAB = 61


def model_of(spec: dict[str, Any]) -> Model:
    sizes = Sizes(
        hidden_size=spec.get("hidden", 32),
        num_attention_heads=spec.get("heads", 4),
        num_key_value_heads=spec.get("key_heads", 2),
        intermediate_size=spec.get("inner", 44),
        context_length=16,
        num_experts=4,
        num_experts_per_tok=2,
    )
    config = decoder_config(
        spec.get("layers", "attention"), depth=spec.get("depth", 2), vocab_size=VOCAB, sizes=sizes
    )
    config = dataclasses.replace(config, tie_word_embeddings=spec.get("tied", True))
    model = Model(config).double()
    model.reset_parameters(torch.Generator().manual_seed(0))
    return model


def batches_of(spec: dict[str, Any]) -> Any:
    random = np.random.default_rng(3)
    tokens = ((np.arange(4000) * 7 + random.integers(0, 3, 4000)) % VOCAB).astype(np.int32)
    windows = PackedWindows(tokens, context_length=16, batch_size=spec.get("batch", 8), seed=0)

    def answers(step: int) -> Batch:
        """Rows of unequal weight, one of them without any target; lengths change by step."""
        batch = windows(step)
        random = np.random.default_rng([5, step])
        labels = batch.labels.clone()
        for row in range(len(labels)):
            labels[row, : int(random.integers(0, 16))] = IGNORED
        labels[int(random.integers(len(labels)))] = IGNORED
        length = 16 - step % 3
        return Batch(input_ids=batch.input_ids[:, :length], labels=labels[:, :length])

    return answers if spec.get("answers", True) else windows


def ids_of(random: np.random.Generator, rows: int) -> torch.Tensor:
    """(rows, 9) ids that begin alike in a row and in the one that belongs to it."""
    return torch.from_numpy(random.integers(1, VOCAB, (rows, 9)))


def objective_of(spec: dict[str, Any], model: Model) -> tuple[Any, Any, Any]:
    """(objective, model, batches) of objectives that are no plain loss on tokens."""
    name = spec["objective"]
    rows = spec.get("batch", 8)
    if name == "in_batch":
        model = embedding_model(model, "mean").double()

    def batches(step: int) -> Any:
        random = np.random.default_rng([7, step])
        if name == "in_batch":
            anchors = ids_of(random, rows)
            mask = torch.ones_like(anchors)
            kept = anchors.clone()
            kept[:, ::3] = ids_of(random, rows)[:, ::3]
            return EmbeddingBatch(
                anchors=Texts(input_ids=anchors, attention_mask=mask),
                positives=Texts(input_ids=kept, attention_mask=mask),
                text_keys=torch.arange(rows)[:, None],
            )
        answers = [
            EncodedAnswer(ids=ids[: 5 + row % 4].numpy(), counted=np.arange(5 + row % 4) >= 2)
            for row, ids in enumerate(ids_of(random, rows))
        ]
        if name == "dpo":
            both = pair_batch(answers, answers[::-1], 0)
            return dataclasses.replace(
                both, reference={n: torch.full((rows,), -9.0) for n in ("chosen", "rejected")}
            )
        liked = [row % 2 == 0 for row in range(rows)]
        judged = judged_batch(answers, liked, 0, 16)
        return dataclasses.replace(
            judged, reference={n: torch.full((rows,), -9.0) for n in ("answers", "mismatched")}
        )

    settings = {"rows_at_once": spec.get("micro", 0)} if name != "dpo" else {}
    return build_objective(name, settings), model, batches


class Ending(Callback):
    """Stops, or dies, after a step."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec

    def after_step(self, trainer: Trainer, step: int) -> None:
        if step + 1 == self._spec.get("stop_after"):
            trainer._save(step + 1)
            trainer.stop("enough")
        if [processes.rank(), step] == self._spec.get("die"):
            os.kill(os.getpid(), signal.SIGKILL)


def train(spec: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    loop: dict[str, Any] = {
        "eval_every": 5,
        "warmup_steps": 3,
        "optimizer": {"name": spec.get("optimizer", "adamw"), "max_grad_norm": 0.5},
        "micro_batch_size": 0 if "objective" in spec else spec.get("micro", 0),
        "parallel": spec.get("parallel", {}),
    }
    work = Path(spec["work"])
    work.mkdir(parents=True, exist_ok=True)
    objective: Any = causal
    batches, model = batches_of(spec), model_of(spec)
    if "objective" in spec:
        objective, model, batches = objective_of(spec, model)
    seen: list[int] = []

    def noted(step: int) -> Any:
        batch = batches(step)
        if step < 1000:
            seen.append(int(batch.input_ids.sum()) if isinstance(batch, Batch) else step)
        return batch

    trainer = Trainer(
        model,
        objective,
        noted,
        from_mapping(LoopConfig, loop),
        num_steps=spec["steps"],
        heldout=[batches(1000), batches(1001)],
        work=work,
        checkpoint_every_s=spec.get("checkpoint_every_s", 1e9),
        callbacks=[Ending(spec)],
    )
    history = trainer.fit()
    return {
        "loss": history.loss,
        "grad_norm": history.grad_norm,
        "heldout": history.heldout_loss,
        "seen": seen,
        "weights": [float(p.detach().double().abs().sum()) for p in model.parameters()],
    }


def main(path: Path) -> int:
    cases = json.loads(path.read_text())
    try:
        with processes.watching("start it again"):
            results = [train(case) for case in cases]
    except UserError as error:
        print(error)
        return error.exit_code
    if processes.is_main():
        path.with_suffix(".out.json").write_text(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
