"""Quantised matrices that a linear layer computes with as they are, without unpacking the whole.

At loading, the blocks of a GGUF tensor are taken apart into codes (int8, or two 4-bit ones to the
byte), float32 steps for each 16 or 32 of them and, in some types, float32 shifts, and four rows are
laid side by side. The weights are exactly those that `dequantize` gives; only the order of the sums
differs.

A few activations go through the kernel, which reads 0.6 to 1.3 bytes per weight instead of 4. Many
(a long prompt, a training batch) are cheaper through PyTorch's matrix product with a slice of rows
at a time, dequantised by all threads into memory that is used again for the next.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from lmworks.core.block_parts import FORMATS
from lmworks.core.errors import UserError
from lmworks.core.ggml_types import BLOCK, TYPES
from lmworks.core.machine import usable_cores

if TYPE_CHECKING:
    from lmworks.core.gguf import GGUFTensor

PACKED_TYPES = tuple(FORMATS)
TILE = 4  # rows that the kernel takes together
_KERNEL_ROWS = 256  # of activations; beyond that the matrix product wins
_SLICE_WEIGHTS = 1 << 20  # dequantised at a time, 4 MB
_SPLIT_PRODUCTS = 1 << 24  # of weights and activations: enough work to hand to a second thread
_SPLIT_WEIGHTS = 1 << 16  # to dequantise: the same
_UNPACKED_AT_ONCE = 1 << 20  # weights taken apart at loading


class PackedMatrix:
    """(rows, columns) as codes, scales and offsets: value = scale * code + offset, in groups.

    Attributes:
        codes: (tiles, blocks, TILE, 32) int8, or two to the byte (tiles, blocks, TILE, 16) uint8.
        scales, offsets: (tiles, blocks, TILE, groups) float32, of the 1 or 2 groups of 32 numbers;
            offsets are None for types that have none.
    Raises: UserError for a block type that is not in PACKED_TYPES.
    """

    def __init__(self, tensor: GGUFTensor) -> None:
        if tensor.type not in PACKED_TYPES:
            raise UserError(f"{tensor.name}: {tensor.type} can't be computed with; dequantise it")
        rows, columns = tensor.shape
        self.shape = (rows, columns)
        form = FORMATS[tensor.type]
        nibbles = form.high - form.low <= 15
        # Codes below zero are stored from -8 up, as the kernel knows by the lack of offsets.
        lowest = 0 if form.shifted else -8
        tiles, blocks = -(-rows // TILE), columns // BLOCK
        self.codes: np.ndarray = np.zeros(
            (tiles, blocks, TILE, BLOCK // 2 if nibbles else BLOCK),
            dtype=np.uint8 if nibbles else np.int8,
        )
        self.scales = np.zeros((tiles, blocks, TILE, BLOCK // form.group), dtype=np.float32)
        self.offsets = np.zeros_like(self.scales) if form.shifted else None
        raw = np.asarray(tensor.data).reshape(rows, -1)
        step = TILE * max(1, _UNPACKED_AT_ONCE // (TILE * columns))
        for first in range(0, rows, step):
            some = raw[first : first + step]
            parts = form.split(some.reshape(-1, TYPES[tensor.type].num_bytes))
            codes = parts.codes.reshape(len(some), blocks, BLOCK)
            if nibbles:
                halves = (codes - np.int8(lowest)).view(np.uint8)
                codes = halves[..., : BLOCK // 2] | halves[..., BLOCK // 2 :] << np.uint8(4)
            _lay_down(self.codes, codes, first)
            per_group = columns // form.group
            steps = np.broadcast_to(parts.steps(), (len(parts.d), _groups(parts, form.group)))
            _lay_down(self.scales, steps.reshape(len(some), per_group), first)
            shifts = parts.shifts()
            if self.offsets is not None and shifts is not None:
                shifts = np.broadcast_to(shifts, steps.shape)
                _lay_down(self.offsets, shifts.reshape(len(some), per_group), first)

    @property
    def num_bytes(self) -> int:
        """Memory that the matrix holds."""
        parts = (self.codes, self.scales, self.offsets)
        return sum(part.nbytes for part in parts if part is not None)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """float32 values of some rows, (len(ids), columns)."""
        return self._values((ids // TILE, slice(None), ids % TILE)).reshape(-1, self.shape[1])

    def dequantized(self) -> np.ndarray:
        """float32 values of all rows, (rows, columns)."""
        values = np.empty(self.shape, dtype=np.float32)
        self._dequantize(values, 0)
        return values

    def _dequantize(self, out: np.ndarray, first: int) -> None:
        """Values of as many rows as `out` (N, columns) has, from the tile `first` on."""
        tiles = -(-len(out) // TILE)
        parts = _threads() if out.size >= _SPLIT_WEIGHTS else 1
        _in_threads(self._values_of_tiles, parts, tiles, out, first)

    def _values_of_tiles(self, out: np.ndarray, first: int, start: int, stop: int) -> None:
        _kernels().tile_values(self.codes, self.scales, self.offsets, out, first, start, stop)

    def _values(self, index: Any) -> np.ndarray:
        """Codes, scales and offsets at `index` put together: (..., 32)."""
        codes = self.codes[index]
        if codes.dtype == np.uint8:
            codes = np.concatenate([codes & 15, codes >> 4], axis=-1).view(np.int8)
            codes -= np.int8(8 if self.offsets is None else 0)
        each = BLOCK // self.scales.shape[-1]
        values: np.ndarray = codes * np.repeat(self.scales[index], each, axis=-1)
        if self.offsets is not None:
            values += np.repeat(self.offsets[index], each, axis=-1)
        return values

    def product(self, x: np.ndarray) -> np.ndarray:
        """x (N, columns) float32 -> (N, rows) float32. Raises: TypeError for another precision."""
        if x.dtype != np.float32:
            raise TypeError(f"a packed matrix takes float32 activations, not {x.dtype}")
        if len(x) > _KERNEL_ROWS:
            return self._matrix_product(x)
        num_tiles = len(self.codes)
        out = np.empty((len(x), num_tiles * TILE), dtype=np.float32)
        work = self.shape[0] * self.shape[1] * len(x)
        parts = _threads() if work >= _SPLIT_PRODUCTS else 1
        _in_threads(self._dots, parts, num_tiles, x, out)
        return out[:, : self.shape[0]]

    def _dots(self, x: np.ndarray, out: np.ndarray, start: int, stop: int) -> None:
        _kernels().tile_dots(self.codes, self.scales, self.offsets, x, out, start, stop)

    def _matrix_product(self, x: np.ndarray) -> np.ndarray:
        x_t, out = torch.from_numpy(x), torch.empty(len(x), self.shape[0])
        for rows, weights in self._slices():
            torch.mm(x_t, weights.T, out=out[:, rows])
        return out.numpy()

    def gradient(self, upstream: torch.Tensor) -> torch.Tensor:
        """Of x, given that of the product: (..., rows) -> (..., columns)."""
        flat = upstream.detach().reshape(-1, self.shape[0])
        total = flat.new_empty(len(flat), self.shape[1])
        for rows, weights in self._slices():
            if rows.start:
                total.addmm_(flat[:, rows], weights)
            else:
                torch.mm(flat[:, rows], weights, out=total)
        return total.view(*upstream.shape[:-1], self.shape[1])

    def _slices(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """The dequantised matrix, some rows at a time, in memory that the next slice overwrites."""
        rows, columns = self.shape
        step = TILE * max(1, _SLICE_WEIGHTS // (TILE * columns))
        buffer = _buffer(min(step, rows) * columns)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            weights = buffer[: count * columns].view(count, columns)
            self._dequantize(weights.numpy(), first // TILE)
            yield slice(first, first + count), weights


class _Product(torch.autograd.Function):
    """x @ W.T with a gradient for x and none for the packed W."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, matrix: PackedMatrix) -> torch.Tensor:
        context.matrix = matrix
        return _product(x, matrix)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return context.matrix.gradient(gradients[0]), None


