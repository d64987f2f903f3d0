"""WKV against its sums and against transformers' loop, at any cut, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.models.wkv import wkv, wkv_sequential


def draw(batch: int, length: int, size: int, spread: float = 1.0) -> list[torch.Tensor]:
    """k, v, decay and bonus in float64."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    k, v = spread * normal(batch, length, size), normal(batch, length, size)
    return [t.requires_grad_() for t in (k, v, -torch.exp(normal(size)), spread * normal(size))]


def as_float32(given: list[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.detach().float().requires_grad_() for tensor in given]


def gradients(function: object, given: list[torch.Tensor]) -> list[torch.Tensor]:
    y, _ = function(*given)  # type: ignore[operator]
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return [y, *torch.autograd.grad((y * weights.to(y.dtype)).sum(), given)]


def close(ours: list[torch.Tensor], theirs: list[torch.Tensor], tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= tolerance * max(b.norm().item(), 1.0)


@pytest.mark.parametrize("shape", [(2, 70, 48), (1, 33, 16), (3, 2, 7), (1, 300, 144)])
def test_kernel_equals_the_sums(shape: tuple[int, int, int]) -> None:
    given = draw(*shape)
    close(gradients(wkv, as_float32(given)), gradients(wkv_sequential, given), 1e-5)


def test_doubling_equals_the_sums() -> None:
    given = draw(2, 77, 6)
    close(gradients(wkv, given), gradients(wkv_sequential, given), 1e-11)


def test_keys_beyond_the_range_of_exp() -> None:
    """transformers' loop, which is stable, defines the answer here."""
    rwkv = pytest.importorskip("transformers.models.rwkv.modeling_rwkv")

    def theirs(k: torch.Tensor, v: torch.Tensor, w: torch.Tensor, u: torch.Tensor) -> object:
        return rwkv.rwkv_linear_attention_cpu(torch.log(-w), u, k, v)

    given = as_float32(draw(2, 60, 20, spread=60.0))
    close(gradients(wkv, given), gradients(theirs, given), 1e-4)


@settings(deadline=None, max_examples=20)
@given(size=st.integers(1, 64), length=st.integers(1, 130))
def test_any_cut_gives_the_same(size: int, length: int) -> None:
    k, v, decay, bonus = as_float32(draw(2, length, 24))
    whole, last = wkv(k, v, decay, bonus)
    state, pieces = torch.zeros(2, 3, 24), []
    for start in range(0, length, size):
        here = slice(start, start + size)
        y, state = wkv(k[:, here], v[:, here], decay, bonus, state=state)
        pieces.append(y)
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5)
    assert torch.allclose(state, last, atol=1e-5)


def test_the_gradient_passes_from_cut_to_cut() -> None:
    def in_two(*given: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        k, v, decay, bonus = given
        first, state = wkv(k[:, :21], v[:, :21], decay, bonus)
        second, state = wkv(k[:, 21:], v[:, 21:], decay, bonus, state=state)
        return torch.cat([first, second], 1), state

    given = draw(2, 50, 20)
    close(gradients(in_two, as_float32(given)), gradients(wkv_sequential, given), 1e-5)


def test_the_state_gets_its_gradient() -> None:
    k, v, decay, bonus = (tensor.detach() for tensor in draw(2, 40, 20))
    state = torch.rand(2, 3, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for function, dtype in ((wkv, torch.float32), (wkv_sequential, torch.float64)):
        given = [tensor.to(dtype) for tensor in (k, v, decay, bonus)]
        leaf = (state + 0.1).to(dtype).requires_grad_()
        y, _ = function(*given, state=leaf)
        found.append(list(torch.autograd.grad(y.square().sum(), leaf)))
    close(*found, 1e-5)
