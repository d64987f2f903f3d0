"""Which numbers of a tensor are kept: masks over whole tensors, one bit a number."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask:
    """Bits of a tensor's numbers in order."""

    bits: np.ndarray  # (numbers / 8,) uint8
    row: int  # numbers in a row

    @classmethod
    def of(cls, kept: torch.Tensor) -> Mask:
        """Of a boolean tensor."""
        rows = kept.shape[0] if kept.ndim else 1
        row = kept.numel() // max(1, rows)
        return cls(bits=np.packbits(kept.reshape(-1).numpy()), row=row)

    @classmethod
    def of_bands(cls, bands: Iterable[torch.Tensor], shape: tuple[int, ...]) -> Mask:
        """Of bands of rows, which together make a tensor of `shape`."""
        kept = torch.empty(shape, dtype=torch.bool)
        first = 0
        for band in bands:
            rows = kept[first : first + len(band)] if shape else kept
            rows.copy_(band)
            first += len(band) if shape else 1
        return cls.of(kept)

    def without(self, other: Mask) -> Mask:
        """True where this one is and `other` is not."""
        return Mask(bits=self.bits & ~other.bits, row=self.row)

    def rows(self, first: int, last: int, shape: torch.Size) -> torch.Tensor:
        """The rows from `first` to `last`, bool."""
        start, stop = first * self.row, last * self.row
        bits = np.unpackbits(self.bits[start // 8 : -(-stop // 8)])
        return torch.from_numpy(bits[start % 8 :][: stop - start].view(bool)).reshape(shape)


def largest(
    bands: Callable[[], Iterable[torch.Tensor]],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    count: int,
) -> Mask:
    """True for the `count` largest numbers, none of them below 0; of equal ones the first.

    The numbers are made twice: once to find the smallest that is kept, by a partition of their bit
    patterns in place (patterns stand in the order of the numbers), and once to compare with it. A
    sort would take the memory of several copies.

    Args:
        bands: gives the rows of the numbers, band by band, whenever it is called.
    """
    total = int(torch.Size(shape).numel())
    count = min(max(count, 0), total)
    if count in (0, total):
        return Mask.of(torch.full(shape, count == total))
    values = torch.empty(total, dtype=dtype)
    first = 0
    for rows in bands():
        values[first : first + rows.numel()] = rows.reshape(-1)
        first += rows.numel()
    codes = values.view(_INTEGERS[dtype.itemsize]).numpy()
    codes.partition(total - count)
    edge = values[total - count].clone()
    # Behind the edge lie `count` numbers, of which those that are larger have their place for sure.
    equal_left = int((codes[total - count :] == codes[total - count]).sum())
    del values, codes

    def kept() -> Iterator[torch.Tensor]:
        nonlocal equal_left
        for rows in bands():
            chosen = rows > edge
            if equal_left:
                flat = chosen.view(-1) if chosen.ndim else chosen.reshape(1)
                equal = (rows == edge).reshape(-1).nonzero()[:equal_left, 0]
                flat[equal] = True
                equal_left -= len(equal)
                chosen = flat.reshape(rows.shape)
            yield chosen

    return Mask.of_bands(kept(), shape)
