"""Merge methods against mergekit, tensor by tensor, and what must hold of each of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.models.merging.base import METHODS, merge_tensors, method
from lmworks.models.merging.masks import Mask, largest

WEIGHTS, DENSITIES = [0.3, -0.5, 0.9, 0.1], [0.3, 0.55, 0.7, 0.2]
SHAPES = [(33, 65), (130,), (4, 5, 33)]
SPARSE = {
    "task_arithmetic": {},
    "ties": {},
    "dare_linear": {},
    "dare_ties": {},
    "breadcrumbs": {"gamma": [0.05, 0.5, 0.1, 0.01]},
    "breadcrumbs_ties": {"gamma": [0.05, 0.5, 0.1, 0.01]},
    "della_linear": {"epsilon": [0.1, 0.2, 0.25, 0.15]},
    "della": {"epsilon": [0.1, 0.2, 0.25, 0.15]},
}


def _drawn(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
    random = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=random)
    tuned = [base + 0.1 * torch.randn(shape, generator=random) for _ in range(4)]
    return base.to(dtype), [tensor.to(dtype) for tensor in tuned]


def _assert_equal(
    name: str, tensors: list[torch.Tensor], base: torch.Tensor | None, **how: Any
) -> None:
    """To the bit, however many rows are held at a time."""
    from tests.models.merging.mergekit_oracle import theirs

    wanted = theirs(name, tensors, base, **how)
    for band_bytes in (1 << 20, 600):
        found = merge_tensors(name, tensors, base, band_bytes=band_bytes, **how)
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted), (name, how, band_bytes)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SPARSE)
def test_task_vectors_are_mergekits_to_the_bit(name: str, shape: tuple[int, ...]) -> None:
    base, tuned = _drawn(shape, torch.float32)
    for count in (1, 2, 4):
        each = {"weight": WEIGHTS, "density": DENSITIES, **SPARSE[name]}
        each = {key: row[:count] for key, row in each.items()}
        for normalize, rescale in [(True, False), (False, True)]:
            shared = {"normalize": normalize, "rescale": rescale, "lambda": 0.7}
            _assert_equal(name, tuned[:count], base, each=each, shared=shared, seed=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_other_methods_are_mergekits_to_the_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    base, tuned = _drawn(shape, dtype)
    for count in (1, 2, 3, 4):
        for normalize in (True, False):
            each = {"weight": WEIGHTS[:count]}
            _assert_equal("linear", tuned[:count], None, each=each, shared={"normalize": normalize})
        _assert_equal("sce", tuned[:count], base)
        if dtype == torch.float32:
            _assert_equal("sce", tuned[:count], base, shared={"select_topk": 0.4})
        if count > 1:
            for filter_wise in (True, False):
                shared = {"filter_wise": filter_wise}
                _assert_equal("model_stock", tuned[:count], base, shared=shared)
    for t in (0, 0.3, 1, 1.5):
        for other in (tuned[0], base * 1.001, torch.zeros_like(base)):
            _assert_equal("slerp", [other], base, shared={"t": t})
    _assert_equal("nearswap", tuned[:1], base, shared={"t": 0.01})
    for scale in (None, 0.3):
        _assert_equal("passthrough", tuned[:1], None, each={"scale": [scale]})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_base", [False, True])
def test_nuslerp_is_mergekits_to_the_bit(shape: tuple[int, ...], with_base: bool) -> None:
    base, tuned = _drawn(shape, torch.float32)
    for flat, rows in [(True, False), (False, False), (False, True)]:
        shared = {"nuslerp_flatten": flat, "nuslerp_row_wise": rows}
        for weights in ([0.7, 0.3], [2, 1]):
            each = {"weight": weights}
            start = base if with_base else None
            _assert_equal("nuslerp", tuned[:2], start, each=each, shared=shared)


@pytest.mark.parametrize("shape", SHAPES)
def test_spherical_means_are_mergekits_to_the_bit(shape: tuple[int, ...]) -> None:
    base, tuned = _drawn(shape, torch.float32)
    for count in (1, 2, 4):
        _assert_equal("karcher", tuned[:count], None)
        each = {"weight": [0.5, 0.3, 0.9, 0.4][:count]}
        for start in (None, base):
            for normalize in (True, False):
                shared = {"normalize_weights": normalize}
                _assert_equal("multislerp", tuned[:count], start, each=each, shared=shared)


def test_karcher_steps_are_mergekits_to_rounding() -> None:
    """Models far apart: several steps are taken, whose order of sums is not the same."""
    from tests.models.merging.mergekit_oracle import theirs

    random = torch.Generator().manual_seed(0)
    tensors = [torch.randn(33, 65, generator=random) for _ in range(4)]
    found, wanted = merge_tensors("karcher", tensors), theirs("karcher", tensors)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    start = merge_tensors("karcher", tensors, shared={"max_iter": 0})
    assert float((start - wanted).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della_linear", "task_arithmetic"])
def test_bfloat16_masks_that_are_drawn_are_mergekits(name: str) -> None:
    base, tuned = _drawn((33, 65), torch.bfloat16)
    each = {"weight": WEIGHTS, "density": DENSITIES, **SPARSE[name]}
    if name == "task_arithmetic":
        del each["density"]
    _assert_equal(name, tuned, base, each=each, seed=5)


@pytest.mark.parametrize("name", ["ties", "breadcrumbs"])
def test_bfloat16_masks_by_size_differ_only_where_sizes_are_equal(name: str) -> None:
    """Which of several equal changes are kept hangs in mergekit on the machine's sort."""
    from tests.models.merging.mergekit_oracle import theirs

    base, tuned = _drawn((33, 65), torch.bfloat16)
    how: dict[str, Any] = {"each": {"weight": [1.0], "density": [0.3]}}
    found = merge_tensors(name, tuned[:1], base, **how)
    wanted = theirs(name, tuned[:1], base, **how)
    sizes = (tuned[0] - base).abs()
    odd = found != wanted
    assert int((found != base).sum()) == int((wanted != base).sum())
    for size in sizes[odd].unique():
        assert int((sizes == size).sum()) > 1
    assert int(odd.sum()) < 40