def _product(x: torch.Tensor, matrix: PackedMatrix) -> torch.Tensor:
    flat = np.ascontiguousarray(x.detach().numpy()).reshape(-1, matrix.shape[1])
    return torch.from_numpy(matrix.product(flat)).reshape(*x.shape[:-1], matrix.shape[0])


class PackedLinear(nn.Module):
    """A linear layer over a packed matrix (out, in), one of PACKED_TYPES.

    Args:
        bias: (out,) float32, which is trained as any other; None for a layer without.
        matrix: of the same tensor, where it is unpacked already.
    """

    def __init__(
        self,
        tensor: GGUFTensor,
        bias: nn.Parameter | None = None,
        *,
        matrix: PackedMatrix | None = None,
    ) -> None:
        super().__init__()
        self.matrix = matrix or PackedMatrix(tensor)
        self.out_features, self.in_features = self.matrix.shape
        self.block_type = tensor.type
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out) float32."""
        if x.requires_grad and torch.is_grad_enabled():
            out: torch.Tensor = _Product.apply(x, self.matrix)  # type: ignore[no-untyped-call]
        else:
            out = _product(x, self.matrix)
        return out if self.bias is None else out + self.bias

    def dequantized(self) -> torch.Tensor:
        """The weight as float32 (out, in)."""
        return torch.from_numpy(self.matrix.dequantized())


class PackedEmbedding(nn.Module):
    """Rows of a packed matrix, dequantised as they are looked up."""

    def __init__(self, tensor: GGUFTensor) -> None:
        super().__init__()
        self.matrix = PackedMatrix(tensor)
        self.num_embeddings, self.embedding_dim = self.matrix.shape
        self.block_type = tensor.type

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(...,) ids -> (..., embedding_dim) float32. Raises: IndexError past the vocabulary."""
        ids = input_ids.reshape(-1).numpy()
        if len(ids) and (ids.min() < 0 or ids.max() >= self.num_embeddings):
            raise IndexError("token id out of range")
        rows = torch.from_numpy(self.matrix.rows(ids))
        return rows.view(*input_ids.shape, self.embedding_dim)

    def dequantized(self) -> torch.Tensor:
        """The table as float32 (num_embeddings, embedding_dim)."""
        return torch.from_numpy(self.matrix.dequantized())


