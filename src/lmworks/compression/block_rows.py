"""A matrix of quantised rows as the arrays that the solver works on, and back to bytes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from lmworks.core.block_parts import FORMATS, UNEVEN, Parts
from lmworks.core.ggml_types import TYPES
from lmworks.core.quantizers import check_writable, quantize

if TYPE_CHECKING:
    from lmworks.core.gguf import GGUFTensor


@dataclasses.dataclass(frozen=True)
class BlockRows:
    """Rows of one type; the arrays are the caller's to change, within the type's limits.

    Attributes:
        codes: (rows, n) int8.
        d, m: (rows, n / size) float32, each a float16's value; m is 0 where a type has none.
        scales, offsets: (rows, n / group) int8, 1 where a type has none.
    """

    kind: str
    codes: np.ndarray
    d: np.ndarray
    m: np.ndarray
    scales: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of_tensor(cls, tensor: GGUFTensor) -> BlockRows:
        """Take a tensor's rows apart. Raises: UserError for a type that can't be written."""
        check_writable(tensor.type, tensor.name)
        raw = np.asarray(tensor.data).reshape(-1, TYPES[tensor.type].num_bytes)
        return cls.of_bytes(raw.reshape(tensor.shape[0], -1), tensor.type)

    @classmethod
    def of_bytes(cls, raw: np.ndarray, kind: str) -> BlockRows:
        """Rows of bytes, uint8 (rows, bytes of a row), taken apart."""
        parts = FORMATS[kind].split(raw.reshape(-1, TYPES[kind].num_bytes))
        return cls.of_parts(parts, kind, len(raw))

    @classmethod
    def rounded(cls, values: np.ndarray, kind: str) -> BlockRows:
        """float32 (rows, n) on the grid that plain re-quantisation chooses."""
        return cls.of_bytes(quantize(values, kind), kind)

    @classmethod
    def of_parts(cls, parts: Parts, kind: str, rows: int) -> BlockRows:
        """The blocks of `rows` rows, in order."""
        shape = (len(parts.d), TYPES[kind].size // FORMATS[kind].group)
        ones, nothing = np.ones(shape, dtype=np.int8), np.zeros(parts.d.shape, dtype=np.float32)
        arrays = (
            parts.codes,
            parts.d.astype(np.float32),
            nothing if parts.m is None else parts.m.astype(np.float32),
            ones if parts.scales is None else parts.scales,
            ones if parts.offsets is None else parts.offsets,
        )
        return cls(kind, *(array.reshape(rows, -1).copy() for array in arrays))

    @property
    def limits(self) -> np.ndarray:
        """What a solver may choose, (7,): least and largest code, scale, offset, and then whether
        there is an m."""
        form, fixed = FORMATS[self.kind], (0, 0)
        values = (
            (form.low, form.high), form.scales or fixed, form.offsets or fixed,
            (int(form.shifted),),
        )  # fmt: skip
        return np.array([number for pair in values for number in pair], dtype=np.int64)

    @property
    def levels(self) -> np.ndarray:
        """The codes that there are, float32, in order; empty where all whole numbers are."""
        return np.sort(UNEVEN).astype(np.float32) if FORMATS[self.kind].table else np.empty(0, "f")

    def recode(self, values: np.ndarray) -> None:
        """Take the code that is nearest to each of `values` (rows, n), scales being as they are."""
        steps, shifts = self.grid()
        with np.errstate(divide="ignore", invalid="ignore"):
            wanted = (values - shifts) / steps
        if len(levels := self.levels):
            found = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, wanted)]
        else:
            found = np.rint(wanted).clip(*self.limits[:2])
        self.codes[...] = np.where(steps != 0, found, self.codes)

    def copy(self) -> BlockRows:
        """The same, in memory of its own."""
        arrays = (self.codes, self.d, self.m, self.scales, self.offsets)
        return BlockRows(self.kind, *(array.copy() for array in arrays))

    def rows(self, which: slice) -> BlockRows:
        """Some rows; the arrays are the same memory."""
        arrays = (self.codes, self.d, self.m, self.scales, self.offsets)
        return BlockRows(self.kind, *(array[which] for array in arrays))

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """(rows, n) float32 each: step and shift, with value = step code + shift."""
        size, group = TYPES[self.kind].size, FORMATS[self.kind].group
        steps = np.repeat(self.d, size // group, axis=1) * self.scales
        shifts = np.repeat(self.m, size // group, axis=1) * self.offsets
        return np.repeat(steps, group, axis=1), np.repeat(shifts, group, axis=1)

    def values(self) -> np.ndarray:
        """(rows, n) float32, as they will be read again."""
        steps, shifts = self.grid()
        return steps * self.codes + shifts

    def raw(self) -> np.ndarray:
        """The rows' bytes, uint8 (rows, bytes of a row)."""
        form, size = FORMATS[self.kind], TYPES[self.kind].size
        if form.join is None:
            raise ValueError(f"{self.kind} is only read")
        groups = size // form.group
        parts = Parts(
            codes=self.codes.reshape(-1, size),
            d=self.d.reshape(-1, 1).astype(np.float16),
            m=self.m.reshape(-1, 1).astype(np.float16) if form.shifted else None,
            scales=self.scales.reshape(-1, groups) if form.scales else None,
            offsets=self.offsets.reshape(-1, groups) if form.offsets else None,
        )
        return form.join(parts).reshape(len(self.codes), -1)

    def take(self, other: BlockRows, where: np.ndarray) -> None:
        """Put the blocks of `other` in place where (rows, blocks) is True."""
        for mine, theirs in (
            (self.codes, other.codes), (self.d, other.d), (self.m, other.m),
            (self.scales, other.scales), (self.offsets, other.offsets),
        ):  # fmt: skip
            blocks = mine.reshape(*where.shape, -1)
            blocks[where] = theirs.reshape(*where.shape, -1)[where]
