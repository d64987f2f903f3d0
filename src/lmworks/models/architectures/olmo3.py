"""OLMo 3: OLMo 2 with a window in three of four layers. `Olmo3ForCausalLM`.

Scaled rotary frequencies hold for the layers that look at all positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.layer_types import (
    FULL,
    SLIDING,
    layer_types_to_hf,
    mixers_of,
    ropes_from_hf,
    windowed,
)
from lmworks.models.architectures.llama_layout import OUTPUT_NORMS, common_to_hf, hf_rules
from lmworks.models.architectures.olmo2 import olmo2_from_hf
from lmworks.models.architectures.rope import rope_to_settings
from lmworks.models.architectures.values import Values
from lmworks.models.config import ModelConfig

_THETA = 5e5


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    # In the older spelling the base is that of the layers that look at all positions alone.
    ropes = ropes_from_hf(read, theta=_THETA, local_theta=_THETA, local_key=None)
    return windowed(
        olmo2_from_hf(read, rope=ropes[FULL]),
        read,
        lambda number: (number + 1) % 4 != 0,
        read.count("sliding_window", 4096),
        rope=ropes[SLIDING],
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `Olmo3ForCausalLM`."""
    whole, local = mixers_of(config)
    common = common_to_hf(config, "Olmo3ForCausalLM", "olmo3")
    ropes = {FULL: rope_to_settings(whole.rope), SLIDING: rope_to_settings(local.rope)}
    kept = {k: v for k, v in common.items() if k not in ("rope_theta", "rope_scaling")}
    bias = {"attention_bias": bool(whole.bias)}
    return kept | layer_types_to_hf(config) | bias | {"rope_parameters": ropes}


OLMO3 = Architecture(
    name="olmo3",
    hf=Layout(
        rules=hf_rules(OUTPUT_NORMS),
        read_config=config_from_hf,
        write_config=config_to_hf,
        prefix="model.",
    ),
)
