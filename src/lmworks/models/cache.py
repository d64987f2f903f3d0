"""What is kept of sequences under way, so that a new token costs one position.

Keys and values of attention grow with a sequence, the states of recurrent layers do not. Memory
for `num_slots` sequences of at most `max_positions` is reserved, and the system commits its pages
as they are first written. A batch is a view of some slots, whose sequences may have
different lengths: the new positions are written in place after each slot's own length, and a mask
hides what lies beyond. Evenly spaced slots (0, 1, 2 or 1, 3, 5) are read without a copy; others
are gathered, cropped to the longest sequence of the batch. A layer that looks back a window's
length keeps no more than that (see `ring`).

Left out: paging (a slot's memory is reserved whole) and sharing of prefixes between slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from lmworks.core.errors import UserError
from lmworks.models.config import ModelConfig
from lmworks.models.ring import Ring

if TYPE_CHECKING:
    from lmworks.models.positions import Rotary

# Beyond this many positions a step computes the cosines and sines of its own positions: a table
# would grow with the sequence, which a window's ring does not.
_LONGEST_TABLE = 4096


class KVCache:
    """What each layer keeps of `num_slots` sequences, as its config says (`Kept`), float32.

    Per position: (slots, heads, positions, size), keys and values in attention; of a window, a ring
    of its size. Fixed: (slots, *shape), the states of recurrent layers. `lengths[slot]` is the
    number of positions that slot holds. Not safe for two threads at once.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_slots: int,
        max_positions: int,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        if num_slots < 1 or max_positions < 1:
            raise UserError(
                f"a cache needs at least one slot and one position, not {num_slots} and "
                f"{max_positions}"
            )
        kept = [layer.kept(config) for layer in config.layers]
        # The size of a layer's ring, or None where all positions are kept.
        self.rings = [
            layer.window if layer.window is not None and layer.window < max_positions else None
            for layer in kept
        ]
        self.growing: list[dict[str, torch.Tensor]] = [
            {
                name: _zeros((num_slots, heads, ring or max_positions, size), device)
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

    @property
    def num_bytes(self) -> int:
        """The size of it all when every page is in use."""
        layers = [*self.growing, *self.states]
        return sum(tensor.nbytes for layer in layers for tensor in layer.values())

    def view(self, slots: Sequence[int]) -> CacheView:
        """The batch whose row b is slot `slots[b]`. Raises: ValueError for a wrong slot."""
        return CacheView(self, slots)

    def expect(self, slot: int, length: int) -> None:
        """Say that the sequence of `slot` will hold at least so many positions.

        A prompt that is read in chunks is then read as if it came at once, also where rotary
        frequencies depend on the length.
        """
        self.expected[slot] = length

    def free(self, slot: int) -> None:
        """Forget the sequence of `slot`."""
        self.lengths[slot] = self.expected[slot] = 0
        for layer in self.states:
            for state in layer.values():
                state[slot] = 0

    def continue_from(self, slots: Sequence[int], sources: Sequence[int]) -> None:
        """Let slot `slots[i]` hold what slot `sources[i]` holds now; sources may repeat."""
        if list(slots) == list(sources):
            return
        longest = max(self.lengths[source] for source in sources)
        from_, to = torch.tensor(sources), torch.tensor(slots)
        for layer, ring in zip(self.growing, self.rings):
            for held in layer.values():
                kept = held[:, :, : longest if ring is None else ring]
                kept[to] = kept[from_]  # the right side is a copy: places may be exchanged
        for layer in self.states:
            for state in layer.values():
                state[to] = state[from_]
        for counts in (self.lengths, self.expected):
            held_by = [counts[source] for source in sources]
            for slot, count in zip(slots, held_by, strict=True):
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


def _zeros(shape: tuple[int, ...], device: torch.device | str | None) -> torch.Tensor:
    with torch.inference_mode(False):  # a cache made in that mode could be used only there
        # NumPy's zeros are pages that the system hands out when they are written to; torch's
        # would be written at once, and a server reserves for its longest conversations.
        return torch.from_numpy(np.zeros(shape, dtype=np.float32)).to(device or "cpu")


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

    def begin(self, batch_size: int, num_new: int) -> CacheStep:
        """Prepare one forward over `num_new` positions of each row.

        Raises: UserError if a row would run past the cache; ValueError for another batch size.
        """
        if batch_size != len(self.slots):
            raise ValueError(f"input_ids has {batch_size} rows, the cache view {len(self.slots)}")
        longest = max(self.lengths) + num_new
        if longest > self.cache.max_positions:
            raise UserError(
                f"{longest} tokens do not fit the {self.cache.max_positions} positions of the "
                "cache: shorten the prompt, ask for fewer new tokens, or make the cache larger"
            )
        return CacheStep(self, num_new)


class CacheStep:
    """One forward's plan: where to write, what to read. Made once for all layers."""

    def __init__(self, view: CacheView, num_new: int) -> None:
        self.view, self.num_new = view, num_new
        cache, starts = view.cache, view.lengths
        self.device = cache.device
        self.start = starts[0]
        self.total = max(starts) + num_new
        self.even = min(starts) == max(starts)
        self.rows = _as_slice(view.slots)
        self.slots = torch.tensor(view.slots, device=self.device)
        new = torch.arange(num_new, device=self.device)
        # (B, T): the position of each new token in its own row.
        self.positions = torch.tensor(starts, device=self.device)[:, None] + new
        self._rotary: dict[Rotary, tuple[torch.Tensor, torch.Tensor]] = {}
        self._rings: dict[int, Ring] = {}

    def ring(self, size: int) -> Ring:
        """This step in the layers whose rings have `size` positions."""
        if size not in self._rings:
            self._rings[size] = Ring(size, self.view.lengths, self.num_new, self.device)
        return self._rings[size]

    def rotary(self, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the new positions, broadcastable to (B, heads, T, D)."""
        if rotary not in self._rotary:
            positions = self.positions[:1] if self.even else self.positions
            if self.total > _LONGEST_TABLE and not rotary.depends_on_length:
                cos, sin = rotary.at(positions)
                self._rotary[rotary] = cos[:, None], sin[:, None]
            else:
                cos, sin = self.tables(rotary)
                self._rotary[rotary] = rows_of(cos, positions), rows_of(sin, positions)
        return self._rotary[rotary]

    def tables(self, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines by position, (1 or B, total, D).

        Where they depend on the length, each row's are those of its own, whatever rows stand
        beside it.
        """
        expected = [self.view.cache.expected[slot] for slot in self.view.slots]
        if not rotary.depends_on_length or (self.even and len(set(expected)) == 1):
            cos, sin = rotary.tables(max(self.total, *expected), self.device)
            return cos[None, : self.total], sin[None, : self.total]
        tables = [
            rotary.tables(max(start + self.num_new, length), self.device, num_positions=self.total)
            for start, length in zip(self.view.lengths, expected, strict=True)
        ]
        cosines, sines = (
            torch.stack([table[: self.total] for table in kind])
            for kind in zip(*tables, strict=True)
        )
        return cosines, sines

    def layer(self, index: int) -> LayerCache:
        """What the blocks of layer `index` get."""
        return LayerCache(self, index)

    def commit(self) -> None:
        """Count the new positions as held; called when all layers have written."""
        for slot in self.view.slots:
            self.view.cache.lengths[slot] += self.num_new


class LayerCache:
    """One layer's part of a `CacheStep`.

    Attributes:
        positions: (B, T) of the new tokens, or (1, T) where all rows have the same.
        is_causal: the rows begin here, so that plain causal attention is meant.
        sees_all: the one new position of each row sees all that is held.
        rotary: see `CacheStep.rotary`.
    """

    def __init__(self, step: CacheStep, index: int) -> None:
        self._step = step
        self._growing = step.view.cache.growing[index]
        self._states = step.view.cache.states[index]
        size = step.view.cache.rings[index]
        self._ring = None if size is None else step.ring(size)
        self.positions = step.positions[:1] if step.even else step.positions
        self.is_causal = step.even and step.start == 0
        self.sees_all = step.even and step.num_new == 1
        self.rotary = step.rotary

    def append(
        self, k: torch.Tensor, v: torch.Tensor, names: tuple[str, str] = ("keys", "values")
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write k and v (B, heads, T, D); return what is held, (B, heads, S, D)."""
        return self.extend(names[0], k), self.extend(names[1], v)

    def extend(self, name: str, new: torch.Tensor) -> torch.Tensor:
        """Write (B, heads, T, D) of `name`; return what is held of it, (B, heads, S, D)."""
        step, held = self._step, self._growing[name]
        if self._ring is not None:
            return self._ring.extend(held, new, step.slots, step.rows)
        if step.even and step.rows is not None:
            held[step.rows, :, step.start : step.total] = new
        else:
            held[step.slots[:, None], :, step.positions] = new.transpose(1, 2)
        cropped = held[:, :, : step.total]
        return cropped.index_select(0, step.slots) if step.rows is None else cropped[step.rows]

    def key_positions(self, num_seen: int) -> torch.Tensor:
        """(B or 1, S): the positions of what `extend` returned; below 0 where there is none."""
        if self._ring is not None:
            return self._ring.key_positions
        return torch.arange(num_seen, device=self._step.device)[None]

    def key_rotary(self, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the positions that `extend` returned, (B or 1, 1, S, D)."""
        cos, sin = self._step.tables(rotary)
        if self._ring is None:
            return cos[:, None], sin[:, None]
        positions = self._ring.key_positions.clamp(min=0)
        return rows_of(cos, positions), rows_of(sin, positions)

    def state(self, name: str) -> torch.Tensor:
        """The fixed state called `name`, (B, *shape): zeros for a sequence that begins."""
        return self._states[name].index_select(0, self._step.slots)

    def set_state(self, name: str, value: torch.Tensor) -> None:
        """Keep (B, *shape) until the rows' next step."""
        self._states[name][self._step.slots] = value


def rows_of(table: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """(1 or B, rows, D) at positions (B or 1, T) -> (B or 1, 1, T, D)."""
    batch = torch.arange(len(table), device=table.device)[:, None]
    return table[batch, positions][:, None]


def _as_slice(slots: tuple[int, ...]) -> slice | None:
    """`slots` as a slice if they rise in even steps, so that they are read without a copy."""
    step = slots[1] - slots[0] if len(slots) > 1 else 1
    if step < 1 or slots != tuple(range(slots[0], slots[-1] + 1, step)):
        return None
    return slice(slots[0], slots[-1] + 1, step)
