"""Quantised matrices that a linear layer computes with as they are, without unpacking the whole.

At loading, the blocks of a GGUF tensor become int8 codes, float32 scales and, for Q4_1, float32
offsets: one shape for all block types, so one kernel. The values are exactly those that
`dequantize` gives; only the order of the sums differs.

A few rows of activations (decoding) go through the kernel, which reads about 1.1 bytes per weight
instead of 4. Many rows (a prompt) are cheaper through a dequantised copy of a slice of rows and
PyTorch's matrix product.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
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
_KERNEL_ROWS = 32  # of activations; beyond that the matrix product wins
_GROUP = 4  # activations that one kernel takes together
_SLICE_WEIGHTS = 1 << 21  # dequantised at a time in the matrix product, 8 MB
_SPLIT_WEIGHTS = 1 << 21  # a matrix this large is worth handing to a second thread


class PackedMatrix:
    """(rows, columns) as codes, scales and offsets: value = scale * code + offset, per block of 32.

    Raises: UserError for a block type that is not in PACKED_TYPES.
    """

    def __init__(self, tensor: GGUFTensor) -> None:
        rows, columns = tensor.shape
        blocks = np.asarray(tensor.data).reshape(rows * columns // BLOCK, -1)
        if tensor.type == "Q8_0":
            codes, offsets = blocks[:, 2:].view(np.int8), None
        elif tensor.type == "Q4_0":
            codes, offsets = _nibbles(blocks[:, 2:]) - np.int8(8), None
        elif tensor.type == "Q4_1":
            codes, offsets = _nibbles(blocks[:, 4:]), _halves(blocks[:, 2:4], rows)
        else:
            raise UserError(f"{tensor.name}: {tensor.type} can't be computed with; dequantise it")
        self.shape = (rows, columns)
        self.codes = np.ascontiguousarray(codes).reshape(rows, columns)
        self.scales = _halves(blocks[:, :2], rows)
        self.offsets = offsets

    @property
    def num_bytes(self) -> int:
        """Memory that the matrix holds."""
        parts = (self.codes, self.scales, self.offsets)
        return sum(part.nbytes for part in parts if part is not None)

    def dequantized(self, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """float32 values of some rows, (num_rows, columns)."""
        blocks = self.codes[rows].reshape(-1, self.shape[1] // BLOCK, BLOCK)
        values = blocks * self.scales[rows][:, :, None]
        if self.offsets is not None:
            values += self.offsets[rows][:, :, None]
        return values.reshape(-1, self.shape[1])

    def product(self, x: np.ndarray) -> np.ndarray:
        """x (N, columns) float32 -> (N, rows) float32."""
        if len(x) > _KERNEL_ROWS:
            return self._matrix_product(x)
        out = np.empty((len(x), self.shape[0]), dtype=np.float32)
        one, four = _kernels()
        grouped = len(x) // _GROUP * _GROUP
        for at in range(0, grouped, _GROUP):
            self._dots(four, x[at : at + _GROUP], out[at : at + _GROUP])
        for at in range(grouped, len(x)):
            self._dots(one, x[at], out[at])
        if self.offsets is not None:
            sums = x.reshape(len(x), self.shape[1] // BLOCK, BLOCK).sum(axis=2)
            out += sums @ self.offsets.T
        return out

    def _dots(self, kernel: Callable[..., None], x: np.ndarray, out: np.ndarray) -> None:
        """Run a kernel over all rows of the matrix, large ones in parts on several threads."""
        rows = self.shape[0]
        parts = _threads() if self.codes.size >= _SPLIT_WEIGHTS else 1
        if parts == 1:
            kernel(self.codes, self.scales, x, out, 0, rows)
            return
        ends = [rows * i // parts // 4 * 4 for i in range(parts)] + [rows]
        waiting = [
            _pool().submit(kernel, self.codes, self.scales, x, out, ends[i], ends[i + 1])
            for i in range(1, parts)
        ]
        kernel(self.codes, self.scales, x, out, ends[0], ends[1])
        for part in waiting:
            part.result()

    def _matrix_product(self, x: np.ndarray) -> np.ndarray:
        rows, columns = self.shape
        out = np.empty((len(x), rows), dtype=np.float32)
        x_t, out_t = torch.from_numpy(x), torch.from_numpy(out)
        step = max(1, _SLICE_WEIGHTS // columns)
        for first in range(0, rows, step):
            weights = torch.from_numpy(self.dequantized(slice(first, first + step)))
            out_t[:, first : first + step] = x_t @ weights.T
        return out


class _Product(torch.autograd.Function):
    """x @ W.T with a gradient for x and none for the packed W."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, matrix: PackedMatrix) -> torch.Tensor:
        context.matrix = matrix
        flat = np.ascontiguousarray(x.detach().reshape(-1, matrix.shape[1]).numpy())
        return torch.from_numpy(matrix.product(flat)).view(*x.shape[:-1], matrix.shape[0])

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0] @ torch.from_numpy(context.matrix.dequantized()), None


class PackedLinear(nn.Module):
    """A linear layer without bias over a packed matrix (out, in), one of PACKED_TYPES."""

    def __init__(self, tensor: GGUFTensor) -> None:
        super().__init__()
        self.matrix = PackedMatrix(tensor)
        self.out_features, self.in_features = self.matrix.shape
        self.block_type = tensor.type

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out) float32."""
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
        rows = torch.from_numpy(self.matrix.dequantized(ids))
        return rows.view(*input_ids.shape, self.embedding_dim)

    def dequantized(self) -> torch.Tensor:
        """The table as float32 (num_embeddings, embedding_dim)."""
        return torch.from_numpy(self.matrix.dequantized())


def _nibbles(raw: np.ndarray) -> np.ndarray:
    return np.concatenate([raw & 15, raw >> 4], axis=1).view(np.int8)


def _halves(raw: np.ndarray, rows: int) -> np.ndarray:
    return raw.copy().view(np.float16).astype(np.float32).reshape(rows, -1)


@functools.cache
def _kernels() -> tuple[Callable[..., None], Callable[..., None]]:
    """For one activation and for four."""
    from lmworks.models._packed_numba import scaled_dots, scaled_dots_of_four

    return scaled_dots, scaled_dots_of_four


def _threads() -> int:
    return min(torch.get_num_threads(), usable_cores())


@functools.cache
def _pool() -> ThreadPoolExecutor:
    # Our own threads: numba's pools are either not safe to call from two threads at once, or a
    # second OpenMP runtime beside PyTorch's.
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 2) - 1), thread_name_prefix="packed")
