"""`layer_types`: which layers look at all positions and which through a window.

A config is read as if all layers were alike; then each layer's attention is changed to what the
list says of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from lmworks.core.errors import UserError
from lmworks.models.architectures.values import Values
from lmworks.models.config import AttentionConfig, ModelConfig, SlidingWindow

FULL, SLIDING = "full_attention", "sliding_attention"


def layer_by_layer(
    config: ModelConfig, change: Callable[[int, AttentionConfig], AttentionConfig]
) -> ModelConfig:
    """The same model with each layer's attention as `change` (number, attention) gives it."""
    layers = tuple(
        dataclasses.replace(layer, mixer=change(number, layer.mixer))  # type: ignore[arg-type]
        for number, layer in enumerate(config.layers)
    )
    return dataclasses.replace(config, layers=layers)


def windowed(
    config: ModelConfig, values: Values, slides: Callable[[int], bool], window: int | None
) -> ModelConfig:
    """`config` with a window in the layers that have one.

    Args:
        slides: (number of a layer) -> whether it has one where the file lists no `layer_types`.
        window: its size.
    Raises: UserError for a list that does not fit, or a window without a size.
    """
    sliding = sliding_layers(config, values, slides)
    if not any(sliding):
        return config
    if window is None:
        raise UserError(f"sliding_window is missing, which a layer of {SLIDING} needs")
    pattern = SlidingWindow(window=window)
    return layer_by_layer(
        config,
        lambda i, mixer: dataclasses.replace(mixer, pattern=pattern) if sliding[i] else mixer,
    )


def sliding_layers(
    config: ModelConfig, values: Values, slides: Callable[[int], bool]
) -> list[bool]:
    """Which layers look through a window, by `layer_types` or by `slides`."""
    kinds = values.items("layer_types", None)
    if kinds is None:
        return [slides(number) for number in range(config.num_hidden_layers)]
    if len(kinds) != config.num_hidden_layers:
        raise UserError(
            f"layer_types lists {len(kinds)} layers, num_hidden_layers says "
            f"{config.num_hidden_layers}"
        )
    for kind in kinds:
        if kind not in (FULL, SLIDING):
            raise UserError(f"layer_types {kind!r} is not supported: known: {FULL}, {SLIDING}")
    return [kind == SLIDING for kind in kinds]


def window_of(config: ModelConfig) -> int | None:
    """The window of the layers that have one; None where none has."""
    mixers: list[Any] = [layer.mixer for layer in config.layers]
    return next((mixer.pattern.window for mixer in mixers if mixer.pattern is not None), None)


def layer_types_to_hf(config: ModelConfig) -> dict[str, Any]:
    """`sliding_window` and `layer_types`."""
    mixers: list[Any] = [layer.mixer for layer in config.layers]
    return {
        "sliding_window": window_of(config),
        "layer_types": [SLIDING if mixer.pattern else FULL for mixer in mixers],
    }
