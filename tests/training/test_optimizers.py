"""Optimizers, step by step against others; their state, their memory, who decays."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lmworks.core.errors import UserError
from lmworks.training.optimizers import muon
from lmworks.training.optimizers.adamw_8bit import SMALLEST
from lmworks.training.optimizers.base import (
    OPTIMIZERS,
    AdafactorConfig,
    OptimizerConfig,
    build_optimizer,
    decay_groups,
    parameters_by_kind,
    state_bytes,
)
from lmworks.training.optimizers.dynamic_quantization import (
    BLOCK,
    dequantize,
    dynamic_code,
    num_blocks,
    quantize,
)
from lmworks.training.optimizers.muon import make_muon

RATES = [0.5, 1.0, 1.0, 0.7, 0.3, 0.1]


class Small(nn.Module):
    """A parameter of every kind; its wide matrix is above what the 8-bit AdamW leaves alone."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(20, 8, dtype=dtype)
        self.wide = nn.Linear(8, 600, dtype=dtype)
        self.norm = nn.LayerNorm(600, dtype=dtype)
        self.mix = nn.Parameter(torch.full((5,), 0.3, dtype=dtype))
        self.lm_head = nn.Linear(600, 20, bias=False, dtype=dtype)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.lm_head(self.norm(self.wide(self.embed_tokens(ids)).tanh()))
        return out * self.mix.sum()


def small(dtype: torch.dtype = torch.float32) -> Small:
    torch.manual_seed(0)
    return Small(dtype)


def set_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) * 0.1


def walk(model: nn.Module, config: OptimizerConfig) -> nn.Module:
    optimizer = build_optimizer(model, config)
    for step, rate in enumerate(RATES):
        set_gradients(model, step)
        optimizer.step(rate)
    return model


def walk_with(model: nn.Module, optimizer: torch.optim.Optimizer, peak: float) -> nn.Module:
    for step, rate in enumerate(RATES):
        set_gradients(model, step)
        for group in optimizer.param_groups:
            if group["lr"] is not None:
                group["lr"] = peak * rate
        optimizer.step()
    return model


def torch_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    groups = decay_groups(parameters_by_kind(model), config)
    return [{"params": group, "weight_decay": decay} for group, decay in groups]


def assert_same(first: nn.Module, second: nn.Module, **tolerance: float) -> None:
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, **tolerance, msg=lambda m, name=name: f"{name}: {m}")


def test_adamw_is_torchs() -> None:
    config = OptimizerConfig(name="adamw", learning_rate=1e-2)
    other = small()
    adamw = torch.optim.AdamW(torch_groups(other, config), betas=(0.9, 0.95))
    assert_same(walk(small(), config), walk_with(other, adamw, 1e-2), rtol=1e-6, atol=1e-7)


