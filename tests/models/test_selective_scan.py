"""The selective scan against its recurrence, at any cut of the sequence, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.models.selective_scan import selective_scan, selective_scan_sequential

Arguments = dict[str, torch.Tensor]


def draw(batch: int, length: int, size: int, states: int, seed: int = 0) -> Arguments:
    """Arguments in float64, all of them leaves."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    given = {
        "x": normal(batch, length, size),
        "dt": torch.nn.functional.softplus(normal(batch, length, size) - 1),
        "A": -torch.exp(normal(size, states)),
        "B": normal(batch, length, states),
        "C": normal(batch, length, states),
        "D": normal(size),
        "z": normal(batch, length, size),
        "state": normal(batch, size, states),
    }
    return {name: tensor.requires_grad_() for name, tensor in given.items()}


def as_float32(given: Arguments) -> Arguments:
    return {name: t.detach().float().requires_grad_() for name, t in given.items()}


def gradients(function: object, given: Arguments, seed: int = 7) -> list[torch.Tensor]:
    """Outputs and gradients of a weighted sum of y and the last state."""
    y, last = function(**given)  # type: ignore[operator]
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in (y, last)]
    loss = sum((t * w.to(t.dtype)).sum() for t, w in zip((y, last), weights, strict=True))
    return [y, last, *torch.autograd.grad(loss, list(given.values()))]


def close(ours: list[torch.Tensor], theirs: list[torch.Tensor], tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() <= tolerance * max(b.norm().item(), 1.0)


@pytest.mark.parametrize(
    "shape", [(2, 70, 48, 5), (1, 33, 16, 16), (3, 1, 7, 2), (1, 300, 144, 16)]
)
def test_kernel_equals_the_recurrence(shape: tuple[int, int, int, int]) -> None:
    given = draw(*shape)
    close(
        gradients(selective_scan, as_float32(given)),
        gradients(selective_scan_sequential, given),
        1e-5,
    )


@pytest.mark.parametrize("left_out", [{"D"}, {"z"}, {"state"}, {"D", "z", "state"}])
def test_what_can_be_left_out(left_out: set[str]) -> None:
    given = {name: t for name, t in draw(2, 40, 20, 3).items() if name not in left_out}
    close(
        gradients(selective_scan, as_float32(given)),
        gradients(selective_scan_sequential, given),
        1e-5,
    )


def test_chunks_of_pytorch_equal_the_recurrence() -> None:
    given = draw(2, 150, 6, 3)  # float64 does not go to the kernel
    close(gradients(selective_scan, given), gradients(selective_scan_sequential, given), 1e-11)


@settings(deadline=None, max_examples=20)
@given(size=st.integers(1, 64), length=st.integers(1, 130))
def test_any_cut_gives_the_same(size: int, length: int) -> None:
    given = as_float32(draw(2, length, 24, 4))
    state = given.pop("state")
    whole, last = selective_scan(**given, state=state)
    pieces = []
    for start in range(0, length, size):
        cut = {k: v[:, start : start + size] if v.dim() == 3 else v for k, v in given.items()}
        y, state = selective_scan(**cut, state=state)
        pieces.append(y)
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5)
    assert torch.allclose(state, last, atol=1e-5)


def test_views_and_half_precision_are_taken() -> None:
    given = as_float32(draw(2, 30, 16, 4))
    both = torch.cat([given["x"], given["z"]], dim=-1)
    views = given | dict(zip(("x", "z"), both.chunk(2, dim=-1), strict=True))
    assert torch.equal(selective_scan(**given)[0], selective_scan(**views)[0])
    y, last = selective_scan(**{name: t.bfloat16() for name, t in given.items()})
    assert y.dtype == torch.bfloat16 and last.dtype == torch.float32


def test_the_number_of_threads_changes_nothing() -> None:
    given = as_float32(draw(1, 400, 64, 8))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(gradients(selective_scan, given))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_not_a_number_is_not_hidden() -> None:
    given = as_float32(draw(1, 50, 16, 4))
    with torch.no_grad():
        given["dt"][0, 20, 3] = torch.nan
    y, _ = selective_scan(**given)
    assert torch.isnan(y[0, 20:, 3]).all() and not torch.isnan(y[0, :20]).any()
    assert not torch.isnan(y[..., 4:]).any()
