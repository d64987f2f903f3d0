"""What is kept of sequences under way, so that a new token costs one position.

Keys and values of attention grow with a sequence, the states of recurrent layers do not. What grows
lies in pages of 16 positions (see `pages`), taken from one pool as sequences grow; a slot is a
sequence's place in it: its pages in order, its length, and its rows of what does not grow. The
memory of the pool is reserved, and the system commits it as it is first written to.

Slots may share pages: beams that have a past in common (`continue_from`), sequences that begin
alike (`share`). A page that several use is copied before one of them writes to it.

A batch is a view of some slots, whose sequences may have different lengths; see `cache_step` for
how a forward reads and writes it. A layer that looks back a window's length keeps no more than
that, for each slot a ring of its own (see `ring`), and shares nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from lmworks.core.errors import UserError
from lmworks.models.cache_step import CacheStep
from lmworks.models.cache_types import check_cache_type, decode, row_layout
from lmworks.models.config import ModelConfig
from lmworks.models.pages import PAGE, OutOfPages, PagePool
from lmworks.models.rotary_regimes import Regimes

__all__ = ["PAGE", "CacheView", "KVCache", "OutOfPages"]


class KVCache:
    """What each layer keeps of `num_slots` sequences, as its config says (`Kept`).

    Args:
        max_positions: the longest that a sequence may grow.
        num_pages: of PAGE positions each, for all slots together; by default enough for every
            slot to be full.
        cache_type: how what grows in pages is held: f32, f16, q8_0 (see `cache_types`). The rings
            of windows and the states of recurrent layers stay float32.

    Attributes:
        growing: for each layer, by name: (num_pages, heads, PAGE, size), keys and values in
            attention; of a window a ring of its size, (num_slots, heads, ring, size).
        states: for each layer, by name: (num_slots, *shape), of recurrent layers.
        rings: for each layer the size of its rings, or None where all positions are kept in pages.
        lengths: how many positions each slot holds.
        regimes: by which rotary frequencies each slot's keys are turned, where its length decides.
        tables: the pages of each slot, in order.
        pool: who uses which page.
        can_truncate: whether a sequence can be taken back.
        can_share: whether one can begin with the pages of others.
        make_room: called with a number of pages before `OutOfPages` is raised; it may free some.

    Not safe for two threads at once.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_slots: int,
        max_positions: int,
        *,
        device: torch.device | str | None = None,
        num_pages: int | None = None,
        cache_type: str = "f32",
    ) -> None:
        check_cache_type(cache_type)
        self.cache_type = cache_type
        if num_slots < 1 or max_positions < 1:
            raise UserError(
                f"a cache needs at least one slot and one position, not {num_slots} and "
                f"{max_positions}"
            )
        if num_pages is not None and num_pages < 1:
            raise UserError(f"a cache needs at least one page, not {num_pages}")
        kept = [layer.kept(config) for layer in config.layers]
        self.rings = [
            layer.window if layer.window is not None and layer.window < max_positions else None
            for layer in kept
        ]
        paged = any(k.per_position and ring is None for k, ring in zip(kept, self.rings))
        most = -(-max_positions // PAGE)
        self.pool = PagePool((num_pages or num_slots * most) if paged else 0)
        self.growing: list[dict[str, torch.Tensor]] = [
            {
                name: self._room(num_slots, ring, heads, size, device)
                for name, (heads, size) in layer.per_position.items()
            }
            for layer, ring in zip(kept, self.rings)
        ]
        self.states: list[dict[str, torch.Tensor]] = [
            {name: _zeros((num_slots, *shape), device) for name, shape in layer.fixed.items()}
            for layer in kept
        ]
        self.device = torch.device(device or "cpu")
        self.num_slots, self.max_positions = num_slots, max_positions
        self.lengths = [0] * num_slots
        self.expected = [0] * num_slots
        self.regimes = [0] * num_slots
        self.all_regimes = Regimes(config)
        self.tables: list[list[int]] = [[] for _ in range(num_slots)]
        self._table: np.ndarray = np.zeros((num_slots, most if paged else 0), dtype=np.int32)
        self.make_room: Callable[[int], None] | None = None
        bounded = any(ring is not None for ring in self.rings)
        self.can_truncate = not any(self.states) and not bounded
        self.can_share = paged and self.can_truncate and not self.all_regimes.grows

    def _room(
        self, num_slots: int, ring: int | None, heads: int, size: int, device: Any
    ) -> torch.Tensor:
        if ring is not None:
            return _zeros((num_slots, heads, ring, size), device)
        dtype, width = row_layout(self.cache_type, size)
        return _zeros((self.pool.num_pages, heads, PAGE, width), device, dtype)

    @property
    def num_bytes(self) -> int:
        """The size of it all when every page is in use."""
        layers = [*self.growing, *self.states]
        return sum(tensor.nbytes for layer in layers for tensor in layer.values())

    @property
    def page_bytes(self) -> int:
        """What a page takes, in all layers together."""
        return sum(
            tensor[0].nbytes
            for layer, ring in zip(self.growing, self.rings)
            if ring is None
            for tensor in layer.values()
        )

    def view(self, slots: Sequence[int]) -> CacheView:
        """The batch whose row b is slot `slots[b]`. Raises: ValueError for a wrong slot."""
        return CacheView(self, slots)

    def expect(self, slot: int, length: int) -> None:
        """Say that the sequence of `slot` will hold at least so many positions.

        A prompt that is read in chunks is then read as if it came at once, also where rotary
        frequencies depend on the length.
        """
        self.expected[slot] = length
        if not self.lengths[slot]:
            self.regimes[slot] = self.all_regimes.of(length)

    def free(self, slot: int) -> None:
        """Forget the sequence of `slot`."""
        self.lengths[slot] = self.expected[slot] = self.regimes[slot] = 0
        self._hold(slot, [])
        for layer in self.states:
            for state in layer.values():
                state[slot] = 0

    def reserve(self, slots: Sequence[int], num_new: int) -> None:
        """Make sure that each slot can be written `num_new` positions on: pages of its own.

        All of its pages, where those positions lead it into another regime.
        Raises: OutOfPages, and nothing is changed.
        """
        if not self.pool.num_pages:
            return
        wanted = [(slot, index) for slot in slots for index in self._touched(slot, num_new)]
        missing = self._missing(wanted)
        if missing > self.pool.num_free and self.make_room is not None:
            self.make_room(missing - self.pool.num_free)
        if missing > self.pool.num_free:
            raise OutOfPages(missing, self.pool.num_free, self.pool.num_pages)
        copied: list[tuple[int, int]] = []
        for slot, index in wanted:
            table = self.tables[slot]
            if index < len(table):
                if self.pool.counts[table[index]] == 1:
                    continue  # the others have taken copies
                page = self.pool.take()
                copied.append((table[index], page))
                self.pool.release([table[index]])
                table[index] = page
            else:
                page = self.pool.take()
                table.append(page)
            self._table[slot, index] = page
        self._copy(copied)

    def _touched(self, slot: int, num_new: int) -> range:
        start = self.lengths[slot]
        first = start // PAGE if self.regime_after(slot, num_new) == self.regimes[slot] else 0
        return range(first, -(-(start + num_new) // PAGE))

    def regime_after(self, slot: int, num_new: int) -> int:
        """The regime of a slot that holds `num_new` positions more."""
        return self.all_regimes.of(max(self.lengths[slot] + num_new, self.expected[slot]))

    def turn_keys(self, slot: int, regime: int) -> None:
        """Turn the keys that a slot holds as sequences of a regime are; its pages are its own."""
        if regime != self.regimes[slot] and self.lengths[slot]:
            pages, length = self.tables[slot], self.lengths[slot]
            change = (self.regimes[slot], regime)
            self.all_regimes.turn(self.growing, self.rings, pages, slot, length, change)
        self.regimes[slot] = regime

    def _missing(self, wanted: Sequence[tuple[int, int]]) -> int:
        """Pages to take: new ones, and for a shared one as many as leave one user behind."""
        new, shared = 0, Counter[int]()
        for slot, index in wanted:
            table = self.tables[slot]
            if index >= len(table):
                new += 1
            elif self.pool.counts[table[index]] > 1:
                shared[table[index]] += 1
        counts = self.pool.counts
        return new + sum(min(users, counts[page] - 1) for page, users in shared.items())

    def _copy(self, pages: Sequence[tuple[int, int]]) -> None:
        if not pages:
            return
        from_ = torch.tensor([source for source, _ in pages], device=self.device)
        to = torch.tensor([target for _, target in pages], device=self.device)
        for layer, ring in zip(self.growing, self.rings):
            if ring is None:
                for held in layer.values():
                    held[to] = held[from_]

    def _hold(self, slot: int, pages: Sequence[int]) -> None:
        """Let a slot use these pages and none else."""
        self.pool.retain(pages)
        self.pool.release(reversed(self.tables[slot]))
        self.tables[slot] = list(pages)
        self._table[slot, : len(pages)] = pages

    def table_of(self, slots: Sequence[int], length: int) -> np.ndarray:
        """(B, pages) int32: the pages of the first `length` positions, 0 where a row has fewer."""
        rows = self._table[list(slots), : -(-length // PAGE)]
        for row, slot in zip(rows, slots):
            row[len(self.tables[slot]) :] = 0
        return rows

    def pages_of(self, slot: int) -> list[int]:
        """The pages that the sequence of `slot` fills, in order; one that is begun is left out."""
        return self.tables[slot][: self.lengths[slot] // PAGE]

    def share(self, slot: int, pages: Sequence[int]) -> None:
        """Let an empty slot begin with full pages of others.

        Raises: ValueError for a slot that holds something, or a cache that can't share.
        """
        if self.lengths[slot] or not self.can_share:
            raise ValueError(f"slot {slot} can't begin with the pages of others")
        self._hold(slot, pages)
        self.lengths[slot] = len(pages) * PAGE

    def held(self, layer: int, name: str, slot: int) -> torch.Tensor:
        """A copy of what a layer without a window keeps of a slot: (heads, length, size)."""
        pages = self.growing[layer][name][self.tables[slot]]
        held = pages.transpose(0, 1).flatten(1, 2)[:, : self.lengths[slot]]
        return held.clone() if held.dtype == torch.float32 else decode(held)

    def continue_from(self, slots: Sequence[int], sources: Sequence[int]) -> None:
        """Let slot `slots[i]` hold what slot `sources[i]` holds now; sources may repeat."""
        if list(slots) == list(sources):
            return
        tables = [list(self.tables[source]) for source in sources]
        for pages in tables:
            self.pool.retain(pages)  # so that none is lost while places are exchanged
        for slot, pages in zip(slots, tables, strict=True):
            self._hold(slot, pages)
            self.pool.release(pages)
        from_, to = torch.tensor(sources), torch.tensor(slots)
        for layer, ring in zip(self.growing, self.rings):
            if ring is not None:
                for held in layer.values():
                    held[to] = held[from_]  # the right side is a copy: places may be exchanged
        for layer in self.states:
            for state in layer.values():
                state[to] = state[from_]
        for counts in (self.lengths, self.expected, self.regimes):
            held_counts = [counts[source] for source in sources]
            for slot, count in zip(slots, held_counts, strict=True):
                counts[slot] = count

    def truncate(self, slot: int, length: int) -> None:
        """Keep the first `length` positions of `slot`.

        Raises: ValueError if it holds fewer, or if a layer's state can't be taken back, or if what
            a window then needs was written over.
        """
        if not 0 <= length <= self.lengths[slot]:
            raise ValueError(f"slot {slot} holds {self.lengths[slot]} positions, not {length}")
        if length == 0:
            self.free(slot)
        elif length < self.lengths[slot] and any(self.states):
            raise ValueError("a recurrent state can't be taken back: free the slot, begin anew")
        elif length < self.lengths[slot] and any(
            ring is not None and ring < self.lengths[slot] for ring in self.rings
        ):
            raise ValueError("a window's past was written over: free the slot, begin anew")
        self.lengths[slot] = length
        kept = -(-length // PAGE)
        self.pool.release(reversed(self.tables[slot][kept:]))
        del self.tables[slot][kept:]


_NUMPY: dict[torch.dtype, Any] = {
    torch.float32: np.float32, torch.float16: np.float16, torch.uint8: np.uint8,
}  # fmt: skip


def _zeros(
    shape: tuple[int, ...], device: torch.device | str | None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    with torch.inference_mode(False):  # a cache made in that mode could be used only there
        # NumPy's zeros are pages that the system hands out when they are written to; torch's
        # would be written at once, and a server reserves for its longest conversations.
        return torch.from_numpy(np.zeros(shape, dtype=_NUMPY[dtype])).to(device or "cpu")


class CacheView:
    """Some slots as the rows of a batch; what `Model.forward` takes as `cache`."""

    def __init__(self, cache: KVCache, slots: Sequence[int]) -> None:
        wrong = [slot for slot in slots if not 0 <= slot < cache.num_slots]
        if wrong or not slots or len(set(slots)) != len(slots):
            raise ValueError(f"slots {list(slots)}: each once, from 0 to {cache.num_slots - 1}")
        self.cache, self.slots = cache, tuple(slots)

    @property
    def lengths(self) -> list[int]:
        """The positions that each row holds."""
        return [self.cache.lengths[slot] for slot in self.slots]

    def reading_lengths(self, num_new: int) -> list[int]:
        """Of each row with `num_new` positions more, or what it is expected to have later."""
        cache = self.cache
        return [max(cache.lengths[slot] + num_new, cache.expected[slot]) for slot in self.slots]

    def regimes(self, num_new: int) -> list[int]:
        """Of each row with `num_new` positions more."""
        return [self.cache.regime_after(slot, num_new) for slot in self.slots]

    def begin(self, batch_size: int, num_new: int) -> CacheStep:
        """Prepare one forward over `num_new` positions of each row.

        Raises: as `check` does, and OutOfPages if the pool has too few.
        """
        self.check(batch_size, num_new)
        cache = self.cache
        cache.reserve(self.slots, num_new)
        for slot in self.slots:
            cache.turn_keys(slot, cache.regime_after(slot, num_new))
        return CacheStep(self, num_new)

    def check(self, batch_size: int, num_new: int) -> None:
        """Raises: UserError if a row would run past the cache, ValueError for another batch
        size."""
        if batch_size != len(self.slots):
            raise ValueError(f"input_ids has {batch_size} rows, the cache view {len(self.slots)}")
        longest = max(self.lengths) + num_new
        if longest > self.cache.max_positions:
            raise UserError(
                f"{longest} tokens do not fit the {self.cache.max_positions} positions of the "
                "cache: shorten the prompt, ask for fewer new tokens, or make the cache larger"
            )
