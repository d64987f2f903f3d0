"""Fifty steps of fine-tuning beside TRL's SFTTrainer, and what must not change them.

TRL's answers are recorded (`record_sft.py`); its masks come from `{% generation %}` tags, ours from
the same template without them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training import sft_setup as setup

from lmworks.models.load import load_language_model
from lmworks.models.model import Model
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.training.batches import Batch
from lmworks.training.callbacks.base import Callback
from lmworks.training.conversations import Conversations
from lmworks.training.history import History
from lmworks.training.objectives.causal import causal
from lmworks.training.optimizers.base import OptimizerConfig
from lmworks.training.spikes import SpikeConfig
from lmworks.training.trainer import Trainer
from lmworks.training.trainer_config import LoopConfig


class Killed(Exception):
    """Stands for the process dying."""


class DieAt(Callback):
    def __init__(self, step: int) -> None:
        self._step = step

    def after_step(self, trainer: Trainer, step: int) -> None:
        if step == self._step:
            raise Killed


def data(kind: str, tokenizer: Any, **options: Any) -> Conversations:
    rows = [{"messages": row} for row in setup.rows(kind)]
    settings = {"context_length": 1024, "batch_size": setup.ROWS_PER_STEP[kind], "seed": 0}
    return Conversations(rows, tokenizer, **(settings | options))


def train(
    model: Model, batches: Any, work: Path, kind: str = "tiny", die_at: int = -1, **loop: Any
) -> History:
    """TRL's schedule and rates; a checkpoint after each step."""
    work.mkdir(parents=True, exist_ok=True)
    config = LoopConfig(
        schedule="constant",
        warmup_steps=0,
        spikes=SpikeConfig(threshold=0),  # TRL takes every batch
        optimizer=OptimizerConfig(name="adamw", learning_rate=setup.RATES[kind], weight_decay=0.0),
        **loop,
    )
    return Trainer(
        model,
        causal,
        batches,
        config,
        num_steps=setup.NUM_STEPS,
        work=work,
        checkpoint_every_s=0.0 if die_at >= 0 else 1e9,
        callbacks=[DieAt(die_at)],
    ).fit()


def in_order(rows: Conversations, kind: str = "tiny") -> Any:
    size = setup.ROWS_PER_STEP[kind]
    return lambda step: rows.collate(range(step * size, (step + 1) * size))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return setup.tiny_tokenizer()


@pytest.fixture(scope="module")
def plain(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> History:
    model = setup.tiny_model(tokenizer.vocab_size)
    return train(model, in_order(data("tiny", tokenizer)), tmp_path_factory.mktemp("plain"))


def test_fifty_steps_are_those_of_trl(plain: History) -> None:
    oracle = setup.oracle("tiny")
    assert plain.loss == pytest.approx(oracle["loss"], abs=1e-5)
    assert plain.grad_norm == pytest.approx(oracle["grad_norm"], abs=1e-3)
    assert plain.loss[-1] < plain.loss[0] - 0.5


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(3600)
def test_fifty_steps_of_smollm2_are_those_of_trl(tmp_path: Path) -> None:
    model, tokenizer = load_language_model("smollm2-135m"), load_tokenizer("smollm2-135m")
    assert isinstance(tokenizer, PipelineTokenizer)
    vocabulary = dataclasses.replace(tokenizer.vocabulary, chat_template=setup.UNTAGGED)
    rows = data("smollm2", PipelineTokenizer(vocabulary))
    history = train(model, in_order(rows, "smollm2"), tmp_path, "smollm2")
    oracle = setup.oracle("smollm2")
    apart = np.abs(np.array(history.loss) - oracle["loss"]).max()
    norms_apart = np.abs(np.array(history.grad_norm) / oracle["grad_norm"] - 1).max()
    print(f"losses {apart:.1e} apart, gradient norms {norms_apart:.1e} of their size")
    assert apart <= 1e-5 and norms_apart <= 1e-3


def test_rows_one_at_a_time_are_the_same(plain: History, tokenizer: Any, tmp_path: Path) -> None:
    model = setup.tiny_model(tokenizer.vocab_size)
    history = train(model, in_order(data("tiny", tokenizer)), tmp_path, micro_batch_size=1)
    assert history.loss == pytest.approx(plain.loss, abs=1e-5)
    assert history.grad_norm == pytest.approx(plain.grad_norm, abs=1e-4)


def test_recomputed_activations_change_no_bit(
    plain: History, tokenizer: Any, tmp_path: Path
) -> None:
    model = setup.tiny_model(tokenizer.vocab_size)
    batches = in_order(data("tiny", tokenizer))
    history = train(model, batches, tmp_path, activation_checkpointing=True)
    assert history.loss == plain.loss and history.grad_norm == plain.grad_norm


def test_a_run_killed_at_step_25_goes_on_to_the_bit(
    plain: History, tokenizer: Any, tmp_path: Path
) -> None:
    batches = in_order(data("tiny", tokenizer))
    with pytest.raises(Killed):
        train(setup.tiny_model(tokenizer.vocab_size), batches, tmp_path, die_at=25)
    other = setup.tiny_model(tokenizer.vocab_size, seed=9)  # all weights come from the checkpoint
    history = train(other, batches, tmp_path)
    assert history.loss == plain.loss and history.grad_norm == plain.grad_norm


def test_packed_rows_are_the_unpacked_ones(tokenizer: Any) -> None:
    rows = data("tiny", tokenizer, context_length=256, packing=True, batch_size=2)
    model = setup.tiny_model(tokenizer.vocab_size)
    for step in range(5):
        packed = rows(step)
        documents = packed.inputs["documents"]
        loss = causal(model, packed)
        gradient = torch.autograd.grad(loss.value, list(model.parameters()))
        parts = [
            Batch(input_ids=ids[d == n][None], labels=labels[d == n][None])
            for ids, labels, d in zip(packed.input_ids, packed.labels, documents, strict=True)
            for n in range(1, int(d.max()) + 1)
        ]
        assert len(parts) > packed.num_rows
        alone = [(causal(model, part), part.num_targets) for part in parts]
        total = sum(count for _, count in alone)
        assert total == packed.num_targets
        mean = sum(each.value * count for each, count in alone) / total
        assert loss.value.item() == pytest.approx(mean.item(), abs=1e-6)
        expected = torch.autograd.grad(mean, list(model.parameters()))
        for ours, theirs in zip(gradient, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
