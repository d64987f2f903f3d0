"""Windowed attention against masked dense attention and transformers' own mask functions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.models.attention_parts import Blocks, Part, attend
from lmworks.models.windowed_attention import window_mask, window_parts, windowed_attention


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=random, dtype=torch.float64).requires_grad_()


def dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    seen: torch.Tensor,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention as it is defined, over a whole matrix of scores; `seen` broadcasts to it."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    return scores.masked_fill(~seen, -1e30).softmax(-1) @ v


def assert_same(
    ours: torch.Tensor, theirs: torch.Tensor, inputs: tuple[torch.Tensor, ...], valid: torch.Tensor
) -> None:
    """Equal values and gradients where a query sees something."""
    assert torch.allclose(ours * valid, theirs * valid, atol=1e-9)
    upstream = torch.randn_like(ours) * valid
    for mine, oracle in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream)
    ):
        assert torch.allclose(mine, oracle, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    num_queries=st.integers(1, 400),
    cached=st.integers(0, 300),
    window=st.integers(1, 500),
    causal=st.booleans(),
    groups=st.sampled_from([1, 3]),
    softcap=st.sampled_from([None, None, 3.0]),
    padded=st.booleans(),
)
def test_values_and_gradients_are_those_of_a_masked_matrix(
    num_queries: int,
    cached: int,
    window: int,
    causal: bool,
    groups: int,
    softcap: float | None,
    padded: bool,
) -> None:
    num_keys = cached + num_queries
    q = draw(2, 2 * groups, num_queries, 4)
    k, v = draw(2, 2, num_keys, 4), draw(2, 2, num_keys, 4, seed=1)
    left, right = window - 1, 0 if causal else window - 1
    seen = window_mask(num_queries, num_keys, left, right, cached)[None, None]
    padding = None
    if padded:
        padding = torch.ones(2, num_keys, dtype=torch.bool)
        padding[1, : num_keys // 3] = False
        seen = seen & padding[:, None, None]
    ours = windowed_attention(
        q, k, v, window=window, causal=causal, padding=padding, softcap=softcap
    )
    assert_same(ours, dense(q, k, v, seen, softcap), (q, k, v), seen.any(-1, keepdim=True))


@pytest.mark.parametrize("window", [1, 3, 40])
def test_windows_are_those_of_transformers(window: int) -> None:
    masks = pytest.importorskip("transformers.masking_utils")
    index = torch.arange(30)
    q, k = index[:, None], index
    causal = masks.sliding_window_overlay(window)(0, 0, q, k) & (k <= q)
    assert torch.equal(window_mask(30, 30, window - 1, 0), causal)
    both = masks.sliding_window_bidirectional_overlay(window)(0, 0, q, k)
    assert torch.equal(window_mask(30, 30, window, window), both)


def test_queries_of_a_chunk_give_what_the_whole_gives() -> None:
    q, k, v = draw(1, 2, 333, 8), draw(1, 1, 333, 8), draw(1, 1, 333, 8, seed=1)
    whole = windowed_attention(q, k, v, window=50)
    chunks = [
        windowed_attention(q[:, :, at : at + 37], k, v, window=50, offset=at)
        for at in range(0, 333, 37)
    ]
    assert torch.allclose(torch.cat(chunks, 2), whole, atol=1e-12)


@pytest.mark.parametrize("window", [64, 256, 1024])
def test_few_scores_beyond_the_window_are_computed(window: int) -> None:
    q = torch.empty(1, 1, 16384, 0)
    parts = window_parts(q, 16384, window - 1, 0, offset=0, padding=None)
    cells = sum(p.queries.count * p.queries.size * p.keys.size for p in parts)
    assert cells <= 1.5 * 16384 * window


def test_bfloat16_stays_near_float32() -> None:
    q, k, v = (draw(1, 2, 500, 16, seed=s).float() for s in range(3))
    wide = windowed_attention(q, k, v, window=64)
    narrow = windowed_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), window=64)
    assert narrow.dtype == torch.bfloat16
    assert torch.allclose(narrow.float(), wide, atol=0.05)


def test_the_merge_of_two_halves_is_the_whole() -> None:
    q, k, v = draw(2, 4, 9, 8), draw(2, 2, 20, 8), draw(2, 2, 20, 8, seed=1)
    halves = [
        Part(queries=Blocks(0, 9), keys=Blocks(0, 7)),
        Part(queries=Blocks(0, 9), keys=Blocks(7, 13), merges=True),
    ]
    for softcap in (None, 1e9):  # the kernel; products, under a cap that changes nothing
        whole = dense(q, k, v, torch.ones(9, 20, dtype=torch.bool))
        ours = attend(q, [(k, v)], halves, softcap=softcap)
        assert_same(ours, whole, (q, k, v), torch.ones(1))


@pytest.mark.parametrize(("window", "offset"), [(0, 0), (4, -1), (4, 3)])
def test_impossible_arguments_are_refused(window: int, offset: int) -> None:
    q, k = draw(1, 1, 4, 8), draw(1, 1, 6, 8)
    with pytest.raises(ValueError, match="window"):
        windowed_attention(q, k, k, window=window, offset=offset)
