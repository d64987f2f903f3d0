"""Gated linear attention and SSD against their recurrences, at any cut, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.models.gated_linear_attention import (
    gated_linear_attention,
    gated_linear_attention_sequential,
)
from lmworks.models.ssd import ssd

Shape = tuple[int, int, int, int, int, int]


def draw(shape: Shape, per_key: bool) -> list[torch.Tensor]:
    """q, k, v, log_decay and state in float64."""
    batch, length, heads, groups, keys, values = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    decay = normal(batch, length, heads, keys) if per_key else normal(batch, length, heads)
    shared = (batch, length, groups, keys)
    given = [normal(*shared), normal(*shared), normal(batch, length, heads, values)]
    given += [-torch.exp(2 * decay - 1), normal(batch, heads, keys, values)]
    return [tensor.requires_grad_() for tensor in given]


def as_float32(given: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.detach().float().requires_grad_() for tensor in given]


def gradients(function: object, given: list[torch.Tensor]) -> list[torch.Tensor]:
    y, last = function(*given[:4], state=given[4])  # type: ignore[operator]
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in (y, last)]
    loss = sum((t * w.to(t.dtype)).sum() for t, w in zip((y, last), weights, strict=True))
    return [y, last, *torch.autograd.grad(loss, given)]


def close(ours: list[torch.Tensor], theirs: list[torch.Tensor], tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() <= tolerance * max(b.norm().item(), 1.0)


CASES: list[tuple[Shape, bool]] = [
    ((2, 70, 4, 2, 5, 32), False),
    ((1, 300, 6, 1, 16, 40), False),
    ((2, 70, 3, 3, 5, 7), True),
    ((1, 300, 2, 2, 16, 64), True),
    ((2, 1, 2, 1, 3, 4), False),
]


@pytest.mark.parametrize(("shape", "per_key"), CASES)
def test_kernel_equals_the_recurrence(shape: Shape, per_key: bool) -> None:
    given = draw(shape, per_key)
    close(
        gradients(gated_linear_attention, as_float32(given)),
        gradients(gated_linear_attention_sequential, given),
        1e-5,
    )


@pytest.mark.parametrize(("shape", "per_key"), [CASES[0], CASES[2]])
def test_chunks_of_pytorch_equal_the_recurrence(shape: Shape, per_key: bool) -> None:
    given = draw(shape, per_key)
    close(
        gradients(gated_linear_attention, given),
        gradients(gated_linear_attention_sequential, given),
        1e-11,
    )


@settings(deadline=None, max_examples=20)
@given(size=st.integers(1, 64), length=st.integers(1, 130), per_key=st.booleans())
def test_any_cut_gives_the_same(size: int, length: int, per_key: bool) -> None:
    *given, state = as_float32(draw((2, length, 2, 2, 4, 8), per_key))
    whole, last = gated_linear_attention(*given, state=state)
    pieces = []
    for start in range(0, length, size):
        cut = [tensor[:, start : start + size] for tensor in given]
        y, state = gated_linear_attention(*cut, state=state)
        pieces.append(y)
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5)
    assert torch.allclose(state, last, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 16, 256])
def test_ssd_equals_transformers(chunk_size: int) -> None:
    mamba2 = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    torch.manual_seed(0)
    B, C = torch.randn(2, 2, 90, 2, 8)
    x, dt = torch.randn(2, 90, 4, 16), torch.rand(2, 90, 4)
    A, D = -torch.exp(torch.randn(4)), torch.randn(4)
    expected, state = mamba2.mamba2_chunk_scan(
        x, dt, A, B, C, chunk_size, D=D, return_final_states=True
    )
    y, last = ssd(x, dt, A, B, C, D=D)
    assert torch.allclose(y, expected, atol=1e-4)
    assert torch.allclose(last.transpose(2, 3), state, atol=1e-4)


def test_a_decay_may_forget_all() -> None:
    given = draw((1, 20, 2, 2, 4, 8), True)
    with torch.no_grad():
        given[3][0, 9] = -torch.inf
    y, _ = gated_linear_attention(*as_float32(given)[:4])
    later, _ = gated_linear_attention(*(tensor[:, 9:] for tensor in as_float32(given)[:4]))
    assert torch.allclose(y[:, 9:], later, atol=1e-6)
    assert all(
        torch.isfinite(t).all() for t in gradients(gated_linear_attention, as_float32(given))
    )
