"""Rotary settings as `config.json` and GGUF files spell them.

Both spellings of Hugging Face are read: `rope_theta` + `rope_scaling`, and `rope_parameters` as
transformers 5 writes it. The first is written, since every version reads it.

A native window (`NativeWindow`) stands beside them under a key of our own, `rope_native`, which
others pass over: there, the scaling holds at all lengths.

GGUF files hold llama3 scaling as the tensor `rope_freqs.weight`, the divisor of each frequency,
from which its parameters are recovered, and LongRoPE as the tensors of both sets of factors.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError
from lmworks.models.architectures.rope_scaling import scaling_from_hf, scaling_to_hf
from lmworks.models.architectures.values import Values, shortest
from lmworks.models.config import (
    LinearScaling,
    Llama3Scaling,
    LongRoPEScaling,
    NativeWindow,
    RoPEConfig,
    RoPEScaling,
    YaRNScaling,
)

if TYPE_CHECKING:
    import numpy as np

NATIVE = "rope_native"
ROPE_FREQS = "rope_freqs.weight"
ROPE_LONG, ROPE_SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
# Further settings of YaRN, and what llama.cpp takes for one that is left out.
_YARN_DEFAULTS = {"attn_factor": 1.0, "yarn_ext_factor": 1.0, "yarn_attn_factor": 1.0}


def rope_from_hf(
    values: Values,
    *,
    theta: float = 10000.0,
    fraction: float | None = None,
    original: int | None = None,
    renamed: Mapping[str, str] | None = None,
) -> RoPEConfig:
    """The settings of a `config.json`, with the architecture's own defaults.

    `fraction` is the default of an architecture that turns a part of each head; None is one that
    turns the whole, and any other setting is refused. `original` is its own
    `original_max_position_embeddings`; `renamed` maps kinds that it means otherwise.
    """
    settings = values.raw("rope_parameters", None)
    if settings is None:
        settings = values.raw("rope_scaling", {})
    if not isinstance(settings, Mapping):
        raise UserError(f"the rope settings must be an object, not {settings!r}")
    return rope_from_settings(
        Values(settings),
        values,
        theta=theta,
        fraction=fraction,
        original=original,
        renamed=renamed,
    )


def rope_from_settings(
    rope: Values,
    values: Values,
    *,
    theta: float,
    fraction: float | None,
    original: int | None = None,
    renamed: Mapping[str, str] | None = None,
) -> RoPEConfig:
    """The settings of one object in the style of `rope_parameters`; `values` is the config."""
    part = rope.number(
        "partial_rotary_factor", values.number("partial_rotary_factor", fraction or 1.0)
    )
    if fraction is None and part != 1:
        raise UserError(f"partial_rotary_factor {part:g} is not supported here, only 1")
    kind = rope.text("rope_type", rope.text("type", "default"))
    kind = (renamed or {}).get(kind, kind)
    return RoPEConfig(
        theta=rope.number("rope_theta", values.number("rope_theta", theta)),
        scaling=scaling_from_hf(rope, values, kind=kind, original=original),
        fraction=part,
        native=_native_from_hf(values, part),
    )


def _native_from_hf(values: Values, fraction: float) -> NativeWindow | None:
    """The ladder of `rope_native`, a list of objects with the shortest lengths first."""
    steps = values.raw(NATIVE, None) or []
    if not isinstance(steps, Sequence) or not all(isinstance(s, Mapping) for s in steps):
        raise UserError(f"{NATIVE} must be a list of objects, not {steps!r}")
    native = None
    for step in map(Values, steps):
        kind = step.text("rope_type", "default")
        rope = RoPEConfig(
            theta=step.number("rope_theta"),
            scaling=scaling_from_hf(step, values, kind=kind, original=None),
            fraction=fraction,
            native=native,
        )
        native = NativeWindow(length=step.count("length"), rope=rope)
    return native


def rope_to_hf(rope: RoPEConfig) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`; the turned part where it is not all, a native window."""
    settings: dict[str, Any] = {"rope_theta": rope.theta}
    settings["rope_scaling"] = scaling_to_hf(rope.scaling)
    if rope.fraction != 1:
        settings["partial_rotary_factor"] = rope.fraction
    steps, native = [], rope.native
    while native is not None:
        steps.append({"length": native.length, **rope_to_settings(native.rope)})
        native = native.rope.native
    return settings | ({NATIVE: steps[::-1]} if steps else {})


def rope_to_settings(rope: RoPEConfig) -> dict[str, Any]:
    """One object in the style of `rope_parameters`."""
    return {"rope_type": "default", **(scaling_to_hf(rope.scaling) or {}), "rope_theta": rope.theta}


def rope_from_gguf(
    values: Values, tensors: Mapping[str, Any], head_dim: int, rotary_dim: int
) -> RoPEConfig:
    """The settings of a GGUF file; `values` are its metadata under the architecture's prefix."""
    theta = values.number("rope.freq_base", 10000.0)
    scaling = _scaling_from_gguf(values, tensors, theta, rotary_dim)
    rope = RoPEConfig(
        theta=theta,
        scaling=scaling,
        fraction=_fraction(rotary_dim, head_dim),
        native=_native_from_gguf(values, _fraction(rotary_dim, head_dim)),
    )
    if rope.rotary_dim(head_dim) != rotary_dim:
        raise UserError(f"rope.dimension_count {rotary_dim} of head size {head_dim}: not supported")
    return rope


def _native_from_gguf(values: Values, fraction: float) -> NativeWindow | None:
    length = values.count("rope.native_context_length", 0)
    if not length:
        return None
    rope = RoPEConfig(theta=values.number("rope.native_freq_base"), fraction=fraction)
    return NativeWindow(length=length, rope=rope)