def test_lion_follows_the_papers_algorithm() -> None:
    config = OptimizerConfig(name="lion", beta1=0.9, beta2=0.99)
    assert config.peak_rate == 3e-4
    model = walk(small(torch.float64), config)
    other = small(torch.float64)
    momenta = {p: torch.zeros_like(p) for p in other.parameters()}
    decays = {p: decay for g, decay in decay_groups(parameters_by_kind(other), config) for p in g}
    with torch.no_grad():
        for step, rate in enumerate(RATES):
            set_gradients(other, step)
            for p, m in momenta.items():
                # Algorithm 2: c = b1 m + (1 - b1) g; w -= eta (sign(c) + lambda w); m by b2.
                c = 0.9 * m + 0.1 * p.grad
                p -= 3e-4 * rate * (c.sign() + decays[p] * p)
                m.copy_(0.99 * m + 0.01 * p.grad)
    assert_same(model, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_adafactor_is_transformers_with_rates_given(scale: bool, momentum: bool) -> None:
    transformers = pytest.importorskip("transformers.optimization")
    config = OptimizerConfig(
        name="adafactor",
        learning_rate=1e-2,
        adafactor=AdafactorConfig(scale_parameter=scale, first_moment=momentum),
    )
    other = small(torch.float64)
    adafactor = transformers.Adafactor(
        torch_groups(other, config),
        lr=1e-2,
        scale_parameter=scale,
        relative_step=False,
        beta1=0.9 if momentum else None,
    )
    assert_same(
        walk(small(torch.float64), config), walk_with(other, adafactor, 1e-2), rtol=1e-9, atol=1e-11
    )


def test_adafactor_is_transformers_and_torchs_with_relative_steps() -> None:
    transformers = pytest.importorskip("transformers.optimization")
    config = OptimizerConfig(
        name="adafactor",
        learning_rate=1e-2,
        adafactor=AdafactorConfig(scale_parameter=True, relative_step=True),
    )

    def walked() -> nn.Module:
        model = small(torch.float64)
        optimizer = build_optimizer(model, config)
        for step in range(6):
            set_gradients(model, step)
            optimizer.step(1.0)
        return model

    def walked_with(make: Any) -> nn.Module:
        model = small(torch.float64)
        optimizer = make(torch_groups(model, config))
        for step in range(6):
            set_gradients(model, step)
            optimizer.step()
        return model

    assert_same(walked(), walked_with(transformers.Adafactor), rtol=1e-9, atol=1e-11)
    # torch adds nothing to the squares and bounds the rates alike; decay there has no scale.
    config = dataclasses.replace(config, weight_decay=0.0)
    assert_same(walked(), walked_with(torch.optim.Adafactor), rtol=1e-6, atol=1e-8)


def test_adafactors_relative_rate_falls_with_the_root_of_the_step() -> None:
    settings = AdafactorConfig(relative_step=True, clip_threshold=1e-3)
    config = OptimizerConfig(
        name="adafactor", learning_rate=0.5, weight_decay=0.0, adafactor=settings
    )
    model = nn.Linear(4, 4, bias=False)
    optimizer = build_optimizer(model, config)
    moved = []
    for step in range(25):
        set_gradients(model, step)
        before = model.weight.detach().clone()
        optimizer.step(1.0)
        moved.append(float((model.weight - before).detach().square().mean().sqrt()) / 1e-3)
    # min(0.5, 1 / sqrt(step)), as every update is cut down to the threshold.
    expected = [min(0.5, (step + 1) ** -0.5) for step in range(25)]
    assert moved == pytest.approx(expected, rel=1e-3)


def test_muon_is_torchs_with_its_iteration_and_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = pytest.importorskip("torch.optim._muon")

    def iterate(matrices: torch.Tensor) -> torch.Tensor:
        each = [
            theirs._zeropower_via_newtonschulz(m, (3.4445, -4.7750, 2.0315), 5, 1e-7)
            for m in matrices
        ]
        return torch.stack(each).float()

    monkeypatch.setattr(muon, "orthogonalize", iterate)
    monkeypatch.setattr(muon, "_MOMENTUM", (0.95, 0.95))
    config = OptimizerConfig(name="muon", matrix_learning_rate=0.02)
    model, other = nn.Linear(8, 24, bias=False), nn.Linear(8, 24, bias=False)
    other.load_state_dict(model.state_dict())
    ours = build_optimizer(model, config)
    reference = torch.optim.Muon(other.parameters(), lr=0.02, weight_decay=0.1, momentum=0.95)
    for step, rate in enumerate(RATES):
        set_gradients(model, step)
        set_gradients(other, step)
        ours.step(rate)
        reference.param_groups[0]["lr"] = 0.02 * rate
        reference.step()
    assert_same(model, other, rtol=1e-5, atol=1e-6)


def test_muons_own_iteration_brings_gradients_near_their_polar_factor() -> None:
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(3, 24, 16), full_matrices=False)
    steep = 10 ** torch.linspace(0, -2, 16)  # as gradients are: few directions hold the most
    matrices = u * steep @ v
    before, after = (
        torch.cosine_similarity(m.flatten(1), (u @ v).flatten(1))
        for m in (matrices, muon.orthogonalize(matrices))
    )
    assert float(before.max()) < 0.65
    assert float(after.min()) > 0.85


# --- one byte a moment -------------------------------------------------------------------------


