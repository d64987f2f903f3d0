"""Longformer attention against masked dense attention and transformers' own layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.models.longformer_attention import (
    global_positions,
    longformer_attention,
    longformer_mask,
)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64).requires_grad_()


def dense(qkv: tuple[torch.Tensor, ...], seen: torch.Tensor) -> torch.Tensor:
    q, k, v = qkv
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.masked_fill(~seen[:, None], -1e30).softmax(-1) @ v


@settings(max_examples=50, deadline=None)
@given(
    length=st.integers(1, 300),
    half=st.integers(1, 60),
    causal=st.booleans(),
    groups=st.sampled_from([1, 2]),
    padded=st.booleans(),
    own_projections=st.booleans(),
    share=st.sampled_from([0.0, 0.05, 0.5]),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_a_masked_matrix(
    length: int,
    half: int,
    causal: bool,
    groups: int,
    padded: bool,
    own_projections: bool,
    share: float,
    seed: int,
) -> None:
    random = torch.Generator().manual_seed(seed)
    shapes = [(2, 2 * groups, length, 4), (2, 2, length, 4), (2, 2, length, 4)]
    local = tuple(draw(*shape, seed=seed + i) for i, shape in enumerate(shapes))
    wide = local
    if own_projections:
        wide = tuple(draw(*shape, seed=seed + 9 + i) for i, shape in enumerate(shapes))
    tokens = torch.rand(2, length, generator=random) < share
    padding = None
    seen = longformer_mask(tokens, 2 * half, causal=causal)
    if padded:
        padding = torch.ones(2, length, dtype=torch.bool)
        padding[0, : length // 4] = False
        seen = seen & padding[:, None]
    ours = longformer_attention(
        *local,
        window=2 * half,
        global_tokens=tokens,
        global_qkv=wide if own_projections else None,
        causal=causal,
        padding=padding,
    )
    theirs = torch.where(tokens[:, None, :, None], dense(wide, seen), dense(local, seen))
    valid = seen.any(-1)[:, None, :, None]
    assert torch.allclose(ours * valid, theirs * valid, atol=1e-9)
    inputs = local + (wide if own_projections else ())
    upstream = torch.randn_like(ours) * valid
    grads = [
        torch.autograd.grad(y, inputs, upstream, allow_unused=True, materialize_grads=True)
        for y in (ours, theirs)
    ]
    for mine, oracle in zip(*grads):
        assert torch.allclose(mine, oracle, atol=1e-9)


@pytest.mark.parametrize("num_global", [0, 1, 5])
def test_equals_the_layer_of_transformers(num_global: int) -> None:
    longformer = pytest.importorskip("transformers.models.longformer.modeling_longformer")
    torch.manual_seed(0)
    config = longformer.LongformerConfig(
        hidden_size=32,
        num_attention_heads=4,
        attention_window=[16],
        attention_probs_dropout_prob=0.0,
    )
    layer = longformer.LongformerSelfAttention(config, 0)
    x = torch.randn(2, 96, 32, requires_grad=True)
    tokens = torch.zeros(2, 96, dtype=torch.bool)
    tokens[0, :num_global] = True
    tokens[1, 40 : 40 + num_global // 2] = True  # fewer, and in the middle
    padding = torch.ones(2, 96, dtype=torch.bool)
    padding[1, 90:] = False
    state = torch.zeros(2, 96)
    state[tokens] = 10000.0
    state[~padding] = -10000.0
    (theirs,) = layer(
        x,
        attention_mask=state,
        is_index_masked=state < 0,
        is_index_global_attn=state > 0,
        is_global_attn=bool(tokens.any()),
    )

    def heads(projection: Any) -> torch.Tensor:
        return projection(x).unflatten(2, (4, 8)).transpose(1, 2)

    ours = longformer_attention(
        heads(layer.query),
        heads(layer.key),
        heads(layer.value),
        window=16,
        global_tokens=tokens,
        global_qkv=(heads(layer.query_global), heads(layer.key_global), heads(layer.value_global)),
        padding=padding,
    )
    ours = ours.transpose(1, 2).flatten(2)
    assert torch.allclose(ours[padding], theirs[padding], atol=1e-5)
    mine, oracle = (torch.autograd.grad(y[padding].sin().sum(), x)[0] for y in (ours, theirs))
    assert (mine - oracle).abs().max() < 1e-5 * oracle.abs().max()


def test_positions_of_rows_with_different_numbers_of_global_tokens() -> None:
    tokens = torch.tensor([[0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.bool)
    index, real = global_positions(tokens)
    assert real.tolist() == [[True, True], [True, False], [False, False]]
    assert index[real].tolist() == [1, 3, 2]


@pytest.mark.parametrize("window", [0, 7])
def test_an_odd_window_is_refused(window: int) -> None:
    x = draw(1, 1, 4, 8)
    with pytest.raises(ValueError, match="even"):
        longformer_attention(
            x, x, x, window=window, global_tokens=torch.zeros(1, 4, dtype=torch.bool)
        )
