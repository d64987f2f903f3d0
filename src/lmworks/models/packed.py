"""Quantised matrices that a linear layer computes with as they are, without unpacking the whole.

At loading, the blocks of a GGUF tensor are taken apart into codes (8 bits, or two 4-bit ones to the
byte), float32 steps for each 16 or 32 of them and, in some types, float32 shifts, and sixteen rows
are laid side by side (see `packed_slots`). The weights are exactly those that `dequantize` gives;
`packed_vectors` says how a product rounds.

A few activations go through the kernel, which reads 0.6 to 1.3 bytes per weight instead of 4. Many
(a long prompt, a training batch) do so too where the processor multiplies bytes; elsewhere they are
cheaper through PyTorch's matrix product with a slice of rows at a time, dequantised by all threads
into memory that is used again for the next. Gradients go that way everywhere.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from lmworks.core import compiled
from lmworks.core.block_parts import FORMATS
from lmworks.core.errors import UserError
from lmworks.core.ggml_types import TYPES
from lmworks.core.machine import usable_cores
from lmworks.models import packed_slots as slots
from lmworks.models.kernel_calls import work_space
from lmworks.models.packed_slots import BLOCK, TILE

if TYPE_CHECKING:
    from lmworks.core.gguf import GGUFTensor

PACKED_TYPES = tuple(FORMATS)
_KERNELS = "lmworks.models.packed_kernels"
_KERNEL_ROWS = 256  # of activations that one call takes, whose records stay in the caches
_SLICE_WEIGHTS = 1 << 20  # dequantised at a time, 4 MB
_SPLIT_PRODUCTS = 1 << 24  # of weights and activations: enough work to hand to a second thread
_SPLIT_WEIGHTS = 1 << 16  # to dequantise: the same
_UNPACKED_AT_ONCE = 1 << 20  # weights taken apart at loading
_KINDS = {  # by (4 bits, with offsets, two scales to a block)
    (True, True, False): slots.NIBBLES,
    (True, True, True): slots.NIBBLES_HALVES,
    (True, False, False): slots.CENTRED,
    (True, False, True): slots.CENTRED_HALVES,
    (False, False, False): slots.BYTES,
    (False, False, True): slots.BYTES_HALVES,
    (False, True, False): slots.BYTES_OFFSETS,
}


class PackedMatrix:
    """(rows, columns) as codes, scales and offsets: value = scale * code + offset, in groups.

    Attributes:
        codes: (tiles, blocks, words, TILE, 4) uint8, as `packed_slots` says.
        scales, offsets: (tiles, blocks, groups, TILE) float32, of the 1 or 2 groups of 32 numbers;
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
        self._middle = 128 if not nibbles else 0 if form.shifted else 8
        self._kind = _KINDS[nibbles, form.shifted, form.group < BLOCK]
        tiles, blocks = -(-rows // TILE), columns // BLOCK
        self.codes: np.ndarray = np.zeros(
            (tiles, blocks, 4 if nibbles else 8, TILE, 4), dtype=np.uint8
        )
        self.scales = np.zeros((tiles, blocks, BLOCK // form.group, TILE), dtype=np.float32)
        self.offsets = np.zeros_like(self.scales) if form.shifted else None
        raw = np.asarray(tensor.data).reshape(rows, -1)
        step = TILE * max(1, _UNPACKED_AT_ONCE // (TILE * columns))
        for first in range(0, rows, step):
            some = raw[first : first + step]
            parts = form.split(some.reshape(-1, TYPES[tensor.type].num_bytes))
            codes = parts.codes.astype(np.uint8) + np.uint8(self._middle)
            words = codes.reshape(len(some), blocks, -1, 4)
            if nibbles:
                words = words[:, :, 0::2] | words[:, :, 1::2] << np.uint8(4)
            _lay_down(self.codes, words, first)
            groups = (len(some), blocks, BLOCK // form.group)
            steps = np.broadcast_to(parts.steps(), (len(parts.d), _groups(parts, form.group)))
            _lay_down(self.scales, steps.reshape(groups), first)
            shifts = parts.shifts()
            if self.offsets is not None and shifts is not None:
                shifts = np.broadcast_to(shifts, steps.shape)
                _lay_down(self.offsets, shifts.reshape(groups), first)

    @classmethod
    def of_codes(
        cls, codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None = None
    ) -> PackedMatrix:
        """A matrix of another format: value = (code - zero) * scale.

        Args:
            codes: (rows, columns) int8; all from -8 to 7 are kept as 4 bits.
            scales: (rows, groups) float32 of equal groups of columns.
            zeros: (rows, groups) int8, or None.
        Raises: ValueError for columns that don't fill blocks of 32, or groups that are not made of
            blocks, or of the halves of blocks.
        """
        rows, columns = codes.shape
        size = columns // scales.shape[1]
        halves = size == BLOCK // 2 and zeros is None
        if columns % BLOCK or columns % size or (size % BLOCK and not halves):
            raise ValueError(f"{columns} columns in groups of {size} don't fill blocks of {BLOCK}")
        nibbles = bool(codes.min(initial=0) >= -8) and bool(codes.max(initial=0) <= 7)
        shifted = zeros is not None
        self = cls.__new__(cls)
        self.shape = (rows, columns)
        self._middle = 128 if not nibbles else 0 if shifted else 8
        self._kind = _KINDS[nibbles, shifted, halves]
        tiles, blocks = -(-rows // TILE), columns // BLOCK
        self.codes = np.zeros((tiles, blocks, 4 if nibbles else 8, TILE, 4), dtype=np.uint8)
        words = (codes.astype(np.int16) + (8 if nibbles else 128)).astype(np.uint8)
        words = words.reshape(rows, blocks, -1, 4)
        if nibbles:
            words = words[:, :, 0::2] | words[:, :, 1::2] << np.uint8(4)
        _lay_down(self.codes, words, 0)
        each = max(1, size // BLOCK)
        steps = np.repeat(scales.astype(np.float32), each, axis=1)
        self.scales = np.zeros((tiles, blocks, 2 if halves else 1, TILE), dtype=np.float32)
        _lay_down(self.scales, steps.reshape(rows, blocks, -1), 0)
        self.offsets = None
        if zeros is not None:
            lifted = np.repeat(zeros.astype(np.float32), each, axis=1) + np.float32(
                8 if nibbles else 0
            )
            self.offsets = np.zeros_like(self.scales)
            _lay_down(self.offsets, (-lifted * steps).reshape(rows, blocks, -1), 0)
        return self

    @property
    def num_bytes(self) -> int:
        """Memory that the matrix holds."""
        parts = (self.codes, self.scales, self.offsets)
        return sum(part.nbytes for part in parts if part is not None)

    def description(self, bias: int = 0) -> list[int]:
        """What kernels are told of it (see `packed_slots`), with the address of a bias or 0."""
        addresses = [part.ctypes.data for part in (self.codes, self.scales)]
        offsets = 0 if self.offsets is None else self.offsets.ctypes.data
        return [self._kind, *self.shape, *addresses, offsets, bias, 0]

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """float32 values of some rows, (len(ids), columns)."""
        tiles, lanes = ids // TILE, ids % TILE
        words = self.codes[tiles, :, :, lanes]  # (N, blocks, words, 4)
        if words.shape[2] == 4:
            words = np.stack([words & 15, words >> 4], axis=3)
        codes = words.reshape(*words.shape[:2], BLOCK).astype(np.float32) - self._middle
        each = BLOCK // self.scales.shape[2]
        values: np.ndarray = codes * np.repeat(self.scales[tiles, :, :, lanes], each, axis=-1)
        if self.offsets is not None:
            values += np.repeat(self.offsets[tiles, :, :, lanes], each, axis=-1)
        return values.reshape(-1, self.shape[1])

    def dequantized(self) -> np.ndarray:
        """float32 values of all rows, (rows, columns)."""
        values = np.empty(self.shape, dtype=np.float32)
        self._dequantize(values, 0)
        return values

    def _dequantize(self, out: np.ndarray, first: int) -> None:
        """Values of as many rows as `out` (N, columns) has, from the tile `first` on."""
        a = self._arguments()
        a[slots.OUT], a[slots.OUT_ROW], a[slots.OUT_ROWS] = out.ctypes.data, out.shape[1], len(out)
        a[slots.SKIPPED] = first
        parts = _threads() if out.size >= _SPLIT_WEIGHTS else 1
        _in_threads("values", parts, -(-len(out) // TILE), a, self, out)

    def product(self, x: np.ndarray) -> np.ndarray:
        """x (N, columns) float32, rows side by side -> (N, rows) float32.

        Raises: TypeError for another precision, ValueError for another layout.
        """
        if x.dtype != np.float32:
            raise TypeError(f"a packed matrix takes float32 activations, not {x.dtype}")
        if x.shape[1:] != self.shape[1:] or not x.flags.c_contiguous:
            raise ValueError(f"activations (N, {self.shape[1]}) are needed, not {x.shape}")
        if len(x) > _KERNEL_ROWS:
            if not _multiplies_bytes():
                return self._matrix_product(x)
            cuts = range(0, len(x), _KERNEL_ROWS)
            return np.concatenate([self.product(x[at : at + _KERNEL_ROWS]) for at in cuts])
        count, columns = x.shape
        num_tiles = len(self.codes)
        out = np.empty((count, num_tiles * TILE), dtype=np.float32)
        records = np.empty(count * columns // BLOCK * slots.RECORD_BYTES, dtype=np.uint8)
        steps = np.empty(count, dtype=np.float32)
        a = self._arguments()
        a[slots.RECORDS], a[slots.STEP_SIZES] = records.ctypes.data, steps.ctypes.data
        a[slots.X], a[slots.X_ROW], a[slots.COUNT] = x.ctypes.data, 4 * columns, count
        a[slots.OUT], a[slots.OUT_ROW], a[slots.WIDTH] = out.ctypes.data, out.shape[1], columns
        work = self.shape[0] * columns * count
        parts = _threads() if work >= _SPLIT_PRODUCTS else 1
        held = (self, x, out, records, steps)
        _in_threads("records", parts if count > parts else 1, count, a, *held)
        _in_threads("product", parts, num_tiles, a, *held)
        return out[:, : self.shape[0]]

    def _arguments(self) -> np.ndarray:
        # The description lies behind the arguments, so that it lives as long as the call.
        a = np.zeros(slots.ARGUMENTS + slots.MATRIX_SLOTS, dtype=np.int64)
        a[slots.ARGUMENTS :] = self.description()
        a[slots.MATRIX] = a[slots.ARGUMENTS :].ctypes.data
        return a

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
        buffer = work_space(min(step, rows) * columns)
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
        tensor: None where the matrix is of another format, which `block_type` then names.
        matrix: of the same tensor, where it is unpacked already.
    """

    def __init__(
        self,
        tensor: GGUFTensor | None,
        bias: nn.Parameter | None = None,
        *,
        matrix: PackedMatrix | None = None,
        block_type: str = "",
    ) -> None:
        super().__init__()
        if tensor is not None:
            matrix, block_type = matrix or PackedMatrix(tensor), tensor.type
        assert matrix is not None
        self.matrix = matrix
        self.out_features, self.in_features = self.matrix.shape
        self.block_type = block_type
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
    """Put (N, blocks, ...) of the rows from `first` on into the lanes of the tiles."""
    lane = target.ndim - 1 if rows.ndim == 3 else 3
    by_lane = np.moveaxis(target, lane, 1)  # (tiles, TILE, blocks, ...)
    whole = len(rows) // TILE * TILE
    at = first // TILE
    tiled = rows[:whole].reshape(-1, TILE, *rows.shape[1:])
    by_lane[at : at + len(tiled)] = tiled
    if rest := len(rows) - whole:  # the last tile is filled with zeros
        by_lane[at + len(tiled), :rest] = rows[whole:]


def _in_threads(name: str, parts: int, count: int, arguments: np.ndarray, *held: Any) -> None:
    """The kernel `name` for `parts` parts of range(count), at the same time.

    Args:
        held: what the arguments point to. Ctrl-C may end this call before the other threads' parts.
    """
    run = compiled.kernel(_KERNELS, name)
    ends = [count * i // parts for i in range(parts + 1)]
    calls = []
    for i in range(parts):
        a = arguments if i == 0 else arguments.copy()
        a[slots.FIRST], a[slots.LAST] = ends[i], ends[i + 1]
        calls.append(a)
    scratch = np.empty((parts, slots.MOST_AT_ONCE * TILE), dtype=np.float32)
    for a, own in zip(calls, scratch):
        a[slots.SCRATCH] = own.ctypes.data
    waiting = [_pool().submit(_run, run, a, arguments, scratch, *held) for a in calls[1:]]
    run(calls[0].ctypes.data)
    for part in waiting:
        part.result()


def _run(kernel: compiled.Kernel, arguments: np.ndarray, *held: Any) -> None:
    kernel(arguments.ctypes.data)


@functools.cache
def _multiplies_bytes() -> bool:
    """Whether the kernel wins whatever the number of rows; see `packed_vectors`."""
    return compiled.has("avx512vnni", "avx512bw")


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
