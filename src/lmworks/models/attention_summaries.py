"""What a head does, in a few figures, and small pictures of many heads: over tiles as they come.

All figures are means over the queries from the second token on (the first can only look at
itself, if causal). Attention is a distribution over tokens, so its entropy says how many it is
spread over: 2 to the power of the entropy.

Source: entropy and distance: Clark et al. 2019, arXiv 1906.04341, section 3, and Vig & Belinkov
2019, arXiv 1906.04284; the first token as a sink: Xiao et al. 2023, arXiv 2309.17453; induction as
"prefix matching": Olsson et al. 2022, arXiv 2209.11895, on the repeats that the text itself has.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch

from lmworks.models.attention_trace import Heads, Tile
from lmworks.models.config import AttentionConfig, SlidingWindow

# What a head is called by, from the figure that says it, and what that means.
KINDS = {
    "first": ("first token", "Most of its attention rests on the first token, a place to put what "
              "it does not need here."),
    "previous": ("previous token", "Each token looks at the one before it."),
    "next": ("next token", "Each token looks at the one after it."),
    "itself": ("itself", "Each token looks at itself."),
    "induction": ("induction", "Where a token came up before, it looks at what followed it then: "
                  "the head that copies."),
    "even": ("even", "Attention is spread almost evenly over all that can be seen."),
    "near": ("nearby", "Attention stays within a few tokens."),
    "mixed": ("mixed", "No single pattern: it depends on the tokens."),
}  # fmt: skip
_TINY = 1e-30  # below any weight that float32 tells from 0 in a sum
_CLEAR, _EVEN, _NEAR, _FEWEST_REPEATS = 0.5, 0.9, 5.0, 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadSummary:
    """One head on one text.

    Attributes:
        entropy: bits.
        evenness: entropy over that of looking evenly at all that is seen, 0 to 1.
        distance: tokens between a query and what it looks at.
        previous, first, itself, next: the share of attention that goes there.
        induction: the share that goes to tokens which followed earlier occurrences of the query's
            own token; over the queries that have such, or None without any.
        repeats: how many queries have.
        kind: a name of KINDS.
    """

    layer: int
    head: int
    entropy: float
    evenness: float
    distance: float
    previous: float
    first: float
    itself: float
    next: float
    induction: float | None
    repeats: int
    kind: str

    @property
    def label(self) -> str:
        """What the kind is called."""
        return KINDS[self.kind][0]


class Summaries:
    """Adds up tiles: `Summaries(input_ids)` is a `visit` of `trace_attention`."""

    def __init__(self, input_ids: torch.Tensor) -> None:
        self._ids = input_ids
        # followers[p]: the token before p, so that p followed it; none for the first.
        self._followers = torch.cat((input_ids.new_full((1,), -1), input_ids[:-1]))
        self._sums: dict[tuple[int, int], torch.Tensor] = {}
        self._last: _Prepared | None = None

    def __call__(self, tile: Tile) -> None:
        """Add every head of a tile."""
        for head in range(tile.config.num_attention_heads):
            self.add(tile, head, tile.weights(head))

    def add(self, tile: Tile, head: int, weights: torch.Tensor) -> None:
        """Add a tile's weights (n, S) of one head."""
        key = tile.layer, head
        new = self._figures(self._prepared(tile, weights.shape[1]), weights)
        self._sums[key] = self._sums[key] + new if key in self._sums else new

    def _prepared(self, tile: Tile, num_seen: int) -> _Prepared:
        """What the heads of a tile share, made for the first of them."""
        if self._last is None or self._last.tile is not tile:
            self._last = _Prepared.of(tile, num_seen, self._ids, self._followers)
        return self._last

    def _figures(self, shared: _Prepared, weights: torch.Tensor) -> torch.Tensor:
        """float64 sums over the rows from 1 on: see `of`."""
        at, w = shared.at, weights[shared.first :]
        entropy = -(w.clamp_min(_TINY).log_().mul_(w)).sum(-1) / math.log(2)
        copied = w[shared.copy_rows, shared.copy_keys]
        columns = (
            torch.ones_like(entropy), entropy, shared.room, _distance(shared, w), _at(w, at - 1),
            w[:, 0], _at(w, at), _at(w, at + 1), copied, shared.repeats,
        )  # fmt: skip
        return torch.stack([column.double().sum() for column in columns])

    def of(self, layer: int, head: int) -> HeadSummary:
        """The figures of a head. Raises: KeyError for one that no tile had."""
        count, *rest = self._sums[layer, head].tolist()
        entropy, room, distance, previous, first, itself, following = (x / count for x in rest[:7])
        repeats = round(rest[8])
        figures: dict[str, Any] = {
            "entropy": entropy,
            "evenness": entropy / room if room else 0.0,
            "distance": distance,
            "previous": previous,
            "first": first,
            "itself": itself,
            "next": following,
            "induction": rest[7] / repeats if repeats else None,
            "repeats": repeats,
        }
        return HeadSummary(layer=layer, head=head, kind=_kind(figures), **figures)

    def all(self) -> list[HeadSummary]:
        """Every head that was added, by layer and head."""
        return [self.of(*key) for key in sorted(self._sums)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Prepared:
    """What the heads of one tile share."""

    tile: Tile
    first: int  # 1 where the tile begins with the first row of the text, which is left out
    at: torch.Tensor  # their positions
    room: torch.Tensor  # bits of looking evenly at all that each of them sees
    copy_rows: torch.Tensor  # rows and keys of tokens that followed the row's token before
    copy_keys: torch.Tensor
    repeats: torch.Tensor  # 1 for each row that has such

    @classmethod
    def of(cls, tile: Tile, num_seen: int, ids: torch.Tensor, followers: torch.Tensor) -> _Prepared:
        first = int(tile.positions[0] == 0)
        at = tile.positions[first:]
        same = followers[None, :num_seen] == ids[at][:, None]
        same &= torch.arange(num_seen, device=at.device)[None] < at[:, None]
        copy_rows, copy_keys = same.nonzero(as_tuple=True)
        room = torch.log2(_visible(tile.config, at, len(ids)))
        return cls(tile=tile, first=first, at=at, room=room, copy_rows=copy_rows,
                   copy_keys=copy_keys, repeats=same.any(-1))  # fmt: skip


def _distance(shared: _Prepared, w: torch.Tensor) -> torch.Tensor:
    """(n,) the mean distance of each row."""
    keys = torch.arange(w.shape[1], device=w.device, dtype=w.dtype)
    if shared.tile.config.causal:
        return shared.at - w @ keys
    return (w * (shared.at[:, None] - keys).abs()).sum(-1)


def _at(w: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(n,) w[i, places[i]]; 0 where there is no such key."""
    inside = (places >= 0) & (places < w.shape[1])
    found = w.gather(1, places.clamp(0, w.shape[1] - 1)[:, None])[:, 0]
    return found * inside


def _visible(config: AttentionConfig, at: torch.Tensor, length: int) -> torch.Tensor:
    """(n,) how many keys each query sees."""
    before, after = at, torch.zeros_like(at) if config.causal else length - 1 - at
    if isinstance(config.pattern, SlidingWindow):
        most = config.pattern.window - 1
        before, after = before.clamp(max=most), after.clamp(max=most)
    return (before + after + 1).double()


def _kind(figures: dict[str, Any]) -> str:
    shares = {name: figures[name] for name in ("previous", "first", "itself", "next")}
    if figures["repeats"] >= _FEWEST_REPEATS:
        shares["induction"] = figures["induction"]
    best = max(shares, key=lambda name: shares[name])
    if shares[best] >= _CLEAR:
        return best
    if figures["evenness"] >= _EVEN:
        return "even"
    return "near" if figures["distance"] <= _NEAR else "mixed"


class PooledImage:
    """Attention as a picture of at most `size` by `size` cells, from rows as they come.

    Below `size` tokens a cell is a weight. Above it stands for equally many queries and keys, by
    their largest weight (nothing thin is lost) or their mean.
    """

    def __init__(self, length: int, size: int, *, mean: bool = False) -> None:
        self.length, self.mean = length, mean
        self.step = -(-length // size)  # tokens of a cell
        cells = -(-length // self.step)
        self._cells = np.zeros((cells, cells), dtype=np.float32)
        self._rows = np.zeros(cells, dtype=np.float32)  # rows added, of each row of cells

    def add(self, positions: torch.Tensor, weights: torch.Tensor) -> None:
        """Add the rows at `positions` (n,), which rise: (n, S)."""
        cells, rows = len(self._cells), positions.cpu().numpy()
        wide = torch.nn.functional.pad(weights.cpu(), (0, cells * self.step - weights.shape[1]))
        blocks = wide.view(len(wide), cells, self.step)
        pooled = (blocks.sum(-1) if self.mean else blocks.amax(-1)).numpy()
        bins, starts, counts = np.unique(rows // self.step, return_index=True, return_counts=True)
        self._rows[bins] += counts
        if self.mean:
            self._cells[bins] += np.add.reduceat(pooled, starts)
        else:
            new = np.maximum.reduceat(pooled, starts)
            self._cells[bins] = np.maximum(self._cells[bins], new)

    def image(self) -> np.ndarray:
        """(cells, cells) float32, 0 to 1: row, query; column, key."""
        if not self.mean:
            return self._cells
        starts = np.arange(len(self._cells)) * self.step
        keys = np.minimum(self.length - starts, self.step).astype(np.float32)
        return self._cells / np.outer(np.maximum(self._rows, 1), keys)


class Overview:
    """Summaries and small pictures of every head, in one pass: a `visit` of `trace_attention`.

    Attributes:
        every: of a text of more than `most_rows` tokens, every so many-th query is looked at.
    """

    def __init__(
        self,
        input_ids: torch.Tensor,
        size: int = 48,
        *,
        heads: Heads | None = None,
        most_rows: int = 2048,
    ) -> None:
        """`heads`: those to look at, by layer; None: all."""
        self._heads = heads
        self.summaries = Summaries(input_ids)
        self.images: dict[tuple[int, int], PooledImage] = {}
        self.every = -(-len(input_ids) // most_rows)
        self._length, self._size = len(input_ids), size

    def __call__(self, tile: Tile) -> None:
        """Add every head of a tile."""
        chosen = tile.positions % self.every == 0
        if not bool(chosen.all()):
            if not bool(chosen.any()):
                return
            tile = tile.only(chosen)
        every = range(tile.config.num_attention_heads)
        for head in every if self._heads is None else self._heads[tile.layer]:
            weights = tile.weights(head)
            self.summaries.add(tile, head, weights)
            key = tile.layer, head
            if key not in self.images:
                self.images[key] = PooledImage(self._length, self._size)
            self.images[key].add(tile.positions, weights)
