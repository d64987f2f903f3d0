"""A linear layer that adds to each row the low-rank update of that row's own adapter.

The matrices A of all adapters on the layer stand below one another, (R, in), and so do the B,
turned, (R, out); an adapter is a slice of both, which its own layer shares. Where the adapters of a
step are most of what is there, two products serve them all: x A^T for all ranks, the ranks that are
not a row's own set to zero, times B. Else each adapter's rows are taken apart and multiplied with
its slice.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lmworks.models.adapters.lora import LoRALinear

_WASTE = 4  # ranks multiplied for one that is used, up to which two products pay


class RowAdapters:
    """Which adapter each row of the step under way has."""

    def __init__(self) -> None:
        self.rows: dict[str, torch.Tensor] = {}  # of each adapter, as numbers
        self.count = 0
        self._masks: dict[tuple[Slice, ...], torch.Tensor] = {}

    @contextlib.contextmanager
    def of(self, names: Sequence[str]) -> Iterator[None]:
        """Say it, for as long as the step lasts; "" is no adapter."""
        numbers: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            if name:
                numbers.setdefault(name, []).append(row)
        self.rows = {name: torch.tensor(rows) for name, rows in numbers.items()}
        self.count = len(names)
        self._masks.clear()
        try:
            yield
        finally:
            self.rows = {}

    def mask(self, slices: tuple[Slice, ...], ranks: int) -> torch.Tensor:
        """(rows, ranks): the scale of a row's own ranks, and zero. Layers of one make share it."""
        if slices not in self._masks:
            mask = torch.zeros(self.count, ranks)
            for slice_ in slices:
                if (rows := self.rows.get(slice_.name)) is not None:
                    mask[rows, slice_.start : slice_.stop] = slice_.scale
            self._masks[slices] = mask
        return self._masks[slices]


@dataclasses.dataclass(frozen=True)
class Slice:
    """An adapter's ranks among all those of a layer."""

    name: str
    start: int
    stop: int
    scale: float


@dataclasses.dataclass(frozen=True)
class _Bank:
    """All adapters of a layer: replaced whole, so that a step sees one or the other."""

    slices: tuple[Slice, ...]
    a: torch.Tensor  # (R, in)
    b: torch.Tensor  # (R, out)


class MixedLinear(nn.Module):
    """(B, T, in) -> (B, T, out): `base`, and the update that belongs to each row."""

    def __init__(self, base: nn.Module, rows: RowAdapters) -> None:
        super().__init__()
        held: Any = base
        self.base: Any = base
        self.in_features: int = held.in_features
        self.out_features: int = held.out_features
        self._rows = rows
        self._parts: dict[str, LoRALinear] = {}
        self._bank: _Bank | None = None

    def add(self, name: str, part: LoRALinear) -> None:
        """Take an adapter in; `part` goes on with its slice."""
        self._parts[name] = part
        self._lay_out()

    def remove(self, name: str) -> None:
        """Forget an adapter."""
        self._parts.pop(name, None)
        self._lay_out()

    def _lay_out(self) -> None:
        if not self._parts:
            self._bank = None
            return
        slices, at = [], 0
        for name, part in self._parts.items():
            slices.append(Slice(name, at, at + part.rank, part.scale))
            at += part.rank
        with torch.no_grad():
            a = torch.cat([part.lora_A for part in self._parts.values()])
            b = torch.cat([part.lora_B.T for part in self._parts.values()])
        self._bank = _Bank(tuple(slices), a, b)
        for slice_, part in zip(slices, self._parts.values(), strict=True):
            part.lora_A.data = a[slice_.start : slice_.stop]
            part.lora_B.data = b[slice_.start : slice_.stop].T

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        out: torch.Tensor = self.base(x)
        bank, rows = self._bank, self._rows
        if bank is None:
            return out
        used = [slice_ for slice_ in bank.slices if slice_.name in rows.rows]
        wanted = sum((s.stop - s.start) * len(rows.rows[s.name]) for s in used)
        if not used:
            return out
        if len(bank.a) * len(x) <= _WASTE * wanted:
            thin = F.linear(x, bank.a)  # (B, T, R)
            thin *= rows.mask(bank.slices, len(bank.a))[:, None]
            flat = out.view(-1, out.shape[-1])
            flat.addmm_(thin.view(-1, thin.shape[-1]), bank.b)
            return out
        for slice_ in used:
            numbers = rows.rows[slice_.name]
            thin = F.linear(x[numbers], bank.a[slice_.start : slice_.stop])
            update = (thin @ bank.b[slice_.start : slice_.stop]).mul_(slice_.scale)
            out.index_add_(0, numbers, update)
        return out