def test_the_code_is_that_of_bitsandbytes() -> None:
    recorded = json.loads((Path(__file__).parent / "data" / "dynamic_code.json").read_text())
    for signed in (True, False):
        key = "signed" if signed else "unsigned"
        assert dynamic_code(signed).tolist() == recorded[key]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("count", [1, BLOCK - 1, BLOCK, 3 * BLOCK + 17])
def test_every_value_gets_the_nearest_code(signed: bool, count: int) -> None:
    torch.manual_seed(count)
    values = torch.randn(count) * 10.0 ** torch.randint(-6, 3, (count,))
    values = values if signed else values.abs()
    codes = torch.zeros(count, dtype=torch.uint8)
    scales = torch.zeros(num_blocks(count))
    quantize(values, codes, scales, signed=signed)
    for block, part in enumerate(values.split(BLOCK)):
        assert scales[block] == part.abs().max()
        shares = part / scales[block]
        distance = (shares[:, None] - dynamic_code(signed)).abs()
        chosen = distance.gather(1, codes.split(BLOCK)[block].long()[:, None])[:, 0]
        torch.testing.assert_close(chosen, distance.min(1).values, rtol=0, atol=1e-7)
    again = dequantize(codes, scales, signed=signed, dtype=torch.float32)
    top = values == scales.repeat_interleave(BLOCK)[:count]
    assert torch.equal(again[top], values[top])  # the code has a 1, but no -1


def test_a_block_of_zeros_stays_one() -> None:
    for signed in (True, False):
        codes, scales = torch.ones(BLOCK, dtype=torch.uint8), torch.ones(1)
        quantize(torch.zeros(BLOCK), codes, scales, signed=signed)
        assert not dequantize(codes, scales, signed=signed, dtype=torch.float64).any()


def test_8_bits_step_like_adamw_from_the_moments_that_they_stand_for() -> None:
    config = OptimizerConfig(name="adamw_8bit", learning_rate=1e-2)
    model = small()
    optimizer = build_optimizer(model, config)
    for step in range(3):
        set_gradients(model, step)
        optimizer.step(1.0)
    state = optimizer.state_dict()["states"][0]  # the wide matrix
    assert state["first_codes"].dtype == torch.uint8
    weights, count = model.wide.weight.detach().clone().double(), 3
    m = dequantize(state["first_codes"], state["first_scales"], signed=True, dtype=torch.float64)
    v = dequantize(state["second_codes"], state["second_scales"], signed=False, dtype=torch.float64)
    set_gradients(model, 3)
    gradient = model.wide.weight.grad.double().flatten()
    optimizer.step(0.5)
    m, v, count = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2, count + 1
    share = (m / (1 - 0.9**count)) / ((v / (1 - 0.95**count)).sqrt() + 1e-8)
    expected = weights.flatten() * (1 - 5e-3 * 0.1) - 5e-3 * share
    torch.testing.assert_close(
        model.wide.weight.detach().flatten().double(), expected, rtol=1e-5, atol=1e-6
    )


def test_200_steps_in_8_bits_learn_as_in_32() -> None:
    torch.manual_seed(1)
    ids = torch.randint(0, 20, (200, 32))
    targets = (ids * 7 + 3) % 20

    def curve(name: str, **changes: Any) -> torch.Tensor:
        model = small()
        optimizer = build_optimizer(model, OptimizerConfig(name=name, learning_rate=3e-3))
        losses = []
        for x, y in zip(ids, targets, strict=True):
            model.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step(1.0)
            losses.append(loss.item())
        return torch.tensor(losses)

    exact, small_moments = curve("adamw"), curve("adamw_8bit")
    assert exact[-20:].mean() < 0.1 * exact[:5].mean()
    assert float((exact - small_moments).abs().max()) < 0.05 * float(exact[0])
    assert float((exact - small_moments).abs().mean()) < 0.01


