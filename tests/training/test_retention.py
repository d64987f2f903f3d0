"""Tuning without forgetting: each method's formula, and budgets that are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.training.tiny import tiny_model

from lmworks.core.errors import UserError
from lmworks.models.model import Model
from lmworks.training.batches import Batch
from lmworks.training.callbacks.base import Callback
from lmworks.training.callbacks.forgetting import Forgetting
from lmworks.training.callbacks.same_data import SameData
from lmworks.training.objectives.causal import causal
from lmworks.training.optimizers.base import OptimizerConfig
from lmworks.training.retention.base import RETENTIONS, HeldObjective, Mixed, build_retention
from lmworks.training.retention.config import RetentionConfig, parse_budget
from lmworks.training.retention.ewc import fisher_diagonal
from lmworks.training.tokens import PackedWindows, leading_windows
from lmworks.training.trainer import Trainer
from lmworks.training.trainer_config import LoopConfig

VOCAB, LENGTH = 32, 16


def text(seed: int, step: int) -> np.ndarray:
    """A noisy walk through the alphabet, `step` letters at a time."""
    random = np.random.default_rng(seed)
    return ((np.arange(3000) * step + random.integers(0, 2, 3000)) % VOCAB).astype(np.int32)


def windows(step: int, seed: int = 0) -> PackedWindows:
    return PackedWindows(text(1, step), context_length=LENGTH, batch_size=4, seed=seed)


def fresh(seed: int = 0) -> Model:
    return tiny_model(VOCAB, seed, layers=1, heads=(2, 2), inner=32, length=LENGTH)


LOOP = LoopConfig(
    schedule="constant",
    warmup_steps=0,
    optimizer=OptimizerConfig(name="adamw", learning_rate=1e-2, weight_decay=0.0),
)
GENERAL, TASK = 1, 5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """A model that knows the general text."""
    model = fresh()
    work = tmp_path_factory.mktemp("base")
    Trainer(model, causal, windows(GENERAL), LOOP, num_steps=60, work=work).fit()
    return {name: value.clone() for name, value in model.state_dict().items()}


def based(base: dict[str, torch.Tensor]) -> Model:
    model = fresh(7)
    model.load_state_dict(base)
    return model


class DieAt(Callback):
    def __init__(self, step: int) -> None:
        self._step = step

    def after_step(self, trainer: Trainer, step: int) -> None:
        if step == self._step:
            raise KeyError("killed")


def tune(
    model: Model,
    work: Path,
    method: str = "none",
    budget: float | None = None,
    *,
    steps: int = 30,
    die_at: int = -1,
    stops: bool = False,
) -> tuple[Trainer, Forgetting]:
    work.mkdir(exist_ok=True)
    settings = RetentionConfig(coefficient=0.05, fisher_windows=8)
    retention = build_retention(method, model, windows(GENERAL), settings, 0.25)
    mixed = Mixed(
        windows(TASK), windows(GENERAL), retention.strength if retention.rehearses else 0.0
    )
    watch = Forgetting(
        leading_windows(text(2, GENERAL), context_length=LENGTH, count=16),
        every=3,
        budget=budget,
        retention=retention,
        mixed=mixed,
        stops=stops,
    )
    trainer = Trainer(
        model,
        HeldObjective(causal, retention),
        mixed,
        LOOP,
        num_steps=steps,
        heldout=leading_windows(text(3, TASK), context_length=LENGTH, count=8),
        work=work,
        checkpoint_every_s=0.0 if die_at >= 0 else 1e9,
        callbacks=[watch, DieAt(die_at)],
    )
    trainer.fit()
    return trainer, watch


def test_all_are_forgotten_without_a_budget(base: dict[str, torch.Tensor], tmp_path: Path) -> None:
    trainer, watch = tune(based(base), tmp_path)
    assert watch.forgotten > 0.5
    assert trainer.history.heldout_loss[-1] < trainer.history.heldout_loss[0] - 1


@pytest.mark.parametrize("method", RETENTIONS)
@pytest.mark.parametrize("budget", [0.02, 0.3])
def test_budgets_are_kept(
    base: dict[str, torch.Tensor], tmp_path: Path, method: str, budget: float
) -> None:
    model = based(base)
    trainer, watch = tune(model, tmp_path, method, budget)
    assert watch.limit is not None and watch.base is not None
    assert watch.looks[-1][1] <= watch.limit
    general = leading_windows(text(2, GENERAL), context_length=LENGTH, count=16)
    with torch.no_grad():
        losses = [causal(model, batch) for batch in general]
    total = sum(loss.num_targets for loss in losses)
    mean = sum(loss.value.item() * loss.num_targets for loss in losses) / total
    assert mean == pytest.approx(watch.looks[-1][1], abs=1e-6)
    if method == "interpolate" and budget == 0.3:
        assert any(event["kind"] == "budget" for event in trainer.history.events)


def test_methods_forget_less_than_none(base: dict[str, torch.Tensor], tmp_path: Path) -> None:
    forgotten = {}
    for method in ("none", "replay", "kl", "ewc", "l2"):
        _, watch = tune(based(base), tmp_path / method, method)
        forgotten[method] = watch.forgotten
    assert max(v for k, v in forgotten.items() if k != "none") < forgotten["none"]
    assert forgotten["replay"] < 0.5 * forgotten["none"] > 2 * forgotten["kl"]


def test_stopping_hands_back_the_last_weights_within_budget(
    base: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    trainer, watch = tune(based(base), tmp_path, "none", 0.02, stops=True)
    assert len(trainer.history.loss) < 30
    kinds = [event["kind"] for event in trainer.history.events]
    assert kinds == ["stop", "budget"]
    assert watch.limit is not None and watch.looks[-1][1] <= watch.limit


def test_a_run_under_a_budget_resumes_to_the_bit(
    base: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    whole, cut = based(base), based(base)
    expected, watch = tune(whole, tmp_path / "whole", "replay", 0.02)
    assert watch.state_dict()["changes"][1:]  # the share was raised on the way
    with pytest.raises(KeyError, match="killed"):
        tune(cut, tmp_path / "cut", "replay", 0.02, die_at=17)
    resumed = based(base)
    history = tune(resumed, tmp_path / "cut", "replay", 0.02)[0].history
    assert history == expected.history
    for left, right in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right)


def test_shares_of_steps_are_pure_and_may_change() -> None:
    mixed = Mixed(windows(TASK), windows(GENERAL), 0.25)
    before = [mixed(step).source for step in range(40)]
    assert before.count("general text") == 10
    mixed.change(20, 0.5)
    after = [mixed(step).source for step in range(40)]
    assert after[:20] == before[:20] and after[20:].count("general text") == 10
    task = [mixed(s) for s in range(40) if not mixed(s).source]
    for number, batch in enumerate(task):  # no batch of the task is passed over
        assert batch.input_ids.equal(windows(TASK)(number).input_ids)


def held(name: str, model: Model, **settings: Any) -> Any:
    return build_retention(name, model, windows(GENERAL), RetentionConfig(**settings), 0.25)


def moved(model: Model) -> Model:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def test_kl_is_that_of_torch_and_nothing_at_the_base(base: dict[str, torch.Tensor]) -> None:
    model = based(base)
    method, batch = held("kl", model), windows(GENERAL)(0)
    assert method.learn(model, batch).value.item() == pytest.approx(0, abs=1e-6)
    moved(model)
    with torch.no_grad():
        theirs = based(base)(batch.input_ids).log_softmax(-1).flatten(0, 1)
    ours = model(batch.input_ids).log_softmax(-1).flatten(0, 1)
    expected = F.kl_div(ours, theirs, log_target=True, reduction="batchmean")
    loss = method.learn(model, batch)
    assert loss.value.item() == pytest.approx(expected.item(), abs=1e-6)
    found = torch.autograd.grad(loss.value, list(model.parameters()))
    for left, right in zip(
        found, torch.autograd.grad(expected, list(model.parameters())), strict=True
    ):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


def test_penalties_are_their_formulas(base: dict[str, torch.Tensor]) -> None:
    model = based(base)
    ewc, l2 = held("ewc", model, coefficient=0.4, fisher_windows=4), held("l2", model)
    assert ewc.penalty(model).item() == l2.penalty(model).item() == 0
    moved(model)
    start = based(base).state_dict()
    squares = {n: (p.detach() - start[n]).square() for n, p in model.named_parameters()}
    expected = sum(float(s.sum()) for s in squares.values()) * 0.01 / 2
    assert l2.penalty(model).item() == pytest.approx(expected, rel=1e-5)
    weighted = sum(float((ewc.fisher[n] * s).sum()) for n, s in squares.items()) * 0.4 / 2
    assert ewc.penalty(model).item() == pytest.approx(weighted, rel=1e-5)


def test_the_fisher_is_the_mean_square_of_scores(base: dict[str, torch.Tensor]) -> None:
    """For the embedding's rows of letters that never occur nothing may be known."""
    model = based(base)
    fisher = fisher_diagonal(model, windows(GENERAL), 8)
    everything = torch.cat([f.flatten() for f in fisher.values()])
    assert everything.mean().item() == pytest.approx(1, rel=1e-4) and (everything >= 0).all()
    # The expectation over the model's own labels, of one window and one parameter, by enumeration.
    batch = Batch(
        input_ids=windows(GENERAL)(0).input_ids[:1, :1], labels=torch.zeros(1, 1, dtype=torch.int64)
    )
    logits = model(batch.input_ids)[0, 0]
    vector = dict(model.named_parameters())["norm.weight"]
    exact = torch.zeros_like(vector)
    for label in range(VOCAB):
        gradient = torch.autograd.grad(logits.log_softmax(-1)[label], vector, retain_graph=True)[0]
        exact += logits.softmax(-1)[label].detach() * gradient.square()
    many = fisher_diagonal(model, lambda number: batch, 3000)["norm.weight"]
    torch.testing.assert_close(many / many.mean(), exact / exact.mean(), rtol=0.25, atol=0.1)
    with pytest.raises(UserError, match="at least one"):
        fisher_diagonal(model, windows(GENERAL), 0)


@pytest.mark.parametrize(
    ("given", "share"), [("1%", 0.01), ("0.01", 0.01), (" 2.5% ", 0.025), ("0", 0.0), ("", None)]
)
def test_budgets_are_read(given: str, share: float | None) -> None:
    assert parse_budget(given) == (None if share is None else pytest.approx(share))


@pytest.mark.parametrize("given", ["one", "-1%", "nan", "1%%", "inf"])
def test_bad_budgets_are_refused(given: str) -> None:
    with pytest.raises(UserError, match=r"write a share as 1% or 0\.01"):
        parse_budget(given)


def test_other_data_than_the_checkpoints_are_named(tmp_path: Path) -> None:
    def run(fingerprint: str, die_at: int = -1) -> None:
        Trainer(
            fresh(),
            causal,
            windows(TASK),
            LOOP,
            num_steps=6,
            work=tmp_path,
            checkpoint_every_s=0.0,
            callbacks=[SameData({"the conversations": fingerprint}), DieAt(die_at)],
        ).fit()

    with pytest.raises(KeyError):
        run("a", die_at=3)
    with pytest.raises(UserError, match=r"the conversations changed since step 3 was saved"):
        run("b")
    run("a")
