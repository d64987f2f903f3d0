"""Rotary tables against transformers' own, and the rotation against its definition."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.models.cache import KVCache
from lmworks.models.config import (
    AttentionConfig,
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    MLPConfig,
    ModelConfig,
    NTKScaling,
    RoPEConfig,
    SlidingWindow,
    YaRNScaling,
)
from lmworks.models.model import Model
from lmworks.models.positions import Rotary, alibi_slopes, apply_rotary, shared_rotary
from lmworks.models.rotary_frequencies import attention_factor, inverse_frequencies

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


FACTOR = st.floats(1.0, 64.0)
LENGTH = st.integers(2, 8192)


@st.composite
def scalings(draw: st.DrawFn) -> tuple[Any, int]:
    """A scaling, and how many pairs of dimensions it is for."""
    pairs, original = draw(st.sampled_from([2, 4, 16, 32, 64])), draw(LENGTH)
    factors = st.lists(st.floats(0.5, 90.0), min_size=pairs, max_size=pairs).map(tuple)
    maybe = st.none() | st.floats(0.1, 3.0)
    low = draw(st.floats(0.5, 4.0))
    return draw(
        st.sampled_from(
            [
                LinearScaling(factor=draw(FACTOR)),
                DynamicNTKScaling(factor=draw(FACTOR), original_max_position_embeddings=original),
                YaRNScaling(
                    factor=draw(FACTOR),
                    original_max_position_embeddings=original,
                    beta_fast=draw(st.floats(4.0, 64.0)),
                    beta_slow=draw(st.floats(0.1, 3.0)),
                    attention_factor=draw(maybe),
                    mscale=draw(maybe),
                    mscale_all_dim=draw(maybe),
                    truncate=draw(st.booleans()),
                ),
                LongRoPEScaling(
                    short_factor=draw(factors),
                    long_factor=draw(factors),
                    original_max_position_embeddings=original,
                    factor=draw(FACTOR),
                    attention_factor=draw(maybe),
                ),
                Llama3Scaling(
                    factor=draw(FACTOR),
                    low_freq_factor=low,
                    high_freq_factor=low + draw(st.floats(0.5, 8.0)),
                    original_max_position_embeddings=original,
                ),
            ]
        )
    ), pairs


@settings(max_examples=150, deadline=None)
@given(scalings(), st.floats(100.0, 1e7), st.integers(1, 20000))
def test_scalings_equal_those_of_transformers(
    drawn: tuple[Any, int], theta: float, length: int
) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from lmworks.models.architectures.rope import rope_from_hf, rope_to_hf
    from lmworks.models.architectures.values import Values

    scaling, pairs = drawn
    rope = RoPEConfig(theta=theta, scaling=scaling)
    written = rope_to_hf(rope)
    original = getattr(scaling, "original_max_position_embeddings", 4096)
    assert rope_from_hf(Values(written | {"max_position_embeddings": original})) == rope
    config = transformers.LlamaConfig(
        head_dim=2 * pairs,
        max_position_embeddings=original,
        rope_parameters=written["rope_scaling"] | {"rope_theta": theta},
    )
    theirs, factor = ROPE_INIT_FUNCTIONS[scaling.kind](config, seq_len=length)
    ours = inverse_frequencies(rope, 2 * pairs, length)
    assert torch.allclose(ours, theirs, rtol=1e-7, atol=0)
    assert attention_factor(rope, length) == pytest.approx(factor, rel=1e-7)
    rows = min(length, 64)
    angles = torch.outer(torch.arange(rows).float(), theirs)
    cos, sin = (t[:rows] for t in Rotary(rope, 2 * pairs).tables(length, torch.device("cpu")))
    assert (cos[:, :pairs] - angles.cos() * factor).abs().max() < 1e-6
    assert (sin[:, pairs:] - angles.sin() * factor).abs().max() < 1e-6


GGML = json.loads(Path(__file__).with_name("rope_ggml.json").read_text())
RECORDED = {
    "none": RoPEConfig(theta=1e5),
    "linear": RoPEConfig(theta=1e5, scaling=LinearScaling(factor=4.0)),
    "ntk": RoPEConfig(theta=1e5, scaling=NTKScaling(factor=4.0)),
    "yarn": RoPEConfig(
        theta=1e5, scaling=YaRNScaling(factor=4.0, original_max_position_embeddings=8192)
    ),
    "llama3": RoPEConfig(theta=5e5, scaling=Llama3Scaling(factor=32.0)),
    "longrope": RoPEConfig(
        theta=1e4,
        scaling=LongRoPEScaling(
            short_factor=(1.0,) * 32,
            long_factor=tuple(1 + 39 * i / 31 for i in range(32)),
            original_max_position_embeddings=4096,
            factor=32.0,
        ),
    ),
}


@pytest.mark.parametrize("kind", RECORDED)
def test_rotary_tables_equal_those_of_ggml(kind: str) -> None:
    # At low positions: ggml multiplies angles up from pair to pair, and what that rounds grows
    # with the position.
    cos, sin = Rotary(RECORDED[kind], 64).tables(10**5, torch.device("cpu"), num_positions=8)
    ours = torch.cat((cos[:, :32], sin[:, 32:]), 1)[GGML["positions"]]
    assert (ours - torch.tensor(GGML[kind])).abs().max() < 1e-6


def test_ntk_scaling_keeps_the_shortest_wave_and_stretches_the_longest() -> None:
    plain = inverse_frequencies(RoPEConfig(), 64)
    ntk = inverse_frequencies(RoPEConfig(scaling=NTKScaling(factor=8.0)), 64)
    assert ntk[0] == plain[0]
    assert torch.allclose(ntk[-1], plain[-1] / 8, rtol=1e-5)
    assert bool((plain / ntk).diff().gt(0).all())


GROWING = [
    DynamicNTKScaling(factor=4.0, original_max_position_embeddings=20),
    LongRoPEScaling(
        short_factor=(1.0, 1.1, 1.2, 1.3),
        long_factor=(1.0, 3.0, 6.0, 9.0),
        original_max_position_embeddings=20,
        factor=4.0,
    ),
]


def growing_model(scaling: Any, num_layers: int = 1, window: int = 0) -> Model:
    config = ModelConfig.uniform(
        vocab_size=31,
        hidden_size=16,
        num_hidden_layers=num_layers,
        mixer=AttentionConfig(
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            rope=RoPEConfig(theta=50.0, scaling=scaling),
            pattern=SlidingWindow(window=window) if window else None,
        ),
        feed_forward=MLPConfig(intermediate_size=16),
    )
    model = Model(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.2, 0.6, generator=generator)
    return model.eval()


@pytest.mark.parametrize("window", [0, 7])
@pytest.mark.parametrize("scaling", GROWING, ids=["dynamic", "longrope"])
def test_all_keys_follow_when_a_sequence_outgrows_its_original_length(
    scaling: Any, window: int
) -> None:
    # In a model of one layer nothing else is kept of earlier positions.
    model = growing_model(scaling, window=window)
    ids = torch.randint(0, 31, (1, 40), generator=torch.Generator().manual_seed(1))
    view = KVCache(model.config, 1, 40).view([0])
    with torch.no_grad():
        steps = [model(ids[:, :15], cache=view, last_only=True)]
        steps += [model(ids[:, i : i + 1], cache=view) for i in range(15, 40)]
        for number, got in enumerate(steps):
            whole = model(ids[:, : 15 + number], last_only=True)
            assert (got - whole).abs().max() < 1e-5
        assert (model(ids)[:, 14] - steps[0][:, 0]).abs().max() > 1e-3  # the length does matter


@pytest.mark.parametrize("scaling", GROWING, ids=["dynamic", "longrope"])
def test_a_prompt_in_chunks_is_a_prompt_at_once_if_its_length_was_told(scaling: Any) -> None:
    model = growing_model(scaling, 3)
    ids = torch.randint(0, 31, (1, 40), generator=torch.Generator().manual_seed(1))
    cache = KVCache(model.config, 1, 40)
    with torch.no_grad():
        for told in (True, False):
            cache.free(0)
            if told:
                cache.expect(0, 40)
            chunks = [model(ids[:, i : i + 8], cache=cache.view([0])) for i in range(0, 40, 8)]
            same = (torch.cat(chunks, dim=1) - model(ids)).abs().max() < 1e-5
            assert bool(same) is told


@pytest.mark.parametrize("scaling", GROWING, ids=["dynamic", "longrope"])
def test_a_row_does_not_depend_on_the_length_of_its_neighbour(scaling: Any) -> None:
    model = growing_model(scaling, 2)
    ids = torch.randint(0, 31, (2, 40), generator=torch.Generator().manual_seed(1))
    alone, beside = KVCache(model.config, 1, 40), KVCache(model.config, 2, 40)
    with torch.no_grad():
        model(ids[:1, :30], cache=beside.view([0]))
        model(ids[1:, :9], cache=beside.view([1]))
        model(ids[1:, :9], cache=alone.view([0]))
        for at in range(9, 12):
            both = model(ids[:, at : at + 1], cache=beside.view([0, 1]))
            one = model(ids[1:, at : at + 1], cache=alone.view([0]))
            assert (both[1:] - one).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("scaling", "told"),
    [
        (GROWING[1], "factors for 16 rotary dimensions; it needs 8"),
        (YaRNScaling(factor=4.0, original_max_position_embeddings=9), "theta above 1"),
    ],
)
def test_a_scaling_that_does_not_fit_the_head_is_refused(scaling: Any, told: str) -> None:
    rope = RoPEConfig(theta=1.0, scaling=scaling)
    with pytest.raises(UserError, match=told):
        AttentionConfig(num_attention_heads=1, num_key_value_heads=1, head_dim=16, rope=rope)


def test_factors_that_are_no_numbers_above_zero_are_refused() -> None:
    with pytest.raises(UserError, match="long_factor must hold numbers above 0"):
        LongRoPEScaling(
            short_factor=(1.0,),
            long_factor=(0.0,),
            factor=1.0,
            original_max_position_embeddings=9,
        )
    with pytest.raises(UserError, match=r"factor 0\.5 must be at least 1"):
        DynamicNTKScaling(factor=0.5, original_max_position_embeddings=9)


def test_single_positions_are_those_of_the_table() -> None:
    rotary = Rotary(RoPEConfig(theta=1e4, scaling=Llama3Scaling(factor=8.0)), 16)
    positions = torch.tensor([[0, 1, 4095], [7, 4096, 9000]])
    for table, rows in zip(rotary.tables(9001, torch.device("cpu")), rotary.at(positions, 9001)):
        assert torch.allclose(rows, table[positions], atol=1e-6)


@pytest.mark.parametrize("num_heads", [1, 2, 3, 6, 8, 12, 16, 25])
def test_alibi_falls_as_in_bloom_and_mpt(num_heads: int) -> None:
    pytest.importorskip("transformers")
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    slopes = alibi_slopes(num_heads)
    # Theirs rise with a key's place, which differs from ours by a constant of each row.
    bloom = build_alibi_tensor(torch.ones(1, 9), num_heads, torch.float32).view(num_heads, 9)
    mpt = build_mpt_alibi_tensor(num_heads, 9).view(num_heads, 9)
    for theirs in (bloom, mpt):
        assert torch.allclose(theirs.diff(), slopes[:, None].expand(-1, 8), rtol=1e-6)