def _groups(parts: Any, group: int) -> int:
    return int(parts.codes.shape[1]) // group


def _lay_down(target: np.ndarray, rows: np.ndarray, first: int) -> None:
    """Put (N, blocks or blocks * groups, ...) of the rows from `first` on into the tiles."""
    _, blocks, _, width = target.shape
    by_row = rows.reshape(len(rows), blocks, width)
    whole = len(rows) // TILE * TILE
    at = first // TILE
    tiled = by_row[:whole].reshape(-1, TILE, blocks, width)
    target[at : at + len(tiled)] = tiled.transpose(0, 2, 1, 3)
    if rest := len(rows) - whole:  # the last tile is filled with zeros
        target[at + len(tiled), :, :rest] = by_row[whole:].transpose(1, 0, 2)


@functools.cache
def _kernels() -> Any:
    from lmworks.models import _packed_numba

    return _packed_numba


_LOCAL = threading.local()


def _buffer(size: int) -> torch.Tensor:
    """This thread's memory for dequantised weights, (size,) or longer."""
    held: torch.Tensor | None = getattr(_LOCAL, "buffer", None)
    if held is None or len(held) < size:
        held = _LOCAL.buffer = torch.empty(size)
    return held


def _in_threads(work: Callable[..., None], parts: int, count: int, *arguments: Any) -> None:
    """work(*arguments, start, stop) for `parts` parts of range(count), at the same time."""
    ends = [count * i // parts for i in range(parts + 1)]
    waiting = [_pool().submit(work, *arguments, ends[i], ends[i + 1]) for i in range(1, parts)]
    work(*arguments, 0, ends[1])
    for part in waiting:
        part.result()


def _threads() -> int:
    return min(torch.get_num_threads(), _cores())


_cores = functools.cache(usable_cores)  # which reads a file, and does not change


@functools.cache
def _pool() -> ThreadPoolExecutor:
    # Our own threads: numba's pools are either not safe to call from two threads at once, or a
    # second OpenMP runtime beside PyTorch's.
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 2) - 1), thread_name_prefix="packed")


if hasattr(os, "register_at_fork"):  # a child has the pool's queue but none of its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