# --- all of them -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_saved_and_loaded_goes_on_to_the_bit(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    config = OptimizerConfig(name=name)
    model = small(dtype)
    optimizer = build_optimizer(model, config)
    for step in range(3):
        set_gradients(model, step)
        optimizer.step(1.0)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    other = copy.deepcopy(model)
    resumed = build_optimizer(other, config)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(3, 6):
        for each, with_optimizer in ((model, optimizer), (other, resumed)):
            set_gradients(each, step)
            with_optimizer.step(0.5)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_bytes_are_those_of_the_state_and_known_without_memory(name: str) -> None:
    config = OptimizerConfig(name=name)
    model = small()
    optimizer = build_optimizer(model, config)
    set_gradients(model, 0)
    optimizer.step(1.0)
    found: list[torch.Tensor] = []

    def collect(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, dict | list | tuple):
            for inner in value.values() if isinstance(value, dict) else value:
                collect(inner)

    collect(optimizer.state_dict())
    kept = sum(t.numel() * t.element_size() for t in found if t.dim())  # torch counts steps in ()
    assert optimizer.state_bytes == kept
    assert state_bytes(small().to("meta"), config) == kept


def test_8_bit_moments_take_two_bytes_and_little_more() -> None:
    model = nn.Linear(1024, 1024, bias=False)
    per_parameter = {
        name: state_bytes(model, OptimizerConfig(name=name)) / 2**20
        for name in ("adamw", "adamw_8bit", "lion", "adafactor")
    }
    assert per_parameter == {
        "adamw": 8.0,
        "adamw_8bit": 2 + 8 / BLOCK,
        "lion": 4.0,
        "adafactor": 4 * 2048 / 2**20,
    }
    assert state_bytes(nn.Linear(SMALLEST - 1, 1, bias=False), OptimizerConfig(name="adamw_8bit"))


def test_who_decays() -> None:
    model = small()

    def decayed(**settings: Any) -> set[str]:
        config = OptimizerConfig(**settings)
        names = {id(p): name for name, p in model.named_parameters()}
        groups = decay_groups(parameters_by_kind(model), config)
        return {names[id(p)] for group, decay in groups if decay for p in group}

    matrices, tables = {"wide.weight"}, {"embed_tokens.weight", "lm_head.weight"}
    assert decayed(name="muon") == matrices
    for name in ("adamw", "adamw_8bit", "lion", "adafactor"):
        assert decayed(name=name) == matrices | tables
    assert decayed(decayed=["norms", "biases"]) == {"norm.weight", "norm.bias", "wide.bias"}
    assert decayed(decayed=["others"]) == {"mix"}
    assert decayed(decayed=[]) == set()
    assert decayed(weight_decay=0.0) == set()
    with pytest.raises(UserError, match="did you mean 'biases'"):
        decayed(decayed=["bias"])


def test_a_name_that_is_none_and_the_nearest_one() -> None:
    with pytest.raises(UserError, match="did you mean 'adafactor'"):
        build_optimizer(small(), OptimizerConfig(name="adafacter"))


@pytest.mark.parametrize("name", ["adamw_8bit", "adafactor", "lion"])
def test_a_parameter_without_a_gradient_stays(name: str) -> None:
    model = small()
    optimizer = build_optimizer(model, OptimizerConfig(name=name))
    before = model.wide.weight.detach().clone()
    set_gradients(model, 0)
    model.wide.weight.grad = None
    optimizer.step(1.0)
    assert torch.equal(model.wide.weight, before)
    assert optimizer.state_dict()["states"]


def test_a_matrix_without_a_gradient_stays_and_the_other_steps_as_if_alone() -> None:
    def steps(skip_second: bool, count: int = 3) -> list[torch.Tensor]:
        torch.manual_seed(0)
        layers = nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in range(2))
        model = nn.ModuleDict({"layers": layers, "norm": nn.LayerNorm(6)})
        optimizer = make_muon(model, OptimizerConfig())
        for step in range(count):
            model.zero_grad(set_to_none=True)
            x = torch.full((2, 6), 0.5 + step).cumsum(-1)
            for layer in layers[: 1 if skip_second else 2]:
                layer(x).square().sum().backward()
            optimizer.step(1.0)
        return [p.detach().clone() for p in layers.parameters()]

    torch.manual_seed(0)
    fresh = [nn.Linear(6, 6, bias=False).weight.detach() for _ in range(2)]
    both, one = steps(skip_second=False), steps(skip_second=True)
    assert torch.allclose(both[0], one[0], atol=1e-6)
    assert torch.equal(one[1], fresh[1])
    assert not torch.equal(both[1], fresh[1])
