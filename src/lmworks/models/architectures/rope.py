"""Rotary settings as `config.json` and GGUF files spell them.

Both spellings of Hugging Face are read: `rope_theta` + `rope_scaling`, and `rope_parameters` as
transformers 5 writes it. The first is written, since every version reads it.

GGUF files hold llama3 scaling as the tensor `rope_freqs.weight`, the divisor of each frequency,
from which its parameters are recovered.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError
from lmworks.models.architectures.rope_scaling import scaling_from_hf, scaling_to_hf
from lmworks.models.architectures.values import Values, shortest
from lmworks.models.config import LinearScaling, Llama3Scaling, RoPEConfig, RoPEScaling

if TYPE_CHECKING:
    import numpy as np

ROPE_FREQS = "rope_freqs.weight"


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
    )


def rope_to_hf(rope: RoPEConfig) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, and the turned part where it is not all."""
    part = {} if rope.fraction == 1 else {"partial_rotary_factor": rope.fraction}
    return {"rope_theta": rope.theta, "rope_scaling": scaling_to_hf(rope.scaling)} | part


def rope_from_gguf(values: Values, tensors: Mapping[str, Any], rotary_dim: int) -> RoPEConfig:
    """The settings of a GGUF file; `values` are its metadata under the architecture's prefix."""
    theta = values.number("rope.freq_base", 10000.0)
    if ROPE_FREQS in tensors:
        scaling: RoPEScaling | None = _recover_llama3(tensors[ROPE_FREQS], theta, rotary_dim)
        return RoPEConfig(theta=theta, scaling=scaling)
    kind = values.text("rope.scaling.type", "linear" if "rope.scale_linear" in values else "none")
    factor = values.number("rope.scaling.factor", values.number("rope.scale_linear", 1.0))
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return RoPEConfig(theta=theta)
    if kind == "linear":
        return RoPEConfig(theta=theta, scaling=LinearScaling(factor=factor))
    raise UserError(f"rope scaling {kind!r} is not supported: known: none, linear, llama3")


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
    if isinstance(rope.scaling, LinearScaling):
        values["rope.scaling.type"] = "linear"
        values["rope.scaling.factor"] = float(rope.scaling.factor)
    return values


def rope_extras(rope: RoPEConfig | None, head_dim: int) -> dict[str, np.ndarray]:
    """The tensor that says llama3 scaling, or nothing."""
    if rope is None or not isinstance(rope.scaling, Llama3Scaling):
        return {}
    return {ROPE_FREQS: _divisors(rope.scaling, rope.theta, rope.rotary_dim(head_dim))}
