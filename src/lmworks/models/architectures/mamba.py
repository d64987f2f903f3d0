"""Mamba and Mamba-2: `MambaForCausalLM` and `Mamba2ForCausalLM`.

What concerns fresh weights alone (`time_step_min`, `initializer_range` and their likes) is not
read, nor is `chunk_size`: the answer does not depend on how a sequence is cut. States are float32
here whatever `residual_in_fp32` says, which makes a difference in half precision only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.rules import Rule, for_kinds, same
from lmworks.models.architectures.values import Values
from lmworks.models.config import Mamba2Config, MambaConfig, ModelConfig, RMSNormConfig
from lmworks.models.config.base import BlockConfig

# Nothing in these models knows how long a sequence is.
_POSITIONS = 1 << 20
_NO_LIMIT = 1e30  # of a time step


def mamba_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    hidden = read.count("hidden_size")
    rank = read.raw("time_step_rank", "auto")
    mixer = MambaConfig(
        intermediate_size=_intermediate_size(read, hidden),
        state_size=read.count("state_size", 16),
        conv_kernel=read.count("conv_kernel", 4),
        time_step_rank=math.ceil(hidden / 16) if rank == "auto" else read.count("time_step_rank"),
        bias=read.flag("use_bias", False),
        conv_bias=read.flag("use_conv_bias", True),
    )
    return _model(read, hidden, mixer, tied=True)


def mamba2_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Read a `config.json`. Raises: UserError for what is missing or not supported."""
    read = Values(values)
    hidden, heads, head_dim = (read.count(n) for n in ("hidden_size", "num_heads", "head_dim"))
    if heads * head_dim != _intermediate_size(read, hidden):
        raise UserError(
            f"num_heads {heads} times head_dim {head_dim} is not expand times hidden_size {hidden}"
        )
    low, high = _limits(read)
    mixer = Mamba2Config(
        num_heads=heads,
        head_dim=head_dim,
        state_size=read.count("state_size", 128),
        num_groups=read.count("n_groups", 8),
        conv_kernel=read.count("conv_kernel", 4),
        bias=read.flag("use_bias", False),
        conv_bias=read.flag("use_conv_bias", True),
        norm_eps=read.number("layer_norm_epsilon", 1e-5),
        least_step=low,
        largest_step=None if high >= _NO_LIMIT else high,
    )
    return _model(read, hidden, mixer, tied=False)


def _intermediate_size(read: Values, hidden: int) -> int:
    return int(read.number("expand", 2) * hidden)


def _limits(read: Values) -> tuple[float, float]:
    limits = read.items("time_step_limit", [0.0, math.inf])
    # transformers writes infinity as {"__float__": "Infinity"}, since JSON has none.
    numbers = [math.inf if isinstance(x, Mapping) else x for x in limits]
    if len(numbers) != 2 or not all(type(x) in (int, float) for x in numbers):
        raise UserError(f"time_step_limit must be two numbers, not {limits!r}")
    return float(numbers[0]), float(numbers[1])


def _model(read: Values, hidden: int, mixer: BlockConfig, *, tied: bool) -> ModelConfig:
    read.only("hidden_act", ("silu", "swish"))
    return ModelConfig.uniform(
        vocab_size=read.count("vocab_size"),
        hidden_size=hidden,
        num_hidden_layers=read.count("num_hidden_layers"),
        mixer=mixer,
        feed_forward=None,
        norm=RMSNormConfig(eps=read.number("layer_norm_epsilon", 1e-5)),
        tie_word_embeddings=read.flag("tie_word_embeddings", tied),
        max_position_embeddings=read.count("max_position_embeddings", _POSITIONS),
    )


def mamba_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `MambaForCausalLM`."""
    mixer: Any = config.layers[0].mixer
    return {
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        **_shared(config, mixer),
        "time_step_rank": mixer.time_step_rank,
    }


def mamba2_to_hf(config: ModelConfig) -> dict[str, Any]:
    """A `config.json` that transformers reads as `Mamba2ForCausalLM`."""
    mixer: Any = config.layers[0].mixer
    written = {
        "architectures": ["Mamba2ForCausalLM"],
        "model_type": "mamba2",
        **_shared(config, mixer),
        "num_heads": mixer.num_heads,
        "head_dim": mixer.head_dim,
        "n_groups": mixer.num_groups,
    }
    if mixer.least_step or mixer.largest_step is not None:
        largest = _NO_LIMIT if mixer.largest_step is None else mixer.largest_step
        written["time_step_limit"] = [mixer.least_step, largest]
    return written


def _shared(config: ModelConfig, mixer: Any) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "expand": mixer.intermediate_size // config.hidden_size,
        "state_size": mixer.state_size,
        "conv_kernel": mixer.conv_kernel,
        "use_bias": mixer.bias,
        "use_conv_bias": mixer.conv_bias,
        "hidden_act": "silu",
        "layer_norm_epsilon": config.layers[0].norm.eps,
        "residual_in_fp32": True,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": "float32",
    }


def _rules(parameters: list[str], projections: list[str]) -> list[Rule]:
    ours, theirs = "layers.{}.mixer", "backbone.layers.{}.mixer"
    return [
        same("embed_tokens.weight", "backbone.embeddings.weight"),
        same("layers.{}.mixer_norm.weight", "backbone.layers.{}.norm.weight"),
        *(same(f"{ours}.{name}", f"{theirs}.{name}") for name in parameters),
        *(rule for name in projections for rule in for_kinds(f"{ours}.{name}", f"{theirs}.{name}")),
        *for_kinds(f"{ours}.conv", f"{theirs}.conv1d"),
        same("norm.weight", "backbone.norm_f.weight"),
        same("lm_head.weight", "lm_head.weight"),
    ]


MAMBA = Architecture(
    name="mamba",
    hf=Layout(
        rules=_rules(["A_log", "D"], ["in_proj", "x_proj", "dt_proj", "out_proj"]),
        read_config=mamba_from_hf,
        write_config=mamba_to_hf,
        prefix="backbone.",
    ),
)

MAMBA2 = Architecture(
    name="mamba2",
    hf=Layout(
        rules=_rules(["A_log", "D", "dt_bias", "norm.weight"], ["in_proj", "out_proj"]),
        read_config=mamba2_from_hf,
        write_config=mamba2_to_hf,
        prefix="backbone.",
    ),
)
