"""One forward over some slots of a cache: where to write, what to read.

A layer asks in one of two ways. `append` (or `extend`) writes the new positions and gives back all
that is held, in one piece, as any attention can read it. `attend` writes them and reads the pages
where they lie (see `paged_attention`), for steps of few positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lmworks.models import paged_attention
from lmworks.models.ring import Ring

if TYPE_CHECKING:
    from lmworks.models.cache import CacheView
    from lmworks.models.config import AttentionConfig
    from lmworks.models.paged_attention import Calls
    from lmworks.models.positions import Rotary

# Beyond this many positions a step computes the cosines and sines of its own positions: a table
# would grow with the sequence, which a window's ring does not.
_LONGEST_TABLE = 4096


class CacheStep:
    """One forward's plan, made once for all layers.

    Attributes:
        starts: (B,) int64, how many positions each row holds before the step.
        total: the positions of the longest row after it.
        table: (B, pages) int32, the pages of each row; 0 where a row has fewer.
        lengths: of each row after the step, or what it is expected to have later: the length that
            its rotary frequencies go by.
        positions: (B, T) of each new token in its own row.
    """

    def __init__(self, view: CacheView, num_new: int) -> None:
        self.view, self.num_new = view, num_new
        cache, starts = view.cache, view.lengths
        self.device = cache.device
        self.start = starts[0]
        self.total = max(starts) + num_new
        self.even = min(starts) == max(starts)
        self.rows = _as_slice(view.slots)
        self.slots = torch.tensor(view.slots, device=self.device)
        self.starts = np.array(starts, dtype=np.int64)
        self.lengths = view.reading_lengths(num_new)
        self.table = cache.table_of(view.slots, self.total)
        new = torch.arange(num_new, device=self.device)
        self.positions = torch.tensor(starts, device=self.device)[:, None] + new
        self._rotary: dict[Rotary, tuple[torch.Tensor, torch.Tensor]] = {}
        self._rings: dict[int, Ring] = {}
        self._prepared: dict[tuple[Any, ...], Calls] = {}

    def prepared(self, make: Callable[..., Calls], *shape: Any) -> Calls:
        """What `make(step, *shape)` gave when a layer of this shape first asked."""
        key = (make, *shape)
        if key not in self._prepared:
            self._prepared[key] = make(self, *shape)
        return self._prepared[key]

    def ring(self, size: int) -> Ring:
        """This step in the layers whose rings have `size` positions."""
        if size not in self._rings:
            self._rings[size] = Ring(size, self.view.lengths, self.num_new, self.device)
        return self._rings[size]

    def rotary(self, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of the new positions, broadcastable to (B, heads, T, D)."""
        if rotary not in self._rotary:
            positions = self.positions[:1] if self.even else self.positions
            alike = not rotary.grows and rotary.same_tables(self.lengths)
            if self.total > _LONGEST_TABLE and alike:
                cos, sin = rotary.at(positions, self.lengths[0])
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
        total = self.total
        if rotary.same_tables(self.lengths):
            cos, sin = rotary.tables(self.lengths[0], self.device, num_positions=total)
            return cos[None, :total], sin[None, :total]
        tables = [
            rotary.tables(length, self.device, num_positions=total) for length in self.lengths
        ]
        cosines, sines = (
            torch.stack([table[:total] for table in kind]) for kind in zip(*tables, strict=True)
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
        return paged_attention.extend(held, new, step)

    def attends(self, q: torch.Tensor, config: AttentionConfig) -> bool:
        """Whether `attend` can take such queries (B, N, T, D)."""
        return self._ring is None and paged_attention.attends(q, config)

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, config: AttentionConfig
    ) -> torch.Tensor:
        """Write k and v (B, K, T, D); what each of q (B, N, T, D) gathers of all that is held
        up to its own position, (B, N, T, D)."""
        keys, values = self._growing["keys"], self._growing["values"]
        return paged_attention.attend(keys, values, q, k, v, self._step, config.scale)

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
