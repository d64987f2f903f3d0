"""Attention weights of one text, made only for the heads that are asked for, a tile at a time.

The kernels that a model runs with never hold the weights. What weights are made of, queries and
keys, is recorded while the model reads (`Context.record`); a tile of rows is then made from them by
the model's own arithmetic (`attention_weights`, `score_mask`) and can be dropped again.

A causal model reads layer by layer and, within a layer, chunk by chunk through a cache of that one
layer. So memory grows with the length and never with its square: of 32,768 tokens the weights of
one head alone would be 4 GB. A model that looks both ways reads at once, as its contexts are short.

What is kept, for `AttentionTrace.rows`, is chosen by layer and head and held to `most_bytes`;
`visit` sees every tile of every head, kept or not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, cast

import torch

from lmworks.core.errors import UserError
from lmworks.core.progress import track
from lmworks.models.attention import attention_weights
from lmworks.models.cache import KVCache
from lmworks.models.config import AttentionConfig, ModelConfig, SlidingWindow
from lmworks.models.context import Context
from lmworks.models.masks import score_mask
from lmworks.models.model import Model

MOST_BYTES = 256 << 20
_CELLS = 1 << 22  # of one head's tile: 16 MB of weights

# {layer: heads} to keep; None keeps all.
Heads = Mapping[int, Sequence[int]]
# (1, n) positions and the number of keys -> what is added to the scores, or None.
Bias = Callable[[torch.Tensor, int], torch.Tensor | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
    """Some rows of one layer's attention: what the queries at `positions` look at.

    Attributes:
        q: (N, n, D) of all heads, after norms and rotary.
        k: (K, S, D) of the S positions there are so far; none after the last row, if causal.
    """

    layer: int
    config: AttentionConfig
    positions: torch.Tensor  # (n,)
    q: torch.Tensor
    k: torch.Tensor
    _shared: Context

    @classmethod
    def of(
        cls,
        layer: int,
        config: AttentionConfig,
        positions: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        bias: Bias,
    ) -> Tile:
        """A tile with a context of its own, in which its heads share their mask.

        Args:
            bias: `Model.bias`.
        """
        context = Context(
            cache=cast(Any, _Rows(positions[None])),
            bias=bias(positions[None], k.shape[1]),
            layer=layer,
        )
        return cls(layer=layer, config=config, positions=positions, q=q, k=k, _shared=context)

    def only(self, rows: torch.Tensor) -> Tile:
        """The rows where `rows` (n,) is true."""
        shared = self._shared
        bias = None if shared.bias is None else shared.bias[:, :, rows]
        return Tile.of(self.layer, self.config, self.positions[rows], self.q[:, rows], self.k,
                       lambda positions, num_seen: bias)  # fmt: skip

    def weights(self, head: int) -> torch.Tensor:
        """(n, S), rows sum to 1."""
        config, group = self.config, self.q.shape[0] // self.k.shape[0]
        mask, _ = score_mask(config, self._shared, len(self.positions), self.k.shape[1],
                             self.q.device)  # fmt: skip
        if mask is not None and mask.shape[1] > 1:
            mask = mask[:, head : head + 1]
        key_head = head // group
        k = self.k[None, key_head : key_head + 1]
        return attention_weights(self.q[None, head : head + 1], k, config, mask)[0, 0]


class _Rows:
    """Stands for a `LayerCache` where only the rows' positions are asked for."""

    is_causal = sees_all = False

    def __init__(self, positions: torch.Tensor) -> None:
        self.positions = positions

    def key_positions(self, num_seen: int) -> torch.Tensor:
        """(1, S): all from the first on."""
        return torch.arange(num_seen, device=self.positions.device)[None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerTrace:
    """What is kept of one layer.

    Attributes:
        q: head -> (T, D).
        k: key-value head -> (T, D).
    """

    layer: int
    config: AttentionConfig
    q: dict[int, torch.Tensor]
    k: dict[int, torch.Tensor]

    @property
    def heads(self) -> list[int]:
        """The heads that are kept."""
        return sorted(self.q)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionTrace:
    """One text's attention; `rows` makes any part of it exactly.

    Attributes:
        input_ids: (T,).
        layers: what is kept, by number of the layer.
        bias: the model's, for tiles that are made anew.
    """

    config: ModelConfig
    input_ids: torch.Tensor
    layers: dict[int, LayerTrace]
    bias: Bias

    def __len__(self) -> int:
        return len(self.input_ids)

    def holds(self, layer: int, head: int) -> bool:
        """Whether this head is kept."""
        return layer in self.layers and head in self.layers[layer].q

    def rows(self, layer: int, head: int, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Weights of the queries from `start` to `stop`, (n, T): all of them by default.

        Raises: UserError for a head that is not kept, or that the model has not.
        """
        check_heads(self.config, {layer: [head]})
        if not self.holds(layer, head):
            raise UserError(
                f"layer {layer}, head {head} is not kept: name it before the text is read"
            )
        kept = self.layers[layer]
        stop = len(self) if stop is None else stop
        group = kept.config.num_attention_heads // kept.config.num_key_value_heads
        with torch.no_grad():
            positions = torch.arange(start, stop, device=self.input_ids.device)
            # The tile has this head alone; ALiBi's slopes are still those of its number.
            q = kept.q[head][start:stop].expand(kept.config.num_attention_heads, -1, -1)
            k = kept.k[head // group].expand(kept.config.num_key_value_heads, -1, -1)
            return Tile.of(layer, kept.config, positions, q, k, self.bias).weights(head)

    def tiles(self, layer: int, head: int) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, weights (n, T)) from the first row to the last, a few MB at a time."""
        step = tile_rows(len(self))
        for start in range(0, len(self), step):
            yield start, self.rows(layer, head, start, min(start + step, len(self)))


def tile_rows(length: int) -> int:
    """Rows of a tile, so that the weights of one head stay within some MB."""
    return max(16, min(512, _CELLS // max(1, length)))


def attention_layers(config: ModelConfig) -> dict[int, AttentionConfig]:
    """The layers whose mixer is attention whose weights can be told, by number."""
    return {
        index: layer.mixer
        for index, layer in enumerate(config.layers)
        if isinstance(layer.mixer, AttentionConfig)
        and isinstance(layer.mixer.pattern, SlidingWindow | None)
    }


def check_heads(config: ModelConfig, heads: Heads) -> None:
    """Raises: UserError for a layer or head that this model has not, or without weights."""
    known = attention_layers(config)
    for layer, wanted in heads.items():
        if not 0 <= layer < len(config.layers):
            raise UserError(f"layer {layer}: the model has layers 0 to {len(config.layers) - 1}")
        if layer not in known:
            mixer: Any = config.layers[layer].mixer
            pattern = f" with the pattern {mixer.pattern.kind}" if _has_pattern(mixer) else ""
            raise UserError(f"layer {layer} is {mixer.kind}{pattern}, whose weights can't be shown")
        count = known[layer].num_attention_heads
        if wrong := [head for head in wanted if not 0 <= head < count]:
            raise UserError(f"head {wrong[0]}: layer {layer} has heads 0 to {count - 1}")


def all_heads(config: ModelConfig) -> dict[int, range]:
    """Every head of every layer with attention."""
    return {i: range(c.num_attention_heads) for i, c in attention_layers(config).items()}


def kept_bytes(config: ModelConfig, heads: Heads, length: int) -> int:
    """What it takes to keep these heads of a text of `length` tokens."""
    layers, total = attention_layers(config), 0
    for index, wanted in heads.items():
        group = layers[index].num_attention_heads // layers[index].num_key_value_heads
        sequences = len(set(wanted)) + len({head // group for head in wanted})
        total += 4 * length * layers[index].head_dim * sequences
    return total


def trace_attention(
    model: Model,
    input_ids: torch.Tensor,
    *,
    keep: Heads | None = None,
    visit: Callable[[Tile], None] | None = None,
    layers: Collection[int] | None = None,
    most_bytes: int = MOST_BYTES,
) -> AttentionTrace:
    """Let the model read a text, and keep what attention weights are made of.

    Args:
        input_ids: (T,) int64, at least two. Of an encoder-decoder the encoder reads.
        keep: heads by layer; None keeps all.
        visit: called with every tile of a layer, from the first row to the last.
        layers: those that are visited; None: all. What comes after the last one is not read.
        most_bytes: what may be kept.
    Raises: UserError when that is more, for heads that are none, or a model without attention.
    """
    model = model.encoder if model.encoder is not None else model
    if input_ids.ndim != 1 or len(input_ids) < 2:
        raise UserError("attention needs a text of at least two tokens")
    if not attention_layers(model.config):
        raise UserError("this model has no attention layers whose weights could be shown")
    keep = all_heads(model.config) if keep is None else keep
    check_heads(model.config, keep)
    size = kept_bytes(model.config, keep, len(input_ids))
    if size > most_bytes:
        raise UserError(
            f"{sum(map(len, keep.values()))} heads of {len(input_ids)} tokens take "
            f"{size / 1e6:.0f} MB, more than the {most_bytes / 1e6:.0f} MB that are kept: name "
            "fewer heads, or take a shorter text"
        )
    reader = _Reader(model, keep, visit, layers)
    with torch.no_grad():
        reader.read(input_ids)
    return AttentionTrace(
        config=model.config, input_ids=input_ids, layers=reader.kept, bias=model.bias
    )


def _has_pattern(mixer: Any) -> bool:
    return isinstance(mixer, AttentionConfig) and mixer.pattern is not None


def _alone(config: ModelConfig, index: int) -> ModelConfig:
    """The model with one layer, for a cache that keeps every key, also of a window, in order."""
    layer = config.layers[index]
    if isinstance(layer.mixer, AttentionConfig) and _has_pattern(layer.mixer):
        layer = dataclasses.replace(layer, mixer=dataclasses.replace(layer.mixer, pattern=None))
    return dataclasses.replace(config, layers=(layer,), relative_positions=None)


class _Reader:
    """One forward, layer by layer where the model allows it."""

    def __init__(
        self,
        model: Model,
        keep: Heads,
        visit: Callable[[Tile], None] | None,
        layers: Collection[int] | None,
    ) -> None:
        self.model, self.keep, self.visit = model, keep, visit
        self.layers = attention_layers(model.config)
        self.visited = set(self.layers if layers is None else layers) if visit else set()
        self.kept: dict[int, LayerTrace] = {}
        # Nobody asks about layers after the last one that is looked at.
        self.last = max(self.visited | {i for i in keep if keep[i]}, default=-1)

    def read(self, input_ids: torch.Tensor) -> None:
        """Read the text; what is kept lies in `kept` then."""
        if all(config.causal for config in self.layers.values()):
            self._read_in_chunks(input_ids)
            return
        found: dict[str, torch.Tensor] = {}

        def record(name: str, value: torch.Tensor) -> None:
            if name.endswith((".mixer.q", ".mixer.k")):
                found[name] = value

        self.model.hidden_states(input_ids[None], record=record)
        for layer in self.layers:
            q, k = (found[f"layers.{layer}.mixer.{part}"][0] for part in "qk")
            self._take(layer, 0, len(input_ids), q, k)

    def _read_in_chunks(self, input_ids: torch.Tensor) -> None:
        length, config = len(input_ids), self.model.config
        positions = torch.arange(length, device=input_ids.device)
        x = self.model.embed(input_ids[None], positions)
        with track("reading", total=(self.last + 1) * length) as bar:
            for index in range(self.last + 1):
                cache = KVCache(_alone(config, index), 1, length, device=x.device)
                cache.expect(0, length)
                view = cache.view([0])
                step = tile_rows(length)
                for start in range(0, length, step):
                    stop = min(start + step, length)
                    self._layer(index, x, start, stop, view)
                    bar.advance(stop - start)

    def _layer(self, index: int, x: torch.Tensor, start: int, stop: int, view: Any) -> None:
        """Layer `index` over the positions from start to stop of x, in place."""
        found: dict[str, torch.Tensor] = {}

        def record(name: str, value: torch.Tensor) -> None:
            if name.endswith((".mixer.q", ".mixer.k")):
                found[name[-1]] = value

        step = view.begin(1, stop - start)
        positions = torch.arange(start, stop, device=x.device)[None]
        bias = self.model.bias(positions, stop)
        context = Context(cache=step.layer(0), layer=index, record=record, bias=bias)
        x[:, start:stop] = self.model.layers[index](x[:, start:stop], context)
        step.commit()
        if index in self.layers:
            self._take(index, start, x.shape[1], found["q"][0], found["k"][0])

    def _take(self, layer: int, start: int, length: int, q: torch.Tensor, k: torch.Tensor) -> None:
        """Show and keep the rows from `start` on: q (N, n, D), k (K, S, D)."""
        config = self.layers[layer]
        for head in self.keep.get(layer, ()):
            self._keep(layer, config, head, start, length, q, k)
        if self.visit is not None and layer in self.visited:
            rows = tile_rows(length)
            for first in range(0, q.shape[1], rows):
                part = q[:, first : first + rows]
                positions = torch.arange(part.shape[1], device=q.device) + start + first
                self.visit(Tile.of(layer, config, positions, part, k, self.model.bias))

    def _keep(
        self,
        layer: int,
        config: AttentionConfig,
        head: int,
        start: int,
        length: int,
        q: torch.Tensor,
        k: torch.Tensor,
    ) -> None:
        trace = self.kept.setdefault(layer, LayerTrace(layer=layer, config=config, q={}, k={}))
        group = config.num_attention_heads // config.num_key_value_heads
        for held, number, source in ((trace.q, head, q), (trace.k, head // group, k)):
            whole = held.setdefault(number, source.new_empty((length, config.head_dim)))
            new = source[number, -q.shape[1] :]
            whole[start : start + len(new)] = new
