"""The short convolution against PyTorch's, at any cut of the sequence, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.models.short_convolution import short_convolution


def draw(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, silu: bool
) -> torch.Tensor:
    """PyTorch's own convolution, with zeros before the first position."""
    taps = weight.shape[1]
    padded = F.pad(x.transpose(1, 2), (taps - 1, 0))
    y = F.conv1d(padded, weight[:, None], bias, groups=len(weight)).transpose(1, 2)
    return F.silu(y) if silu else y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(("size", "taps", "length"), [(24, 4, 50), (16, 1, 5), (7, 3, 2)])
def test_equals_pytorch(size: int, taps: int, length: int, silu: bool, dtype: torch.dtype) -> None:
    given = [draw(2, length, size, seed=1), draw(size, taps, seed=2), draw(size, seed=3)]
    ours = [tensor.to(dtype).requires_grad_() for tensor in given]
    theirs = [tensor.requires_grad_() for tensor in given]
    weights = draw(2, length, size, seed=4)
    y = short_convolution(*ours, silu=silu)[0]
    expected = reference(*theirs, silu)
    assert torch.allclose(y.double(), expected, atol=1e-5)
    found = torch.autograd.grad((y * weights.to(dtype)).sum(), ours)
    wanted = torch.autograd.grad((expected * weights).sum(), theirs)
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a.double(), b, atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(size=st.integers(1, 64), length=st.integers(1, 80), taps=st.integers(1, 5))
def test_any_cut_gives_the_same(size: int, length: int, taps: int) -> None:
    x, weight = draw(2, length, 20, seed=1).float(), draw(20, taps, seed=2).float()
    whole, last = short_convolution(x, weight, silu=True)
    state, pieces = None, []
    for start in range(0, length, size):
        y, state = short_convolution(x[:, start : start + size], weight, silu=True, state=state)
        pieces.append(y)
    assert torch.equal(torch.cat(pieces, 1), whole)
    assert state is not None and torch.equal(state, last)


def test_the_gradient_reaches_the_state() -> None:
    x, weight = draw(1, 9, 16, seed=1).float().requires_grad_(), draw(16, 4, seed=2).float()
    whole = torch.autograd.grad(short_convolution(x, weight)[0].square().sum(), x)[0]
    first, state = short_convolution(x[:, :2], weight)
    second, _ = short_convolution(x[:, 2:], weight, state=state)
    cut = torch.autograd.grad(first.square().sum() + second.square().sum(), x)[0]
    assert torch.allclose(cut, whole, atol=1e-5)
