"""Mistral: Llama that may look through a window in every layer. `MistralForCausalLM`.

GGUF files of Mistral models call themselves `llama`. Source: Jiang et al. 2023, arXiv 2310.06825.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.layer_types import window_of
from lmworks.models.architectures.llama_layout import (
    attention_from_hf,
    common_to_hf,
    hf_rules,
    mlp_from_hf,
    model_from_hf,
)
from lmworks.models.architectures.values import Values
from lmworks.models.config import ModelConfig, SlidingWindow


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    read.only("layer_types", (None,))
    # A missing window is the first release's; null, as later ones say, is none.
    window = read.count("sliding_window") if "sliding_window" in read else None
    if "sliding_window" not in values:
        window = 4096
    pattern = None if window is None else SlidingWindow(window=window)
    return model_from_hf(
        read, mixer=attention_from_hf(read, pattern=pattern), feed_forward=mlp_from_hf(read)
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `MistralForCausalLM`."""
    window = {"sliding_window": window_of(config)}
    return common_to_hf(config, "MistralForCausalLM", "mistral") | window


MISTRAL = Architecture(
    name="mistral",
    hf=Layout(
        rules=hf_rules(),
        read_config=config_from_hf,
        write_config=config_to_hf,
        prefix="model.",
    ),
)
