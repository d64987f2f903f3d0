"""Rotary scalings as Hugging Face spells them: `rope_scaling`, or `rope_parameters`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmworks.core.errors import UserError
from lmworks.models.architectures.values import Values
from lmworks.models.config import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    RoPEScaling,
    YaRNScaling,
)


def scaling_from_hf(
    rope: Values, values: Values, *, kind: str, original: int | None
) -> RoPEScaling | None:
    """The scaling that `rope` tells of; `values` is the whole config.

    `original` is the architecture's own `original_max_position_embeddings`, where it has one.
    Raises: UserError for an unknown kind and for what is missing.
    """
    if kind == "default":
        return None
    if kind not in _READERS:
        known = ", ".join(["default", *_READERS])
        raise UserError(f"rope_type {kind!r} is not supported: known: {known}")
    return _READERS[kind](rope, values, original)


def _original(rope: Values, values: Values, original: int | None) -> int:
    """The context before scaling: beside the rope settings, then in them, then the whole."""
    found = values.count("original_max_position_embeddings", original)
    if found is None:
        found = rope.count("original_max_position_embeddings", None)
    return values.count("max_position_embeddings") if found is None else found


def _factor(rope: Values, values: Values, original: int) -> float:
    given = rope.number("factor", None)
    if given is None and original > 0:
        return values.count("max_position_embeddings") / original
    return rope.number("factor")


def _linear(rope: Values, values: Values, original: int | None) -> RoPEScaling:
    return LinearScaling(factor=rope.number("factor"))


def _dynamic(rope: Values, values: Values, original: int | None) -> RoPEScaling:
    return DynamicNTKScaling(
        factor=rope.number("factor"),
        original_max_position_embeddings=values.count("max_position_embeddings"),
    )


def _yarn(rope: Values, values: Values, original: int | None) -> RoPEScaling:
    length = _original(rope, values, original)
    return YaRNScaling(
        factor=_factor(rope, values, length),
        original_max_position_embeddings=length,
        beta_fast=rope.number("beta_fast", 0.0) or 32.0,
        beta_slow=rope.number("beta_slow", 0.0) or 1.0,
        attention_factor=rope.number("attention_factor", None),
        mscale=rope.number("mscale", None) or None,
        mscale_all_dim=rope.number("mscale_all_dim", None) or None,
        truncate=rope.flag("truncate", True),
    )


def _longrope(rope: Values, values: Values, original: int | None) -> RoPEScaling:
    length = _original(rope, values, original)
    return LongRoPEScaling(
        short_factor=rope.numbers("short_factor"),
        long_factor=rope.numbers("long_factor"),
        original_max_position_embeddings=length,
        factor=_factor(rope, values, length),
        attention_factor=rope.number("attention_factor", None),
    )


def _llama3(rope: Values, values: Values, original: int | None) -> RoPEScaling:
    return Llama3Scaling(
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_position_embeddings=_original(rope, values, original),
    )


_READERS: dict[str, Callable[[Values, Values, int | None], RoPEScaling]] = {
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}
_WRITTEN: dict[type, tuple[str, ...]] = {
    LinearScaling: ("factor",),
    DynamicNTKScaling: ("factor",),
    YaRNScaling: (
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
    LongRoPEScaling: (
        "factor",
        "original_max_position_embeddings",
        "short_factor",
        "long_factor",
        "attention_factor",
    ),
    Llama3Scaling: (
        "factor",
        "original_max_position_embeddings",
        "low_freq_factor",
        "high_freq_factor",
    ),
}


def scaling_to_hf(scaling: RoPEScaling | None) -> dict[str, Any] | None:
    """The reverse. Raises: KeyError for a scaling that Hugging Face has no word for (NTK)."""
    if scaling is None:
        return None
    values = {name: getattr(scaling, name) for name in _WRITTEN[type(scaling)]}
    lists = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
    return {"rope_type": scaling.kind, **{k: v for k, v in lists.items() if v is not None}}
