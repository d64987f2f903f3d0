"""The loop: resume is bit-exact, bad losses are named, steps equal a plain PyTorch loop."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.training import tiny

from lmworks.core.errors import UserError
from lmworks.models.config import MLPConfig, MoEConfig, RouterConfig
from lmworks.models.model import Model
from lmworks.training.batches import IGNORED, Batch
from lmworks.training.callbacks.base import Callback
from lmworks.training.checkpoint import load_checkpoint, save_checkpoint
from lmworks.training.objectives.base import Loss
from lmworks.training.objectives.causal import causal
from lmworks.training.optimizers.base import OptimizerConfig, build_optimizer
from lmworks.training.optimizers.muon import orthogonalize
from lmworks.training.tokens import PackedWindows, leading_windows
from lmworks.training.trainer import Trainer
from lmworks.training.trainer_config import LoopConfig

VOCAB = 64
DENSE = MLPConfig(intermediate_size=64)
EXPERTS = MoEConfig(num_experts=8, num_experts_per_tok=2, intermediate_size=32)


def tiny_model(seed: int = 0, feed_forward: MLPConfig | MoEConfig = DENSE) -> Model:
    return tiny.tiny_model(VOCAB, seed, feed_forward=feed_forward)


def windows(seed: int = 0) -> PackedWindows:
    # A noisy cycle: learnable, not trivial.
    random = np.random.default_rng(3)
    tokens = (np.arange(3000) + random.integers(0, 3, 3000)) % VOCAB
    return PackedWindows(tokens.astype(np.int32), context_length=32, batch_size=4, seed=seed)


class Killed(Exception):
    """Stands for the process dying at a step."""


def trainer(model: Model, work: Path, die_after: int | None = None, **options: object) -> Trainer:
    work.mkdir(exist_ok=True)

    class Death(Callback):
        def after_step(self, trainer: Trainer, step: int) -> None:
            if step == die_after:
                raise Killed

    settings: dict[str, object] = {"num_steps": 20, "checkpoint_every_s": 0.0} | options
    config = settings.pop("config", LoopConfig(eval_every=5))
    batches = settings.pop("batches", windows())
    return Trainer(
        model,
        settings.pop("objective", causal),  # type: ignore[arg-type]
        batches,  # type: ignore[arg-type]
        config,  # type: ignore[arg-type]
        heldout=leading_windows(np.arange(200) % VOCAB, context_length=32, count=4),
        work=work,
        callbacks=[Death(), *settings.pop("callbacks", ())],  # type: ignore[misc]
        **settings,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", ["muon", "adamw"])
@pytest.mark.parametrize("die_after", [0, 7, 18])
def test_resume_is_bit_identical(tmp_path: Path, name: str, die_after: int) -> None:
    config = LoopConfig(eval_every=5, optimizer=OptimizerConfig(name=name))
    whole = tiny_model()
    expected = trainer(whole, tmp_path / "whole", config=config).fit()

    broken = tiny_model()
    with pytest.raises(Killed):
        trainer(broken, tmp_path / "cut", die_after, config=config).fit()
    resumed = tiny_model(seed=99)  # every weight must come from the checkpoint
    history = trainer(resumed, tmp_path / "cut", config=config).fit()

    # A kill before the first checkpoint starts anew, from the caller's fresh weights.
    if die_after > 0:
        assert history == expected
        for (key, left), right in zip(
            whole.state_dict().items(), resumed.state_dict().values(), strict=True
        ):
            assert torch.equal(left, right), key


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_experts_are_trained_and_resumed_alike(tmp_path: Path, name: str) -> None:
    config = LoopConfig(eval_every=5, optimizer=OptimizerConfig(name=name))
    whole = tiny_model(feed_forward=EXPERTS)
    expected = trainer(whole, tmp_path / "whole", config=config).fit()
    assert expected.heldout_loss[-1] < expected.heldout_loss[0] - 0.5
    broken = tiny_model(feed_forward=EXPERTS)
    with pytest.raises(Killed):
        trainer(broken, tmp_path / "cut", 7, config=config).fit()
    resumed = tiny_model(seed=99, feed_forward=EXPERTS)
    assert trainer(resumed, tmp_path / "cut", config=config).fit() == expected
    assert {k: len(v) for k, v in expected.metrics.items()} == {"auxiliary": 20, "busiest": 20}
    for left, right in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right)


def test_the_auxiliary_loss_reaches_the_routers_and_no_figure(tmp_path: Path) -> None:
    batch = windows()(0)

    def step(coef: float) -> tuple[Loss, torch.Tensor]:
        router = RouterConfig(aux_loss_coef=coef)
        model = tiny_model(feed_forward=dataclasses.replace(EXPERTS, router=router)).train()
        loss = causal(model, batch)
        assert loss.auxiliary is not None
        (loss.value + loss.auxiliary).backward()
        gradient = model.get_parameter("layers.0.feed_forward.router.weight").grad
        assert gradient is not None
        return loss, gradient

    (light, small), (heavy, large) = step(0.01), step(10.0)
    assert torch.equal(light.value, heavy.value)
    assert heavy.metrics["auxiliary"] == pytest.approx(1000 * light.metrics["auxiliary"], rel=1e-5)
    assert light.metrics["busiest"] >= 1
    assert large.norm() > 10 * small.norm()
    with torch.no_grad():
        loss = causal(tiny_model(feed_forward=EXPERTS).eval(), batch)
    assert loss.auxiliary is None
    assert not loss.metrics


def test_muon_treats_each_expert_as_a_matrix_of_its_own() -> None:
    settings = OptimizerConfig(weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    stacked = torch.nn.Module()
    stacked.experts = torch.nn.Parameter(torch.randn(3, 6, 10, generator=generator))
    apart = torch.nn.ParameterList([stacked.experts[i].detach().mT.clone() for i in range(3)])
    for module in (stacked, apart):
        module.register_parameter("vector", torch.nn.Parameter(torch.zeros(1)))
    optimizers = [build_optimizer(stacked, settings), build_optimizer(apart, settings)]
    for _ in range(2):
        gradient = torch.randn(3, 6, 10, generator=generator)
        stacked.experts.grad = gradient
        for one, other in zip(list(apart)[:3], gradient, strict=True):
            one.grad = other.mT.clone()
        for optimizer in optimizers:
            optimizer.step(1.0)
    for one, other in zip(list(apart)[:3], stacked.experts, strict=True):
        torch.testing.assert_close(one.mT, other, rtol=1e-4, atol=1e-6)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    history = trainer(tiny_model(), tmp_path / "w", num_steps=60).fit()
    assert history.heldout_step == [*range(0, 60, 5), 60]
    assert history.heldout_loss[-1] < history.heldout_loss[0] - 1.0
    assert history.num_targets == 60 * 4 * 32


def test_adamw_steps_equal_a_plain_pytorch_loop(tmp_path: Path) -> None:
    settings = OptimizerConfig(name="adamw", learning_rate=1e-2, weight_decay=0.1)
    config = LoopConfig(warmup_steps=1, schedule="linear", optimizer=settings)
    ours = tiny_model()
    history = trainer(ours, tmp_path / "w", num_steps=5, config=config).fit()

    plain = tiny_model()
    decayed = [p for p in plain.parameters() if p.ndim == 2]
    vectors = [p for p in plain.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    batches, losses = windows(), []
    for step in range(5):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / 5)
        batch = batches(step)
        logits = plain(batch.input_ids)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert history.loss == pytest.approx(losses, abs=1e-5)


def test_a_loss_that_is_not_finite_names_the_step(tmp_path: Path) -> None:
    def objective(model: Model, batch: Batch) -> Loss:
        return Loss(value=causal(model, batch).value * math.nan, num_targets=1)

    with pytest.raises(UserError, match=r"nan at step 0 .*lower the learning rate"):
        trainer(tiny_model(), tmp_path / "w", objective=objective).fit()


def test_causal_equals_cross_entropy_with_ignored_labels() -> None:
    model, batch = tiny_model(), windows()(0)
    labels = batch.labels.clone()
    labels[:, ::3] = IGNORED
    masked = Batch(input_ids=batch.input_ids, labels=labels)
    loss = causal(model, masked)
    expected = torch.nn.functional.cross_entropy(
        model(batch.input_ids).flatten(0, 1), labels.flatten(), ignore_index=IGNORED
    )
    assert loss.value.item() == pytest.approx(expected.item(), abs=1e-6)
    assert loss.num_targets == masked.num_targets == int((labels != IGNORED).sum())


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (1, 24, 24)])
def test_orthogonalize_evens_out_the_spectrum(shape: tuple[int, int, int]) -> None:
    columns = torch.logspace(0, -1.5, shape[2])  # a spectrum that falls off, as gradients have
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * columns
    before, after = torch.linalg.svdvals(matrices), torch.linalg.svdvals(orthogonalize(matrices))
    assert after.max() < 1.9  # the bound of the three quintics
    spread_before, spread_after = before.std() / before.mean(), after.std() / after.mean()
    assert spread_after < 0.9 * spread_before
    # The singular vectors stay: near the true polar factor, which has all singular values one.
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    ours, polar = orthogonalize(matrices), u @ vh
    assert (ours * polar).sum() / (ours.norm() * polar.norm()) > 0.8


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"step": step})
    assert not (tmp_path / "step-00000001.pt").exists()
    newest = tmp_path / "step-00000003.pt"
    newest.write_bytes(newest.read_bytes()[:100])
    assert load_checkpoint(tmp_path) == (2, {"step": 2})


def test_a_checkpoint_is_data_and_never_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "pwned",))  # type: ignore[return-value]

    torch.save({"evil": Evil()}, tmp_path / "step-00000001.pt")
    assert load_checkpoint(tmp_path) is None
    assert not (tmp_path / "pwned").exists()
