"""SmolLM3: Llama without positions in every fourth layer. `SmolLM3ForCausalLM`.

Source: Yang et al. 2025 (RoPE to NoPE and back), arXiv 2501.18795.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.layer_types import layer_by_layer, layer_types_to_hf, windowed
from lmworks.models.architectures.llama_layout import (
    attention_from_hf,
    common_to_hf,
    hf_rules,
    mlp_from_hf,
    model_from_hf,
)
from lmworks.models.architectures.rope import rope_from_hf, rope_to_hf
from lmworks.models.architectures.values import Values
from lmworks.models.config import ModelConfig, RoPEConfig


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    config = model_from_hf(
        read,
        mixer=attention_from_hf(
            read,
            rope=rope_from_hf(read, theta=2e6),
            bias="qkvo" if read.flag("attention_bias", False) else "",
        ),
        feed_forward=mlp_from_hf(read, bias=read.flag("mlp_bias", False)),
        tied=True,
    )
    turned = _turned(read, config.num_hidden_layers)
    window = read.count("sliding_window", None)
    slides = read.flag("use_sliding_window", False) and window is not None
    config = windowed(config, read, lambda i: slides and not turned[i], window if slides else None)
    return layer_by_layer(
        config, lambda i, mixer: mixer if turned[i] else dataclasses.replace(mixer, rope=None)
    )


def _turned(read: Values, count: int) -> list[bool]:
    """Which layers have positions: `no_rope_layers` holds 1 for those that do."""
    listed = read.items("no_rope_layers", None)
    if listed is None:
        every = read.count("no_rope_layer_interval", 4)
        if every < 1:
            raise UserError(f"no_rope_layer_interval must be at least 1, not {every}")
        return [(number + 1) % every != 0 for number in range(count)]
    if len(listed) < count or not all(value in (0, 1) for value in listed):
        raise UserError(f"no_rope_layers must hold 0 or 1 for each of the {count} layers")
    return [bool(value) for value in listed[:count]]


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `SmolLM3ForCausalLM`."""
    mixers: list[Any] = [layer.mixer for layer in config.layers]
    feed_forward: Any = config.layers[0].feed_forward
    ropes = [mixer.rope for mixer in mixers if mixer.rope is not None]
    rope = ropes[0] if ropes else RoPEConfig(theta=2e6)
    first = dataclasses.replace(mixers[0], rope=rope)
    layers = (dataclasses.replace(config.layers[0], mixer=first), *config.layers[1:])
    alike = dataclasses.replace(config, layers=layers)
    return (
        common_to_hf(alike, "SmolLM3ForCausalLM", "smollm3")
        | layer_types_to_hf(config)
        | rope_to_hf(rope)
        | {
            "no_rope_layers": [int(mixer.rope is not None) for mixer in mixers],
            "use_sliding_window": any(mixer.pattern is not None for mixer in mixers),
            "attention_bias": bool(first.bias),
            "mlp_bias": feed_forward.bias,
            # transformers' own ids lie beyond a small vocabulary.
            "pad_token_id": None,
        }
    )


SMOLLM3 = Architecture(
    name="smollm3",
    hf=Layout(
        rules=hf_rules(),
        read_config=config_from_hf,
        write_config=config_to_hf,
        prefix="model.",
    ),
)
