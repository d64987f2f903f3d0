"""A decoder as one function of tensors, which exporters can trace: no cache, no masks by case.

Two ways to keep the past. `PortableDecoder` is given keys and values and gives them back longer, as
ONNX graphs of the field do. `SteppingDecoder` holds them in buffers of a fixed length and reads one
token at a time, as runtimes for phones want it.

The modules are the model's own; only attention is written out, so that a graph has one path for
prompts and steps.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence

import torch
from torch import nn

from lmworks.core.errors import UserError
from lmworks.models.attention import Attention, attention_weights
from lmworks.models.config import (
    AttentionConfig,
    LMHeadConfig,
    MLPConfig,
    ModelConfig,
    SlidingWindow,
)
from lmworks.models.context import Context
from lmworks.models.model import Model, words_for
from lmworks.models.positions import Rotary, apply_rotary


def check_portable(config: ModelConfig) -> None:
    """Raises: UserError naming the first part that can't be written out as a graph."""

    def need(given: bool, what: str) -> None:
        if not given:
            raise UserError(f"{what} can't be exported yet: take a GGUF bundle of this model")

    need(isinstance(config.head, LMHeadConfig), "a model that does not continue text")
    need(config.encoder is None, "an encoder-decoder")
    need(config.inputs is None, "a model that reads no token ids")
    need(config.relative_positions is None, "relative positions")
    for index, layer in enumerate(config.layers):
        mixer = layer.mixer
        need(type(mixer) is AttentionConfig, f"layer {index} ({words_for(mixer)})")
        assert isinstance(mixer, AttentionConfig)
        plain = mixer.pattern is None or isinstance(mixer.pattern, SlidingWindow)
        need(mixer.causal and plain and not mixer.alibi, f"layer {index} ({words_for(mixer)})")
        need(layer.cross_attention is None, f"layer {index} (cross attention)")
        feed_forward = layer.feed_forward
        if feed_forward is not None and type(feed_forward) is not MLPConfig:
            need(False, f"layer {index} ({words_for(feed_forward)})")
        grows = mixer.rope is not None and mixer.rope.depends_on_length
        need(not grows, f"layer {index} (positions that depend on the length)")


class _Past:
    """What the layers of one call read and leave behind; stands where a cache would."""

    def __init__(
        self,
        positions: torch.Tensor,
        key_positions: torch.Tensor,
        before: Sequence[torch.Tensor] = (),
    ) -> None:
        self.positions, self.key_positions = positions, key_positions  # (T,), (S,)
        self.before = before
        self.after: list[torch.Tensor] = []
        self.turns: dict[Rotary, tuple[torch.Tensor, torch.Tensor]] = {}


