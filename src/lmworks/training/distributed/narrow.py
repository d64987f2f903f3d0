"""A model of the same layers that is narrow: every width shrinks as the size of a head does.

The numbers of heads, experts and the pattern stay, so that a plan cuts it exactly as it cuts the
model itself. What a token keeps for the backward is then a number per layer plus a multiple of the
width: two widths tell both, a third can check them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from lmworks.core.errors import UserError
from lmworks.models.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, MoEConfig


def narrowed(config: ModelConfig, head_dim: int, num_layers: int = 0) -> ModelConfig:
    """`config` with heads of size `head_dim`, all other widths in proportion.

    Args:
        num_layers: keep the first ones, and one of each other kind; 0 keeps all.
    Raises: UserError for a layer whose width is not known to shrink.
    """
    whole = head_size(config)

    def shrunk(width: int) -> int:
        return max(1, round(width * head_dim / whole))

    layers = [_narrow(layer, head_dim, shrunk) for layer in layers_kept(config, num_layers)]
    return dataclasses.replace(
        config,
        layers=tuple(layers),
        hidden_size=shrunk(config.hidden_size),
        vocab_size=max(8, shrunk(config.vocab_size)),
    )


def layers_kept(config: ModelConfig, num_layers: int) -> list[LayerConfig]:
    """The first layers, and one of each other kind."""
    layers = list(config.layers)
    if not 0 < num_layers < len(layers):
        return layers
    kept = layers[:num_layers]
    for layer in layers[num_layers:]:
        if layer not in kept:
            kept.append(layer)
    return kept


def head_size(config: ModelConfig) -> int:
    """Of the first attention. Raises: UserError for a model without any."""
    for layer in config.layers:
        if isinstance(layer.mixer, AttentionConfig):
            return layer.mixer.head_dim
    raise UserError("a rehearsal measures models with attention; this one has none")


def _narrow(layer: LayerConfig, head_dim: int, shrunk: Callable[[int], int]) -> LayerConfig:
    mixer, inner = layer.mixer, layer.feed_forward
    if type(mixer) is not AttentionConfig:
        raise UserError(f"a rehearsal can't narrow a layer of {mixer.kind}: attention only")
    if inner is not None:
        if not isinstance(inner, MLPConfig | MoEConfig):
            raise UserError(f"a rehearsal can't narrow a feed-forward of kind {inner.kind}")
        inner = dataclasses.replace(inner, intermediate_size=shrunk(inner.intermediate_size))
        if isinstance(inner, MoEConfig) and inner.shared_intermediate_size:
            inner = dataclasses.replace(
                inner, shared_intermediate_size=shrunk(inner.shared_intermediate_size)
            )
    rope = mixer.rope
    if rope is not None and rope.rotary_dim(head_dim) % 2:
        raise UserError(f"a rehearsal can't narrow heads that turn a part of {mixer.head_dim}")
    mixer = dataclasses.replace(mixer, head_dim=head_dim)
    return dataclasses.replace(layer, mixer=mixer, feed_forward=inner)
