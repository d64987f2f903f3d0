"""Whether it fits, what to lower if not, and what is said when memory runs out all the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from lmworks.core.errors import UserError
from lmworks.models.config.patterns import Sizes, decoder_config
from lmworks.models.model import Model
from lmworks.training import memory_advice
from lmworks.training.batches import Batch
from lmworks.training.estimating import forecast
from lmworks.training.memory_advice import what_to_lower
from lmworks.training.memory_estimate import MemoryEstimate
from lmworks.training.objectives.base import Loss
from lmworks.training.objectives.causal import causal
from lmworks.training.pretrain import PretrainConfig
from lmworks.training.speed import speed, training_flops
from lmworks.training.step_clock import StepClock
from lmworks.training.trainer import Trainer
from lmworks.training.trainer_config import LoopConfig

CONFIG = PretrainConfig(corpus="-", tokenizer="-", depth=2, batch_size=16, context_length=64)


def made_up(loop: LoopConfig) -> MemoryEstimate:
    """100 for the weights, 10 a row, 2 where layers are computed again."""
    peak = 100 + (loop.micro_batch_size or 16) * (2 if loop.activation_checkpointing else 10)
    parts = {"weights": 60, "optimizer": 40}
    return MemoryEstimate(peak=peak, baseline=0, live=peak, parts=parts, when="backward")


@pytest.mark.parametrize(
    ("limit", "rows", "again"), [(200, 8, False), (145, 4, False), (111, 1, False), (107, 2, True)]
)
def test_the_cheapest_change_that_fits_is_named(limit: int, rows: int, again: bool) -> None:
    advice = what_to_lower(made_up, LoopConfig(), 16, limit)
    assert advice.loop == LoopConfig(micro_batch_size=rows, activation_checkpointing=again)
    assert advice.estimate.peak <= limit
    assert f"loop.micro_batch_size={rows}" in advice.words
    assert ("activation_checkpointing=true" in advice.words) == again


def test_where_nothing_fits_the_nearest_is_said() -> None:
    advice = what_to_lower(made_up, LoopConfig(), 16, 90)
    assert advice.loop is None
    assert advice.estimate.peak == 102
    assert "0 MB too much" in advice.words and "adamw_8bit" in advice.words


def test_the_advice_fits_by_its_own_estimate() -> None:
    whole = forecast(CONFIG, 512)
    assert whole.fits is None and not whole.advice
    limit = whole.estimate.baseline + (whole.estimate.peak - whole.estimate.baseline) // 2
    told = forecast(CONFIG, 512, limit=limit)
    assert told.fits is False
    size = int(told.advice.split("loop.micro_batch_size=")[1].split()[0])
    smaller = dataclasses.replace(CONFIG, loop=LoopConfig(micro_batch_size=size))
    assert forecast(smaller, 512, limit=limit).fits


def trainer(work: Path, objective: object = causal) -> Trainer:
    model = Model(decoder_config("attention", depth=1, vocab_size=64, sizes=Sizes(hidden_size=64)))
    model.reset_parameters(torch.Generator().manual_seed(0))
    ids = torch.randint(64, (8, 32), generator=torch.Generator().manual_seed(0))
    batch = Batch(input_ids=ids, labels=ids)
    return Trainer(
        model,
        objective,  # type: ignore[arg-type]
        lambda number: batch,
        LoopConfig(),
        num_steps=2,
        work=work,
    )


def test_what_can_not_fit_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_advice, "usable_memory", lambda: 1_000_000)
    with pytest.raises(UserError, match=r"out of memory before it starts: it takes about"):
        trainer(tmp_path).fit()


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")],
)
def test_running_out_of_memory_says_what_to_lower(tmp_path: Path, error: Exception) -> None:
    calls = []

    def objective(model: Model, batch: Batch) -> Loss:
        calls.append(batch.num_rows)
        if len(calls) == 2:
            raise error
        return causal(model, batch)

    with pytest.raises(UserError, match=r"out of memory at step 1: it takes about .*optimizer"):
        trainer(tmp_path, objective).fit()


def test_other_errors_pass(tmp_path: Path) -> None:
    def objective(model: Model, batch: Batch) -> Loss:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        trainer(tmp_path, objective).fit()


def test_the_parts_of_the_time_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(now)))
    clock = StepClock()  # 0
    with clock.part("forward"), clock.part("data"):  # 1, 2, 3, 4
        pass
    assert clock.seconds() == {"data": 1.0, "forward": 2.0, "other": 2.0}  # 5


def test_a_training_tells_its_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMWORKS_CACHE", str(tmp_path / "cache"))
    run = trainer(tmp_path)
    history = run.fit()
    told = speed(history, run.model)
    assert history.tokens == 2 * 8 * 32 and history.row_length == 32
    assert 0 < told["mfu"] < 1.5 and told["tokens_per_s"] > 0
    assert sum(told["time"].values()) == pytest.approx(1, abs=1e-3)
    assert {"forward", "backward", "optimizer"} <= told["time"].keys()
    for parameter in run.model.parameters():
        parameter.requires_grad_(False)
    frozen = training_flops(run.model, 32)
    for parameter in run.model.parameters():
        parameter.requires_grad_(True)
    assert training_flops(run.model, 32) == pytest.approx(1.5 * frozen)
