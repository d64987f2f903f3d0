"""Prefix tuning: learned keys and values before those of each attention.

As in PEFT, the learned keys are taken as a cache would hold them, turned already, and the tokens
stand behind them. Turning depends on distances alone, so that instead of moving the tokens on by
the prefix' length, the prefix is turned back by it: tokens keep their positions, whatever else asks
for them.

`start="tokens"` begins with the keys and values that the model itself computes of some tokens drawn
by the seed, which then are the prompt that they would be; Li and Liang found activations of words
to begin best. `zero` and `normal` are PEFT's.

Source: Li & Liang 2021, arXiv 2101.00190, sections 4.2 and 7.4; without the reparametrisation,
which P-tuning v2 (arXiv 2110.07602) found of no use for many tasks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn

from lmworks.core.config import option
from lmworks.core.errors import UserError
from lmworks.models.adapters.base import Adapter, AdapterConfig
from lmworks.models.attention import Attention
from lmworks.models.config import LearnedPositions
from lmworks.models.positions import apply_rotary
from lmworks.models.rotary_frequencies import attention_factor

if TYPE_CHECKING:
    from lmworks.models.adapters.foreign import ForeignNames
    from lmworks.models.context import Context
    from lmworks.models.model import Model

_TENSOR = "prompt_embeddings"
Keys = tuple[torch.Tensor, torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixConfig(AdapterConfig):
    """Learned keys and values in front of a text."""

    mergeable: ClassVar[bool] = False
    kind: str = dataclasses.field(default="prefix", init=False)
    num_virtual_tokens: int = option(20, help="how many keys and values each attention gets")
    start: Literal["tokens", "normal", "zero"] = option(
        "tokens", help="begin with what the model makes of drawn tokens, with noise, or with zeros"
    )

    def __post_init__(self) -> None:
        if self.num_virtual_tokens < 1:
            raise UserError(f"prefix: at least one virtual token, not {self.num_virtual_tokens}")

    def attach(self, model: Model, generator: torch.Generator) -> dict[str, nn.Module]:
        """See `AdapterConfig`."""
        attentions = _attentions(model)
        started = self._started(model, attentions, generator)
        parts: dict[str, nn.Module] = {}
        for number, (attention, (keys, values)) in enumerate(zip(attentions, started, strict=True)):
            attention.prefix = Prefix(keys, values, attention)
            parts[f"layers.{number}.mixer.prefix"] = attention.prefix
        return parts

    def _started(
        self, model: Model, attentions: list[Attention], generator: torch.Generator
    ) -> list[Keys]:
        """Keys and values (K, P, D) of each layer."""
        count = self.num_virtual_tokens
        if self.start == "tokens":
            return _of_tokens(model, count, generator)
        shapes = [(a.config.num_key_value_heads, count, a.config.head_dim) for a in attentions]
        if self.start == "zero":
            return [(torch.zeros(shape), torch.zeros(shape)) for shape in shapes]
        return [
            (
                torch.empty(s).normal_(generator=generator),
                torch.empty(s).normal_(generator=generator),
            )
            for s in shapes
        ]

    def to_files(
        self, adapter: Adapter, names: ForeignNames
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """See `AdapterConfig`."""
        parts: list[Any] = list(adapter.parts.values())
        shapes = {tuple(part.keys.shape) for part in parts}
        if len(shapes) > 1:
            raise UserError("layers with heads of different sizes: PEFT has no words for it")
        heads, count, size = next(iter(shapes))
        # (layers * 2, K, P, D) -> (P, layers * 2 * K * D)
        whole = torch.stack([tensor for part in parts for tensor in (part.keys, part.values)])
        values = {
            "peft_type": "PREFIX_TUNING",
            "num_virtual_tokens": count,
            "num_layers": len(parts),
            "num_attention_heads": heads,
            "token_dim": heads * size,
            "num_transformer_submodules": 1,
            "encoder_hidden_size": heads * size,
            "prefix_projection": False,
        }
        return values, {_TENSOR: whole.permute(2, 0, 1, 3).reshape(count, -1)}

    @classmethod
    def from_files(
        cls,
        model: Model,
        values: Mapping[str, Any],
        tensors: dict[str, torch.Tensor],
        names: ForeignNames,
    ) -> Adapter:
        """See `AdapterConfig`."""
        whole = tensors.pop(_TENSOR, None)
        if whole is None or whole.dim() != 2:
            raise UserError(f"the adapter holds no {_TENSOR}")
        config = cls(num_virtual_tokens=len(whole), start="zero")
        attentions = [attention.config for attention in _attentions(model)]
        sizes = [c.num_key_value_heads * c.head_dim for c in attentions]
        if whole.shape[1] != 2 * sum(sizes):
            raise UserError(
                f"{_TENSOR} has the shape {tuple(whole.shape)}, but the {len(sizes)} layers of "
                f"this model take {2 * sum(sizes)} numbers for each token: made for another base"
            )
        adapter = Adapter(model, config, config.attach(model, torch.Generator()))
        pieces = whole.split([size for size in sizes for _ in range(2)], dim=1)
        for number, (path, part) in enumerate(adapter.parts.items()):
            for name, piece in zip(("keys", "values"), pieces[2 * number : 2 * number + 2]):
                parameter: Any = getattr(part, name)
                heads, _, size = parameter.shape
                mine = piece.view(-1, heads, size).transpose(0, 1)
                names.fill(parameter, mine, f"{path}.{name}")
        return adapter


class Prefix(nn.Module):
    """Keys and values (K, P, D) that stand before those of an attention."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, attention: Attention) -> None:
        super().__init__()
        self.keys, self.values = nn.Parameter(keys), nn.Parameter(values)
        self.rotary, self.rope = attention.rotary, attention.config.rope
        self.enabled = True

    def forward(
        self,
        k: torch.Tensor,
        v: torch.Tensor,
        mask: torch.Tensor | None,
        is_causal: bool,
        context: Context,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, bool]:
        """k and v (B, K, S, D), and the mask over them -> the same with the prefix in front."""
        if not self.enabled:
            return k, v, mask, is_causal
        keys, values = (t.expand(len(k), -1, -1, -1) for t in (self._turned_back(), self.values))
        count = self.keys.shape[1]
        if is_causal:
            mask, is_causal = self._causal(k.shape[2], count, k.device, context), False
        elif mask is not None:
            mask = nn.functional.pad(mask, (count, 0))  # seen by all
        return torch.cat((keys, k), 2), torch.cat((values, v), 2), mask, is_causal

    def _turned_back(self) -> torch.Tensor:
        if self.rotary is None or self.rope is None:
            return self.keys
        count = self.keys.shape[1]
        cos, sin = (
            table[count] / attention_factor(self.rope, count + 1)
            for table in self.rotary.tables(count + 1, self.keys.device)
        )
        return apply_rotary(self.keys, cos, -sin)

    @staticmethod
    def _causal(length: int, count: int, device: torch.device, context: Context) -> torch.Tensor:
        key = ("prefix", length, count)
        if key not in context.memo:
            later = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
            mask = torch.zeros(length, count + length, device=device)
            mask[:, count:].masked_fill_(later, -torch.inf)
            context.memo[key] = mask
        found: torch.Tensor = context.memo[key]
        return found

    def trained(self) -> list[nn.Parameter]:
        """See `Part`."""
        return [self.keys, self.values]

    def merged(self) -> nn.Module:
        """See `Part`. Raises: UserError."""
        raise UserError("a prefix can't be merged: no weights do what it does")

    def taken_away(self) -> None:
        """See `Part`."""
        return None


