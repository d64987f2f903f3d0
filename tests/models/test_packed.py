"""Packed matrices: the products of the unpacked ones, for every shape, and for two threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from lmworks.core.errors import UserError
from lmworks.core.ggml_types import TYPES
from lmworks.core.gguf import GGUFTensor, dequantize
from lmworks.models import packed
from lmworks.models.packed import PACKED_TYPES, PackedEmbedding, PackedLinear, PackedMatrix

# name: where the float16 scales of a block lie
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "IQ4_NL": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "IQ4_XS": (0,),
}  # fmt: skip


def tensor(kind: str, rows: int, columns: int, seed: int = 0) -> GGUFTensor:
    """Random codes with scales (and offsets) of both signs, about as large as weights have."""
    random = np.random.default_rng(seed)
    blocks = rows * columns // TYPES[kind].size
    raw = random.integers(0, 256, (blocks, TYPES[kind].num_bytes), dtype=np.uint8)
    for at in HALVES[kind]:
        halves = random.normal(0, 0.02, (blocks, 1)).astype(np.float16)
        raw[:, at : at + 2] = halves.view(np.uint8)
    return GGUFTensor(name="w", shape=(rows, columns), type=kind, data=raw.reshape(-1))


def wide(kind: str, columns: int) -> int:
    """At least so many columns, in whole blocks."""
    size = TYPES[kind].size
    return -(-columns // size) * size


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    scale = expected.abs().max().item() or 1.0
    assert ours.dtype == torch.float32 and ours.shape == expected.shape
    assert (ours - expected).abs().max().item() <= 2e-6 * scale


def near(ours: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    """Within a float32 rounding of the row's largest number, times all weights: the sum itself may
    be near zero."""
    x, weight = x.double(), weight.double()
    size = x.abs().amax(1, keepdim=True) * weight.abs().sum(1)
    assert ours.dtype == torch.float32
    assert ((ours.double() - x @ weight.T).abs() <= 1.2e-7 * size).all()


@pytest.mark.parametrize("kind", PACKED_TYPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 33])
@pytest.mark.parametrize("columns", [32, 160, 300])
def test_the_product_is_that_of_the_unpacked_matrix(kind: str, rows: int, columns: int) -> None:
    columns = wide(kind, columns)
    source = tensor(kind, rows, columns)
    layer, weight = PackedLinear(source), torch.from_numpy(dequantize(source))
    generator = torch.Generator().manual_seed(0)
    for count in (*range(13), 255, 256, 257, 300):  # around the change to the matrix product
        x = torch.randn(count, columns, generator=generator)
        if count == 0:
            assert layer(x).shape == (0, rows)
        else:
            near(layer(x), x, weight)


@pytest.mark.parametrize("kind", PACKED_TYPES)
def test_a_product_does_not_depend_on_its_neighbours(kind: str) -> None:
    columns = wide(kind, 96)
    layer = PackedLinear(tensor(kind, 9, columns))
    x = torch.randn(7, columns, generator=torch.Generator().manual_seed(0))
    for count in range(1, 8):
        assert torch.equal(layer(x[:count]), torch.cat([layer(row[None]) for row in x[:count]]))


@pytest.mark.parametrize("kind", PACKED_TYPES)
def test_what_is_not_a_number_stays_visible(kind: str) -> None:
    columns = wide(kind, 64)
    layer, x = PackedLinear(tensor(kind, 5, columns)), torch.ones(6, columns)
    x[1, 3], x[4, 40] = float("nan"), float("inf")
    out = layer(x)
    assert out[1].isnan().all() and not out[4].isfinite().any()
    assert out[[0, 2, 3, 5]].isfinite().all()


@pytest.mark.parametrize("kind", PACKED_TYPES)
def test_unpacked_it_is_what_the_file_says(kind: str) -> None:
    source = tensor(kind, 7, wide(kind, 64))
    expected = torch.from_numpy(dequantize(source))
    assert torch.equal(PackedLinear(source).dequantized(), expected)
    assert torch.equal(PackedEmbedding(source).dequantized(), expected)


@pytest.mark.parametrize("kind", PACKED_TYPES)
@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("slice_weights", [1, 4 * 64, 1 << 21])
def test_the_gradient_reaches_the_activations(
    kind: str, rows: int, slice_weights: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "_SLICE_WEIGHTS", slice_weights)
    columns = wide(kind, 64)
    source = tensor(kind, 42, columns)  # three slices where they are smallest
    x = torch.randn(
        2, rows, columns, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    upstream = torch.randn(2, rows, 42, generator=torch.Generator().manual_seed(1))
    (PackedLinear(source)(x) * upstream).sum().backward()
    assert x.grad is not None
    close(x.grad, upstream @ torch.from_numpy(dequantize(source)))


@pytest.mark.parametrize("shape", [(64,), (1, 64), (3, 64), (2, 3, 64), (2, 0, 64)])
def test_leading_dimensions_stay(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape)
    assert PackedLinear(tensor("Q8_0", 5, 64))(x).shape == (*shape[:-1], 5)


def test_activations_need_not_lie_together() -> None:
    source = tensor("Q4_0", 5, 64)
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)).T
    assert not x.is_contiguous()
    close(PackedLinear(source)(x), x @ torch.from_numpy(dequantize(source)).T)


@pytest.mark.parametrize("kind", PACKED_TYPES)
def test_rows_are_looked_up(kind: str) -> None:
    columns = wide(kind, 32)
    source = tensor(kind, 20, columns)
    table, ids = torch.from_numpy(dequantize(source)), torch.tensor([[0, 19, 3], [3, 3, 7]])
    embedding = PackedEmbedding(source)
    assert torch.equal(embedding(ids), table[ids])
    assert embedding(torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0, columns)
    for bad in (-1, 20):
        with pytest.raises(IndexError, match="out of range"):
            embedding(torch.tensor([bad]))


@pytest.mark.parametrize("kind", PACKED_TYPES)
def test_two_threads_at_once_do_not_disturb_each_other(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a machine with cores to spare: every product is itself split between threads.
    monkeypatch.setattr(packed, "_SPLIT_PRODUCTS", 1)
    monkeypatch.setattr(packed, "_threads", lambda: 3)
    columns = wide(kind, 64)
    layers = [PackedLinear(tensor(kind, 101, columns, seed)) for seed in range(2)]
    x = torch.randn(1, columns, generator=torch.Generator().manual_seed(0))
    expected = [x @ layer.dequantized().T for layer in layers]

    def work(index: int) -> torch.Tensor:
        results = [layers[index](x) for _ in range(100)]
        assert all(torch.equal(results[0], r) for r in results)
        return results[0]

    with ThreadPoolExecutor(2) as pool:
        for ours, truth in zip(pool.map(work, [0, 1]), expected, strict=True):
            close(ours, truth)


def test_threads_that_share_a_matrix_do_not_share_its_description() -> None:
    matrix = PackedMatrix(tensor("Q8_0", 5, 64))
    first = matrix._arguments()
    description = matrix.description()
    for _ in range(3):
        matrix._arguments()
    start = first[packed.slots.MATRIX] - first.ctypes.data
    assert first[start // 8 :].tolist() == description  # the call's own memory, not the matrix's


@pytest.mark.parametrize("parts", [1, 2, 3, 16])
@pytest.mark.parametrize("rows", [1, 5, 14, 64])
def test_split_between_threads_it_is_the_same_product(
    monkeypatch: pytest.MonkeyPatch, parts: int, rows: int
) -> None:
    source = tensor("Q4_1", rows, 96)
    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))
    whole = PackedLinear(source)(x)
    monkeypatch.setattr(packed, "_SPLIT_PRODUCTS", 1)
    monkeypatch.setattr(packed, "_threads", lambda: parts)
    close(PackedLinear(source)(x), whole)


@pytest.mark.parametrize("multiplies_bytes", [True, False])
def test_a_prompt_is_worked_off_in_slices(
    monkeypatch: pytest.MonkeyPatch, multiplies_bytes: bool
) -> None:
    source = tensor("Q8_0", 45, 64)
    x = torch.randn(9, 64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(packed, "_KERNEL_ROWS", 8)
    monkeypatch.setattr(packed, "_SLICE_WEIGHTS", 8 * 64)
    monkeypatch.setattr(packed, "_multiplies_bytes", lambda: multiplies_bytes)
    close(PackedLinear(source)(x), x @ torch.from_numpy(dequantize(source)).T)


@pytest.mark.parametrize(
    ("kind", "num_bytes"), [("Q8_0", 36), ("Q4_0", 20), ("Q4_1", 24), ("Q4_K", 24), ("Q6_K", 40)]
)
def test_the_memory_is_that_of_codes_and_scales(kind: str, num_bytes: int) -> None:
    assert PackedMatrix(tensor(kind, 16, 256)).num_bytes == 16 * 8 * num_bytes


def test_a_matrix_is_taken_apart_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_UNPACKED_AT_ONCE", 8 * 256)
    source = tensor("Q5_K", 19, 256)
    assert torch.equal(PackedLinear(source).dequantized(), torch.from_numpy(dequantize(source)))


@pytest.mark.parametrize("parts", [1, 2, 3, 16])
def test_threads_share_a_slice(monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    monkeypatch.setattr(packed, "_SPLIT_WEIGHTS", 1)
    monkeypatch.setattr(packed, "_threads", lambda: parts)
    source = tensor("Q4_1", 33, 64)
    assert torch.equal(PackedLinear(source).dequantized(), torch.from_numpy(dequantize(source)))


def test_a_bias_is_added_and_learns() -> None:
    source, bias = tensor("Q8_0", 5, 64), torch.nn.Parameter(torch.arange(5.0))
    layer, x = PackedLinear(source, bias), torch.randn(3, 64, requires_grad=True)
    close(layer(x).detach(), (x @ layer.dequantized().T + bias).detach())
    layer(x).sum().backward()
    assert bias.grad is not None and bias.grad.tolist() == [3.0] * 5


def test_another_type_is_refused() -> None:
    plain = GGUFTensor(name="w", shape=(1, 32), type="F32", data=np.zeros(128, np.uint8))
    with pytest.raises(UserError, match="w: F32 can't be computed with"):
        PackedLinear(plain)


def test_activations_of_another_precision_are_refused() -> None:
    with pytest.raises(TypeError, match="float32 activations"):
        PackedLinear(tensor("Q8_0", 4, 32))(torch.ones(1, 32, dtype=torch.float64))


def test_activations_of_another_length_are_refused() -> None:
    for shape in [(1, 64), (2, 16), (3,)]:
        with pytest.raises((RuntimeError, ValueError)):
            PackedLinear(tensor("Q8_0", 4, 32))(torch.ones(shape))
    for x in (np.ones((1, 64), np.float32), np.ones((32, 2), np.float32).T):
        with pytest.raises(ValueError, match=r"\(N, 32\)"):
            PackedMatrix(tensor("Q8_0", 4, 32)).product(x)