def _fraction(rotary_dim: int, head_dim: int) -> float:
    if not 1 <= rotary_dim <= head_dim:
        raise UserError(f"rope.dimension_count must be from 1 to {head_dim}, not {rotary_dim}")
    return rotary_dim / head_dim


def _scaling_from_gguf(
    values: Values, tensors: Mapping[str, Any], theta: float, rotary_dim: int
) -> RoPEScaling | None:
    if ROPE_FREQS in tensors:
        return _recover_llama3(tensors[ROPE_FREQS], theta, rotary_dim)
    if ROPE_LONG in tensors and ROPE_SHORT in tensors:
        return _longrope_from_gguf(values, tensors)
    kind = values.text("rope.scaling.type", "linear" if "rope.scale_linear" in values else "none")
    factor = values.number("rope.scaling.factor", values.number("rope.scale_linear", 1.0))
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return None
    if kind == "linear":
        return LinearScaling(factor=factor)
    if kind == "yarn":
        for name, default in _YARN_DEFAULTS.items():
            values.only(f"rope.scaling.{name}", (default,))
        return YaRNScaling(
            factor=shortest(factor),
            original_max_position_embeddings=values.count("rope.scaling.original_context_length"),
            beta_fast=shortest(values.number("rope.scaling.yarn_beta_fast", 32.0)),
            beta_slow=shortest(values.number("rope.scaling.yarn_beta_slow", 1.0)),
        )
    raise UserError(f"rope scaling {kind!r} is not supported: known: none, linear, yarn, llama3")


def _longrope_from_gguf(values: Values, tensors: Mapping[str, Any]) -> LongRoPEScaling:
    from lmworks.core.gguf import dequantize

    original = values.count("rope.scaling.original_context_length")
    long, short = (
        tuple(shortest(number) for number in dequantize(tensors[name]).reshape(-1))
        for name in (ROPE_LONG, ROPE_SHORT)
    )
    scaling = LongRoPEScaling(
        short_factor=short,
        long_factor=long,
        original_max_position_embeddings=original,
        factor=values.count("context_length") / max(original, 1),
    )
    given = shortest(values.number("rope.scaling.attn_factor", 1.0))
    if given == shortest(attention_factor_of(RoPEConfig(scaling=scaling))):
        return scaling
    return dataclasses.replace(scaling, attention_factor=given)


def _recover_llama3(tensor: Any, theta: float, rotary_dim: int) -> Llama3Scaling | None:
    """The scaling whose divisors are those of `rope_freqs.weight`.

    All published checkpoints share the constants 1, 4 and 8192 and differ in the factor, which is
    the largest divisor; the result is checked against every divisor.
    """
    import numpy as np

    from lmworks.core.gguf import dequantize

    divisors = dequantize(tensor).reshape(-1)
    if np.array_equal(divisors, np.ones_like(divisors)):
        return None
    largest = float(divisors.max())
    if len(divisors) == rotary_dim // 2 and np.isfinite(divisors).all() and largest > 0:
        scaling = Llama3Scaling(factor=shortest(largest))
        if np.allclose(_divisors(scaling, theta, rotary_dim), divisors, rtol=1e-3):
            return scaling
    raise UserError(f"{ROPE_FREQS} holds divisors that are not those of llama3 scaling")


def _divisors(scaling: Llama3Scaling, theta: float, rotary_dim: int) -> np.ndarray:
    from lmworks.models.rotary_frequencies import inverse_frequencies, llama3_factors

    divisors = llama3_factors(scaling, inverse_frequencies(RoPEConfig(theta=theta), rotary_dim))
    array: np.ndarray = divisors.numpy()
    return array


def rope_to_gguf(rope: RoPEConfig, head_dim: int) -> dict[str, Any]:
    """The metadata, without the architecture's prefix."""
    values: dict[str, Any] = {
        "rope.dimension_count": rope.rotary_dim(head_dim),
        "rope.freq_base": float(rope.theta),
    }
    scaling = rope.scaling
    if isinstance(scaling, LinearScaling):
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling.factor)}
    elif isinstance(scaling, YaRNScaling):
        values |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(scaling.factor),
            "rope.scaling.original_context_length": scaling.original_max_position_embeddings,
            "rope.scaling.yarn_beta_fast": float(scaling.beta_fast),
            "rope.scaling.yarn_beta_slow": float(scaling.beta_slow),
        }
    elif isinstance(scaling, LongRoPEScaling):
        values |= {
            "rope.scaling.original_context_length": scaling.original_max_position_embeddings,
            "rope.scaling.attn_factor": shortest(attention_factor_of(rope)),
        }
    if rope.native is not None:  # with a scaling or window of its own: the reader won't agree
        values |= {
            "rope.native_context_length": rope.native.length,
            "rope.native_freq_base": float(rope.native.rope.theta),
        }
    return values


def attention_factor_of(rope: RoPEConfig) -> float:
    """What queries and keys of long sequences are multiplied by."""
    from lmworks.models.rotary_frequencies import attention_factor

    return attention_factor(rope, sys.maxsize)


def rope_extras(rope: RoPEConfig | None, head_dim: int) -> dict[str, np.ndarray]:
    """The tensors that say llama3 scaling or LongRoPE, or nothing."""
    import numpy as np

    scaling = None if rope is None else rope.scaling
    if rope is not None and isinstance(scaling, Llama3Scaling):
        return {ROPE_FREQS: _divisors(scaling, rope.theta, rope.rotary_dim(head_dim))}
    if isinstance(scaling, LongRoPEScaling):
        factors = {ROPE_LONG: scaling.long_factor, ROPE_SHORT: scaling.short_factor}
        return {name: np.array(numbers, dtype=np.float32) for name, numbers in factors.items()}
    return {}
