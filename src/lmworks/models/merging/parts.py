"""The tensors that one tensor of the result is made of, as methods see them.

A method never holds all of its inputs whole. What it must know of whole tensors (a norm, a
threshold, a mask) it works out from one or two of them at a time; the result itself is then made
in bands of rows, for which any number of models is small.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

_BAND_BYTES = 1 << 20  # of one input

# (first row, last row) -> those rows, in any float type
Read = Callable[[int, int], torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One model's tensor: how its rows are read, and the parameters that hold for it."""

    read: Read
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything that goes into one tensor.

    Attributes:
        models: without the base, in the order of the recipe.
        base: what differences are taken from, or None.
        shape: of all of them; a vector's rows are its numbers.
        dtype: in which the method computes.
        shared: parameters that hold for all of them.
        random: of the methods that draw masks.
        band_bytes: how much of each input is held at a time.
    """

    models: Sequence[Part]
    base: Part | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    shared: Mapping[str, Any]
    random: torch.Generator
    band_bytes: int = _BAND_BYTES

    def bands(self) -> Iterator[tuple[int, int]]:
        """(first row, last row) of each band, in order."""
        rows = self.shape[0] if self.shape else 1
        row_bytes = max(1, self.numel // max(1, rows)) * self.dtype.itemsize
        step = max(1, self.band_bytes // row_bytes)
        for first in range(0, rows, step):
            yield first, min(rows, first + step)

    @property
    def numel(self) -> int:
        """Numbers in each tensor."""
        return int(torch.Size(self.shape).numel())

    def values(self, name: str) -> list[Any]:
        """The parameter `name` of each model."""
        return [part.values[name] for part in self.models]

    def model(self, index: int, band: tuple[int, int] | None = None) -> torch.Tensor:
        """Rows of one model's tensor (all of them by default), fresh memory."""
        return self._rows(self.models[index], band)

    def base_rows(self, band: tuple[int, int] | None = None) -> torch.Tensor:
        """Rows of the base's tensor, fresh memory."""
        assert self.base is not None
        return self._rows(self.base, band)

    def delta(self, index: int, band: tuple[int, int] | None = None) -> torch.Tensor:
        """What a model changed against the base; one tensor and one band in memory."""
        if band is not None:
            return self.model(index, band).sub_(self.base_rows(band))
        whole = self.model(index)
        for first, last in self.bands():
            rows = whole if not self.shape else whole[first:last]
            rows.sub_(self.base_rows((first, last)))
        return whole

    def _rows(self, part: Part, band: tuple[int, int] | None) -> torch.Tensor:
        if band is not None or not self.shape:
            return part.read(*(band or (0, 1))).to(self.dtype)
        whole = torch.empty(self.shape, dtype=self.dtype)
        for first, last in self.bands():
            whole[first:last] = part.read(first, last)
        return whole


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums over whole tensors must not depend on how many threads a machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_memory(
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None = None,
    *,
    values: Sequence[Mapping[str, Any]] = (),
    shared: Mapping[str, Any] | None = None,
    seed: int = 0,
    band_bytes: int = _BAND_BYTES,
) -> Parts:
    """`Parts` of tensors that are there already."""
    everything = [*tensors, *([] if base is None else [base])]
    dtype = promoted([tensor.dtype for tensor in everything])
    values = values or [{} for _ in tensors]
    return Parts(
        models=[Part(read=_reader(t), values=v) for t, v in zip(tensors, values, strict=True)],
        base=None if base is None else Part(read=_reader(base)),
        shape=tuple(everything[0].shape),
        dtype=dtype,
        shared=shared or {},
        random=torch.Generator().manual_seed(seed),
        band_bytes=band_bytes,
    )


def promoted(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """The type that holds numbers of all `dtypes`."""
    found = dtypes[0]
    for dtype in dtypes[1:]:
        found = torch.promote_types(found, dtype)
    return found


def _reader(tensor: torch.Tensor) -> Read:
    def read(first: int, last: int) -> torch.Tensor:
        return tensor.clone() if not tensor.ndim else tensor[first:last].clone()

    return read
