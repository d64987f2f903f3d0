"""Quantised matrices that a linear layer computes with as they are, without unpacking the whole.

At loading, the blocks of a GGUF tensor are taken apart into codes (int8, or two 4-bit ones to the
byte), float32 scales and, for Q4_1, float32 offsets, and four rows are laid side by side. The
weights are exactly those that `dequantize` gives; only the order of the sums differs.

Up to some hundred activations go through the kernel, which reads 0.6 to 1.1 bytes per weight
instead of 4. More (a long prompt) are cheaper through a dequantised copy of a slice of rows and
PyTorch's matrix product.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from lmworks.core.errors import UserError
from lmworks.core.ggml_types import BLOCK
from lmworks.core.machine import usable_cores

if TYPE_CHECKING:
    from lmworks.core.gguf import GGUFTensor

PACKED_TYPES = ("Q8_0", "Q4_0", "Q4_1")
_KERNEL_ROWS = 256  # of activations; beyond that the matrix product wins
TILE = 4  # rows that the kernel takes together
_SLICE_WEIGHTS = 1 << 21  # dequantised at a time, 8 MB
_SPLIT_PRODUCTS = 1 << 24  # of weights and activations: enough work to hand to a second thread


class PackedMatrix:
    """(rows, columns) as codes, scales and offsets: value = scale * code + offset, per block of 32.

    Raises: UserError for a block type that is not in PACKED_TYPES.
    """

    def __init__(self, tensor: GGUFTensor) -> None:
        if tensor.type not in PACKED_TYPES:
            raise UserError(f"{tensor.name}: {tensor.type} can't be computed with; dequantise it")
        rows, columns = tensor.shape
        self.shape = (rows, columns)
        blocks = _tiled(np.asarray(tensor.data), rows, columns // BLOCK)
        self.scales = _float32(blocks[..., :2])
        self.offsets = _float32(blocks[..., 2:4]) if tensor.type == "Q4_1" else None
        codes = blocks[..., 4 if tensor.type == "Q4_1" else 2 :]
        # np.array: a copy that no longer holds on to the file.
        self.codes = np.array(codes.view(np.int8) if tensor.type == "Q8_0" else codes, order="C")

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
        return self._tiles(slice(None))

    def _tiles(self, tiles: slice) -> np.ndarray:
        values = self._values(tiles).transpose(0, 2, 1, 3).reshape(-1, self.shape[1])
        return values[: self.shape[0] - (tiles.start or 0) * TILE]  # without the padding

    def _values(self, index: Any) -> np.ndarray:
        """Codes, scales and offsets at `index` put together: (..., 32)."""
        codes = self.codes[index]
        if codes.dtype == np.uint8:
            codes = np.concatenate([codes & 15, codes >> 4], axis=-1).view(np.int8)
            codes -= np.int8(8 if self.offsets is None else 0)
        values = codes * self.scales[index][..., None]
        if self.offsets is not None:
            values += self.offsets[index][..., None]
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
        ends = [num_tiles * i // parts for i in range(parts + 1)]
        waiting = [
            _pool().submit(self._dots, x, out, ends[i], ends[i + 1]) for i in range(1, parts)
        ]
        self._dots(x, out, 0, ends[1])
        for part in waiting:
            part.result()
        return out[:, : self.shape[0]]

    def _dots(self, x: np.ndarray, out: np.ndarray, first: int, last: int) -> None:
        _kernel()(self.codes, self.scales, self.offsets, x, out, first, last)

    def _matrix_product(self, x: np.ndarray) -> np.ndarray:
        x_t, out = torch.from_numpy(x), torch.empty(len(x), self.shape[0])
        for rows, weights in self._slices():
            out[:, rows] = x_t @ weights.T
        return out.numpy()

    def gradient(self, upstream: torch.Tensor) -> torch.Tensor:
        """Of x, given that of the product: (..., rows) -> (..., columns)."""
        total = upstream.new_zeros(*upstream.shape[:-1], self.shape[1])
        for rows, weights in self._slices():
            total += upstream[..., rows] @ weights
        return total

    def _slices(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """The dequantised matrix, some rows at a time."""
        step = max(1, _SLICE_WEIGHTS // (TILE * self.shape[1]))
        for first in range(0, len(self.codes), step):
            weights = self._tiles(slice(first, first + step))
            start = first * TILE
            yield slice(start, start + len(weights)), torch.from_numpy(weights)


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
    """A linear layer without bias over a packed matrix (out, in), one of PACKED_TYPES."""

    def __init__(self, tensor: GGUFTensor) -> None:
        super().__init__()
        self.matrix = PackedMatrix(tensor)
        self.out_features, self.in_features = self.matrix.shape
        self.block_type = tensor.type

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out) float32."""
        if not (x.requires_grad and torch.is_grad_enabled()):
            return _product(x, self.matrix)
        out: torch.Tensor = _Product.apply(x, self.matrix)  # type: ignore[no-untyped-call]
        return out

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


def _tiled(data: np.ndarray, rows: int, blocks: int) -> np.ndarray:
    """Raw blocks (rows, blocks) -> (tiles, blocks, TILE, bytes), a last tile filled with zeros."""
    by_row = data.reshape(rows, blocks, -1)
    filled = np.pad(by_row, ((0, -rows % TILE), (0, 0), (0, 0)))
    return filled.reshape(-1, TILE, blocks, filled.shape[-1]).transpose(0, 2, 1, 3)


def _float32(raw: np.ndarray) -> np.ndarray:
    """(..., 2) bytes of a float16 -> (...)."""
    return np.array(raw, order="C").view(np.float16).astype(np.float32)[..., 0]


@functools.cache
def _kernel() -> Callable[..., None]:
    from lmworks.models._packed_numba import tile_dots

    kernel: Callable[..., None] = tile_dots
    return kernel


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
