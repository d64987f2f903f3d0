"""Rotary tables against transformers' own, and the rotation against its definition."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.models.config import LinearScaling, Llama3Scaling, RoPEConfig
from lmworks.models.positions import Rotary, apply_rotary, inverse_frequencies, shared_rotary

SCALINGS = [None, LinearScaling(factor=4.0), Llama3Scaling(factor=32.0)]


@pytest.mark.parametrize("scaling", SCALINGS, ids=["none", "linear", "llama3"])
def test_frequencies_equal_those_of_transformers(scaling: object) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    from lmworks.models.architectures.rope import rope_to_hf

    settings = rope_to_hf(RoPEConfig(theta=5e5, scaling=scaling))
    rope = {"rope_type": "default", "rope_theta": 5e5} | (settings["rope_scaling"] or {})
    config = transformers.LlamaConfig(
        head_dim=64, rope_parameters=rope, max_position_embeddings=131072
    )
    theirs = LlamaRotaryEmbedding(config).inv_freq
    ours = inverse_frequencies(RoPEConfig(theta=5e5, scaling=scaling), 64)
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=0)


def test_each_pair_turns_by_its_own_angle() -> None:
    rope, dim, position = RoPEConfig(theta=100.0), 6, 7
    cos, sin = Rotary(rope, dim).tables(8, torch.device("cpu"))
    x = torch.randn(dim, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    angles = inverse_frequencies(rope, dim) * position
    turned = torch.complex(x[:3], x[3:]) * torch.polar(torch.ones(3), angles)
    got = apply_rotary(x, cos[position], sin[position])
    assert torch.allclose(got, torch.cat((turned.real, turned.imag)), atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 400))
def test_a_score_depends_on_the_distance_alone(a: int, b: int, shift: int) -> None:
    cos, sin = shared_rotary(RoPEConfig(), 16).tables(1024, torch.device("cpu"))
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))

    def score(i: int, j: int) -> torch.Tensor:
        return apply_rotary(q, cos[i], sin[i]) @ apply_rotary(k, cos[j], sin[j])

    assert torch.allclose(score(a, b), score(a + shift, b + shift), atol=1e-3)


def test_the_gradient_is_the_true_one() -> None:
    cos, sin = (t.double() for t in Rotary(RoPEConfig(), 8).tables(5, torch.device("cpu")))
    x = torch.randn(2, 3, 5, 8, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: apply_rotary(x, cos[:5], sin[:5]), x)
    assert torch.autograd.gradgradcheck(lambda x: apply_rotary(x, cos[:5], sin[:5]), x)


def test_a_grown_table_begins_with_the_shorter_one() -> None:
    rotary = Rotary(RoPEConfig(), 8)
    short = rotary.tables(10, torch.device("cpu"))[0].clone()
    long = rotary.tables(3000, torch.device("cpu"))[0]
    assert len(long) >= 3000
    assert torch.equal(long[: len(short)], short)


def test_layers_share_one_table_also_after_a_copy() -> None:
    rotary = shared_rotary(RoPEConfig(), 8)
    assert copy.deepcopy(rotary) is rotary
    assert pickle.loads(pickle.dumps(rotary)) is rotary
