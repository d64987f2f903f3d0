"""`layer_types`: which layers look at all positions and which through a window.

A config is read as if all layers were alike; then each layer's attention is changed to what the
list says of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from lmworks.core.errors import UserError
from lmworks.models.architectures.rope import rope_from_hf, rope_from_settings
from lmworks.models.architectures.values import Values
from lmworks.models.config import AttentionConfig, ModelConfig, RoPEConfig, SlidingWindow

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
    config: ModelConfig,
    values: Values,
    slides: Callable[[int], bool],
    window: int | None,
    rope: RoPEConfig | None = None,
) -> ModelConfig:
    """`config` with a window in the layers that have one.

    Args:
        slides: (number of a layer) -> whether it has one where the file lists no `layer_types`.
        window: its size.
        rope: the rotary settings of those layers, if they have their own.
    Raises: UserError for a list that does not fit, or a window without a size.
    """
    sliding = sliding_layers(config, values, slides)
    if not any(sliding):
        return config
    if window is None:
        raise UserError(f"sliding_window is missing, which a layer of {SLIDING} needs")
    changes: dict[str, Any] = {"pattern": SlidingWindow(window=window)}
    if rope is not None:
        changes["rope"] = rope
    return layer_by_layer(
        config, lambda i, mixer: dataclasses.replace(mixer, **changes) if sliding[i] else mixer
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


def mixers_of(config: ModelConfig) -> tuple[Any, Any]:
    """The attention of a layer that looks at all positions, and of one with a window.

    Where there is none of a kind, the first layer's stands for it.
    """
    mixers: list[Any] = [layer.mixer for layer in config.layers]
    whole = next((mixer for mixer in mixers if mixer.pattern is None), mixers[0])
    return whole, next((mixer for mixer in mixers if mixer.pattern is not None), mixers[0])


def ropes_from_hf(
    values: Values, *, theta: float, local_theta: float, local_key: str | None
) -> dict[str, RoPEConfig]:
    """The rotary settings of both kinds of layers.

    `rope_parameters` holds an object for each. Older files scale the layers that look at all
    positions alone, and name the other base `local_key`, if they name it.
    Raises: UserError for what is no object or not supported.
    """
    nested = values.raw("rope_parameters", None)
    if nested is None:
        local = local_theta if local_key is None else values.number(local_key, local_theta)
        return {FULL: rope_from_hf(values, theta=theta), SLIDING: RoPEConfig(theta=local)}
    if not isinstance(nested, Mapping):
        raise UserError(f"rope_parameters must be an object, not {nested!r}")
    ropes = {}
    for kind, base in ((FULL, theta), (SLIDING, local_theta)):
        settings = nested.get(kind) or {}
        if not isinstance(settings, Mapping):
            raise UserError(f"rope_parameters.{kind} must be an object, not {settings!r}")
        ropes[kind] = rope_from_settings(Values(settings), values, theta=base, fraction=None)
    return ropes
