"""Where the positions of a window lie in a ring: what a layer keeps that looks back a few only.

Position p of a sequence stands at p modulo the ring's size, so memory stays that of the window
however long the sequence grows. A single new position is written over the one that has just left
the window, and the ring is read as it lies: attention does not ask for an order. A chunk of several
new positions reads the old ones in order with the chunk behind them, since its first queries still
see what its last keys are written over.

A step that fails half-way has written over positions that it would need again, as with the states
of recurrent layers: the slot has to be freed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Ring:
    """One step of `num_new` positions over rings of `size`, for rows that hold `starts` ones.

    Attributes:
        key_positions: (B or 1, S) of what `extend` returns; below 0 where nothing was written.
    """

    def __init__(
        self, size: int, starts: Sequence[int], num_new: int, device: torch.device
    ) -> None:
        self._even = min(starts) == max(starts)
        first = torch.tensor(starts[:1] if self._even else list(starts), device=device)[:, None]
        new = first + torch.arange(num_new, device=device)  # (B or 1, T)
        self._kept = min(num_new, size)
        self._written = new[:, -self._kept :] % size
        self._single = num_new == 1
        self._num_seen = min(max(starts) + 1, size)
        if self._single:
            slots = torch.arange(self._num_seen, device=device)
            self.key_positions = new - (new - slots) % size
            return
        num_old = min(max(starts), size - 1)
        old = first - num_old + torch.arange(num_old, device=device)
        self._old = old % size
        self.key_positions = torch.cat((old, new), 1)

    def extend(
        self, held: torch.Tensor, new: torch.Tensor, slots: torch.Tensor, rows: slice | None
    ) -> torch.Tensor:
        """Write (B, heads, T, D) into (all slots, heads, size, D); return (B, heads, S, D).

        Args:
            slots: (B,) of the rows.
            rows: the same as a slice, if they rise in even steps.
        """
        if self._single:
            self._write(held, new, slots, rows)
            seen = held[:, :, : self._num_seen]
            return seen.index_select(0, slots) if rows is None else seen[rows]
        if rows is not None and self._even:
            old = held[rows].index_select(2, self._old[0])
        else:
            old = held[slots[:, None], :, self._old].transpose(1, 2)
        self._write(held, new, slots, rows)
        return torch.cat((old, new), 2)

    def _write(
        self, held: torch.Tensor, new: torch.Tensor, slots: torch.Tensor, rows: slice | None
    ) -> None:
        kept = new[:, :, -self._kept :]
        if rows is not None and self._even:
            held[rows, :, self._written[0]] = kept
        else:
            held[slots[:, None], :, self._written] = kept.transpose(1, 2)