@given(
    st.lists(st.sampled_from([0.0, 0.25, 1.0, 2.0, 1e-30]), min_size=1, max_size=40),
    st.integers(-1, 45),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
@settings(deadline=None, max_examples=60)
def test_largest_is_a_stable_sort(sizes: list[float], count: int, dtype: torch.dtype) -> None:
    values = torch.tensor(sizes).to(dtype)
    order = values.float().argsort(descending=True, stable=True)[: max(0, count)]
    wanted = torch.zeros(len(sizes), dtype=torch.bool)
    wanted[order] = True
    mask = largest(lambda: values.split(7), values.shape, dtype, count)
    assert torch.equal(mask.rows(0, len(sizes), values.shape), wanted)


@given(st.integers(0, 9), st.integers(1, 9), st.integers(0, 1 << 20))
@settings(deadline=None, max_examples=60)
def test_masks_give_back_their_rows(rows: int, columns: int, seed: int) -> None:
    kept = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask = Mask.of(kept)
    for first in range(rows):
        for last in range(first, rows + 1):
            part = kept[first:last]
            assert torch.equal(mask.rows(first, last, part.shape), part)


@pytest.mark.parametrize("name", METHODS)
def test_models_that_agree_stay_as_they_are(name: str) -> None:
    """Merging a model with itself gives it back, whatever the method; scalars too."""
    tensor = torch.linspace(-1, 1, 24).reshape(4, 6)
    chosen = method(name)
    count = max(1, chosen.fewest) if chosen.most else max(2, chosen.fewest)
    each = {k: [0.5] * count for k, p in chosen.parameters.items() if p.each and not p.optional}
    each = {k: row for k, row in each.items() if k in ("weight",)}
    shared = {"t": 0.3} if "t" in chosen.parameters else {}
    for value in (tensor, tensor[0], torch.tensor(0.5)):
        base = value if chosen.base == "required" else None
        found = merge_tensors(name, [value] * count, base, each=each, shared=shared)
        torch.testing.assert_close(found, value, rtol=0, atol=1e-6, equal_nan=False)


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ({"each": {"wieght": [1, 1]}}, "did you mean 'weight'"),
        ({}, "needs the parameter 'weight'"),
        ({"each": {"weight": [1, "much"]}}, "is no number"),
        ({"each": {"weight": [1, float("nan")]}}, "give a number"),
        ({"each": {"weight": [1, 1], "density": [1, 2]}}, "from 0.0 up to 1.0"),
        ({"each": {"weight": [1, 1]}, "shared": {"normalize": "maybe"}}, "true or false"),
        ({"each": {"weight": [1, 1], "density": [0.1, 0.1]}}, "epsilon can be at most 0.1"),
    ],
)
def test_parameters_that_make_no_sense(how: dict[str, Any], what: str) -> None:
    base, tuned = _drawn((3, 4), torch.float32)
    with pytest.raises(UserError, match=what):
        merge_tensors("della", tuned[:2], base, **how)


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'slerp'"):
        method("slrp")


def test_results_do_not_hang_on_threads() -> None:
    base, tuned = _drawn((300, 400), torch.float32)
    before = torch.get_num_threads()
    made = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        made.append(merge_tensors("model_stock", tuned, base))
    torch.set_num_threads(before)
    assert torch.equal(*made)