def _attentions(model: Model) -> list[Attention]:
    """The attention of each layer. Raises: UserError for a model that can't hold a prefix."""
    if isinstance(model.config.positions, LearnedPositions):
        raise UserError("prefix tuning: this model's positions are learned, and leave it no room")
    found = []
    for number, layer in enumerate(model.layers):
        mixer = layer.mixer
        if not isinstance(mixer, Attention):
            kind = type(mixer).__name__
            raise UserError(f"prefix tuning needs attention in every layer; layer {number}: {kind}")
        if mixer.pattern is not None or mixer.config.alibi:
            raise UserError(f"prefix tuning: layer {number} does not look at all that came before")
        if mixer.rotary is not None and mixer.rotary.depends_on_length:
            raise UserError("prefix tuning: this model's rotary frequencies depend on the length")
        found.append(mixer)
    return found


@torch.no_grad()
def _of_tokens(model: Model, count: int, generator: torch.Generator) -> list[Keys]:
    """What the model's cache holds after `count` tokens, drawn without their order meaning much."""
    from lmworks.models.cache import KVCache

    ids = torch.randint(model.config.vocab_size, (1, count), generator=generator)
    cache = KVCache(model.config, 1, count)
    training = model.training
    model.eval().hidden_states(ids, cache.view([0]))
    model.train(training)
    layers = range(len(cache.growing))
    return [(cache.held(i, "keys", 0), cache.held(i, "values", 0)) for i in layers]