# (past, layer, new keys, new values) -> all that a query may look at, (1, K, S, D) each
_Keep = Callable[[_Past, int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class _Attention(nn.Module):
    """The model's attention, every case written as one: scores, mask, softmax, values."""

    def __init__(self, attention: Attention, keep: _Keep) -> None:
        super().__init__()
        self.attention, self.keep = attention, keep

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        mine, config, past = self.attention, self.attention.config, context.cache
        assert isinstance(past, _Past)
        q, k, v = mine.queries(x), mine.keys(x), mine.values(x)
        if mine.rotary is not None:
            cos, sin = past.turns[mine.rotary]
            q, k = apply_rotary(q, cos, sin), apply_rotary(k, cos, sin)
        k, v = self.keep(past, context.layer, k, v)
        distance = past.positions[:, None] - past.key_positions[None, :]  # (T, S)
        hidden = distance < 0
        if isinstance(config.pattern, SlidingWindow):
            hidden = hidden | (distance >= config.pattern.window)
        mask = torch.zeros(distance.shape).masked_fill(hidden, torch.finfo(torch.float32).min)
        weights = attention_weights(q, k, config, mask)
        y = weights @ v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
        out: torch.Tensor = mine.o_proj(y.transpose(1, 2).flatten(2))
        return out


class _Written(nn.Module, abc.ABC):
    """A model whose attention is replaced; its tables of positions are buffers."""

    def __init__(self, model: Model, length: int) -> None:
        super().__init__()
        check_portable(model.config)
        self.model, self.length = model.eval(), length
        self.shapes: list[tuple[int, int]] = []  # of each layer: key-value heads, head size
        self._rotary: dict[Rotary, str] = {}
        for layer in model.layers:
            mixer = layer.mixer
            assert isinstance(mixer, Attention)
            self.shapes.append((mixer.config.num_key_value_heads, mixer.config.head_dim))
            if mixer.rotary is not None and mixer.rotary not in self._rotary:
                name = f"turns_{len(self._rotary)}"
                self._rotary[mixer.rotary] = name
                cos, sin = mixer.rotary.tables(length, torch.device("cpu"))
                self.register_buffer(f"{name}_cos", cos[:length].clone(), persistent=False)
                self.register_buffer(f"{name}_sin", sin[:length].clone(), persistent=False)
            layer.mixer = _Attention(mixer, self._keep)
        self.eval()

    @abc.abstractmethod
    def _keep(
        self, past: _Past, layer: int, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the new keys and values of a layer to those before; all of them."""

    def _logits(self, input_ids: torch.Tensor, past: _Past, *, last_only: bool) -> torch.Tensor:
        model, positions = self.model, past.positions
        for rotary, name in self._rotary.items():
            tables = (getattr(self, f"{name}_{kind}") for kind in ("cos", "sin"))
            cos, sin = (table.index_select(0, positions) for table in tables)
            past.turns[rotary] = cos, sin
        x = model.embed(input_ids, positions[None])
        for index, layer in enumerate(model.layers):
            x = layer(x, Context(cache=past, layer=index))  # type: ignore[arg-type]
        if model.norm is not None:
            x = model.norm(x)
        return model.logits(x[:, -1:] if last_only else x)


class PortableDecoder(_Written):
    """(1, T) ids and the keys and values before them -> logits (1, T, V) and all keys and values.

    Args:
        model: of float modules; it is changed, and belongs to this one from now on.
        length: the longest sequence.
    Raises: UserError for a model that can't be written out.
    """

    def forward(
        self, input_ids: torch.Tensor, past: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """`past`: keys and values of each layer in turn, (1, K, P, D)."""
        start, new = past[0].shape[2], input_ids.shape[1]
        positions = torch.arange(new) + start
        told = _Past(positions, torch.arange(start + new), past)
        return self._logits(input_ids, told, last_only=False), told.after

    def _keep(
        self, past: _Past, layer: int, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        both = [torch.cat([past.before[2 * layer + i], new], 2) for i, new in enumerate((k, v))]
        past.after += both
        return both[0], both[1]

    def past(self, length: int) -> list[torch.Tensor]:
        """Keys and values of `length` positions, zero; of none, a sequence begins."""
        shapes = [(1, heads, length, size) for heads, size in self.shapes]
        return [torch.zeros(shape) for shape in shapes for _ in range(2)]


class SteppingDecoder(_Written):
    """One token at its position -> logits (1, 1, V); the past is kept inside, `length` long.

    Whoever begins a sequence again at position 0 needs to clear nothing: what lies behind the
    position is not seen.
    """

    def __init__(self, model: Model, length: int) -> None:
        super().__init__(model, length)
        for index, (heads, size) in enumerate(self.shapes):
            for name in ("keys", "values"):
                self.register_buffer(f"{name}_{index}", torch.zeros(1, heads, length, size))

    def forward(self, input_ids: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """input_ids (1, 1) int64, position (1,) int64."""
        told = _Past(position, torch.arange(self.length))
        return self._logits(input_ids, told, last_only=True)

    def _keep(
        self, past: _Past, layer: int, k: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        held = [getattr(self, f"{name}_{layer}") for name in ("keys", "values")]
        for table, new in zip(held, (k, v), strict=True):
            table.index_copy_(2, past.positions, new)
        return held[0], held[1]
