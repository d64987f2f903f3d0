"""What a training may do beside its steps: none of it may change what it should not."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training import tiny

from lmworks.core.errors import UserError
from lmworks.models.model import Model
from lmworks.training.batches import IGNORED, Batch, micro_batches
from lmworks.training.callbacks.base import Callback
from lmworks.training.history import History
from lmworks.training.objectives.base import Loss, build_objective
from lmworks.training.objectives.causal import causal
from lmworks.training.optimizers.base import OptimizerConfig
from lmworks.training.spikes import SpikeConfig, batch_number
from lmworks.training.tokens import PackedWindows, leading_windows
from lmworks.training.trainer import Trainer
from lmworks.training.trainer_config import LoopConfig

VOCAB, STEPS = 64, 60
ADAMW = OptimizerConfig(name="adamw", learning_rate=5e-3)
LOOP = LoopConfig(eval_every=10, warmup_steps=5, optimizer=ADAMW)


def tiny_model(seed: int = 0) -> Model:
    return tiny.tiny_model(VOCAB, seed)


def windows(step: int) -> Batch:
    random = np.random.default_rng(3)
    tokens = ((np.arange(3000) + random.integers(0, 3, 3000)) % VOCAB).astype(np.int32)
    return PackedWindows(tokens, context_length=32, batch_size=4, seed=0)(step)


def ragged(step: int) -> Batch:
    """Rows with very different numbers of targets, one with none."""
    batch = windows(step)
    labels = batch.labels.clone()
    for row, asked in enumerate((32, 3, 0, 11)):
        labels[row, asked:] = IGNORED
    return dataclasses.replace(batch, labels=labels)


def fit(
    work: Path,
    model: Model | None = None,
    batches: Any = windows,
    loop: LoopConfig = LOOP,
    objective: Any = causal,
    num_steps: int = STEPS,
    **options: Any,
) -> tuple[History, Model]:
    work.mkdir(exist_ok=True, parents=True)
    model = model or tiny_model()
    heldout = leading_windows(np.arange(200) % VOCAB, context_length=32, count=4)
    trainer = Trainer(
        model,
        objective,
        batches,
        loop,
        num_steps=num_steps,
        heldout=heldout,
        work=work,
        checkpoint_every_s=0.0,
        **options,
    )
    return trainer.fit(), model


def same(one: Model, other: Model, tolerance: float = 0.0) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(float((a - b).detach().abs().max()) <= tolerance for a, b in pairs)


@pytest.mark.parametrize("batches", [windows, ragged])
def test_micro_batches_give_what_the_whole_batch_gives(tmp_path: Path, batches: Any) -> None:
    small = dataclasses.replace(LOOP, micro_batch_size=1)
    whole, _ = fit(tmp_path / "a", tiny_model().double(), batches)
    parts, _ = fit(tmp_path / "b", tiny_model().double(), batches, small)
    assert parts.num_targets == whole.num_targets
    assert np.allclose(parts.loss, whole.loss, atol=1e-9)
    assert np.allclose(parts.grad_norm, whole.grad_norm, atol=1e-9)


def test_a_batch_that_asks_nothing_is_refused() -> None:
    batch = windows(0)
    nothing = dataclasses.replace(batch, labels=torch.full_like(batch.labels, IGNORED))
    with pytest.raises(UserError, match="no target at all"):
        next(micro_batches(nothing, 0))


def test_rows_cut_all_that_has_rows() -> None:
    batch = windows(0)
    mask = torch.ones(4, 32)
    batch = dataclasses.replace(batch, inputs={"attention_mask": mask, "name": "x"})
    cut = batch.rows(1, 3)
    assert cut.num_rows == 2
    assert torch.equal(cut.input_ids, batch.input_ids[1:3])
    assert cut.inputs["attention_mask"].shape == (2, 32)
    assert cut.inputs["name"] == "x"


def test_recomputed_layers_change_nothing(tmp_path: Path) -> None:
    kept, one = fit(tmp_path / "a", num_steps=10)
    again = dataclasses.replace(LOOP, activation_checkpointing=True)
    recomputed, other = fit(tmp_path / "b", loop=again, num_steps=10)
    assert recomputed.loss == kept.loss
    assert same(one, other)


def test_what_is_frozen_stays_and_is_not_saved(tmp_path: Path) -> None:
    model = tiny_model()
    model.embed_tokens.requires_grad_(False)
    before = model.embed_tokens.weight.clone()
    fit(tmp_path / "w", model, num_steps=10)
    assert torch.equal(model.embed_tokens.weight, before)
    state = torch.load(next((tmp_path / "w").glob("step-*.pt")), weights_only=True)
    assert "embed_tokens.weight" not in state["model"]
    assert "norm.weight" in state["model"]


# -- spikes ---------------------------------------------------------------------------------------


def spoiled(at: set[int]) -> Any:
    """Batches of which some numbers hold noise."""

    def batches(number: int) -> Batch:
        batch = windows(number)
        if number in at:
            random = torch.Generator().manual_seed(number)
            noise = torch.randint(0, VOCAB, batch.labels.shape, generator=random)
            return dataclasses.replace(batch, labels=noise)
        return batch

    return batches


def test_a_bad_batch_never_reaches_the_weights(tmp_path: Path) -> None:
    history, model = fit(tmp_path / "a", batches=spoiled({40, 41}), show=lambda rows: "the text")
    assert history.skipped == [40, 41]
    assert [event["kind"] for event in history.events] == ["spike", "spike"]
    assert "batch 40 is left out; its worst row is" in history.events[0]["message"]
    assert "'the text'" in history.events[0]["message"]

    def without(step: int) -> Batch:
        return windows(batch_number(step, [40, 41]))

    plain, other = fit(tmp_path / "b", batches=without)
    assert plain.loss == history.loss
    assert same(model, other)


def test_damaged_weights_go_back_to_the_snapshot(tmp_path: Path) -> None:
    class Damage(Callback):
        done = False

        def after_step(self, trainer: Trainer, step: int) -> None:
            if step == 44 and not self.done:
                self.done = True
                with torch.no_grad():
                    for parameter in trainer.model.parameters():
                        parameter.mul_(-3)

    loop = dataclasses.replace(LOOP, spikes=SpikeConfig(snapshot_every=20))
    history, _ = fit(tmp_path / "a", loop=loop, callbacks=[Damage()])
    assert history.skipped == [40, 41, 42, 43, 44, 45]
    assert [event["kind"] for event in history.events] == ["back"]
    assert "back to step 40, batches 40 to 45 are left out" in history.events[0]["message"]
    assert len(history.loss) == STEPS
    assert history.heldout_loss[-1] < 1.2 * fit(tmp_path / "b", loop=loop)[0].heldout_loss[-1]


def test_a_resume_after_spikes_is_bit_identical(tmp_path: Path) -> None:
    class Death(Callback):
        def after_step(self, trainer: Trainer, step: int) -> None:
            if step == 47:
                raise KeyboardInterrupt

    loop = dataclasses.replace(LOOP, ema=0.9, patience=50, spikes=SpikeConfig(snapshot_every=10))
    expected, whole = fit(tmp_path / "a", batches=spoiled({30, 52}), loop=loop)
    assert expected.skipped == [30, 52]
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "b", batches=spoiled({30, 52}), loop=loop, callbacks=[Death()])
    # callbacks are part of the state: the same ones again
    history, resumed = fit(
        tmp_path / "b", tiny_model(9), spoiled({30, 52}), loop, callbacks=[Callback()]
    )
    assert history == expected
    assert same(whole, resumed)


def test_losses_of_another_source_are_no_spikes(tmp_path: Path) -> None:
    bad = spoiled(set(range(0, 100, 7)))

    def mixed(number: int) -> Batch:
        return dataclasses.replace(bad(number), source="" if number % 7 else "noise")

    history, _ = fit(tmp_path / "a", batches=mixed)
    assert history.skipped == []


def test_too_many_spikes_end_the_run(tmp_path: Path) -> None:
    loop = dataclasses.replace(LOOP, spikes=SpikeConfig(limit=3))
    with pytest.raises(UserError, match=r"3 loss spikes until step 43, the limit"):
        fit(tmp_path / "a", batches=spoiled(set(range(40, 60, 2))), loop=loop)


def test_a_new_part_of_the_data_is_no_spike(tmp_path: Path) -> None:
    history, _ = fit(tmp_path / "a", batches=spoiled(set(range(40, 60))))
    assert history.skipped == [40, 41, 42]
    assert len(history.loss) == STEPS


def test_not_a_number_names_row_and_layer(tmp_path: Path) -> None:
    # Rows of the table in place of ids: what an image model's patches are.
    def rows(number: int) -> Batch:
        batch = windows(number)
        values = torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(number))
        values[2, 5, 7] = math.nan
        return dataclasses.replace(batch, input_ids=values)

    with pytest.raises(UserError, match=r"row 2 of the batch, first in the output of layers\.0"):
        fit(tmp_path / "a", batches=rows)


def test_a_weight_that_is_no_number_is_named(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.layers[1].feed_forward.down_proj.weight[0, 0] = math.nan  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"the weight layers\.1\.feed_forward\.down_proj\.weight"):
        fit(tmp_path / "a", model)


# -- averages, early stop, precision --------------------------------------------------------------


def test_an_average_of_the_weights_is_handed_back(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    class Look(Callback):
        def after_step(self, trainer: Trainer, step: int) -> None:
            seen.append(trainer.model.norm.weight.detach().clone())  # type: ignore[union-attr, operator]

    _, model = fit(
        tmp_path / "a", loop=dataclasses.replace(LOOP, ema=0.5), num_steps=6, callbacks=[Look()]
    )
    average = torch.ones(32)
    for n, weight in enumerate(seen, start=1):
        average = average.lerp(weight, 1 - min(0.5, (1 + n) / (10 + n)))
    assert model.norm is not None
    torch.testing.assert_close(model.norm.weight.detach(), average)


def test_patience_ends_the_run_and_goes_back_to_the_best(tmp_path: Path) -> None:
    # A rate so high that held-out loss rises after its first looks.
    high = OptimizerConfig(name="adamw", learning_rate=0.5, weight_decay=0.0)
    loop = LoopConfig(
        eval_every=2, warmup_steps=5, optimizer=high, patience=3, spikes=SpikeConfig(threshold=0)
    )
    history, model = fit(tmp_path / "a", loop=loop)
    assert len(history.loss) < STEPS
    assert [event["kind"] for event in history.events] == ["stop", "best"]
    heldout = leading_windows(np.arange(200) % VOCAB, context_length=32, count=4)
    with torch.no_grad():
        losses = [causal(model, batch).value.item() for batch in heldout]
    assert np.mean(losses) == pytest.approx(min(history.heldout_loss), abs=1e-6)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_as_float32_does(tmp_path: Path, precision: Any) -> None:
    full, _ = fit(tmp_path / "a", num_steps=20)
    half, _ = fit(tmp_path / "b", loop=dataclasses.replace(LOOP, precision=precision), num_steps=20)
    assert np.allclose(half.loss, full.loss, rtol=0.03)
    assert half.loss != full.loss


def test_an_overflow_of_float16_takes_no_step_and_lowers_the_scale(tmp_path: Path) -> None:
    model = tiny_model()

    def steep(model: Model, batch: Batch) -> Loss:
        loss = causal(model, batch)
        return dataclasses.replace(loss, value=loss.value * 1e34)

    loop = dataclasses.replace(LOOP, precision="float16")
    before = model.norm.weight.detach().clone()  # type: ignore[union-attr]
    history, _ = fit(tmp_path / "a", model, loop=loop, objective=steep, num_steps=3)
    assert not any(math.isfinite(norm) for norm in history.grad_norm)
    assert torch.equal(model.norm.weight.detach(), before)  # type: ignore[union-attr]


def test_an_unknown_setting_of_an_objective_is_named() -> None:
    assert build_objective("causal") is causal
    with pytest.raises(UserError, match="objective causal has no settings, so 'beta'"):
        build_objective("causal", {"beta": 1})
    with pytest.raises(UserError, match=r"did you mean 'causal'\?"):
        build_objective("casual")


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="device 'cuda:9' can't be used"):
        fit(tmp_path / "a", loop=dataclasses.replace(LOOP, device="cuda:9"))
