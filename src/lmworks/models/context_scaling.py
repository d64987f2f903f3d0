"""How a model's config is stretched to longer sequences than it was trained on.

A method says how rotary positions turn when they are stretched by a factor; `extended` puts it into
every layer that looks further back than a window. What sequences within the trained length are
turned by stays as it was (`NativeWindow`), so a stretched model says about them, bit for bit, what
it said before; engines of other projects, which scale at all lengths, don't have that.

Sources: Chen et al. 2023, arXiv 2306.15595 (pi); u/bloc97 2023 (ntk) and u/emozilla 2023 (dynamic),
told in Peng et al. 2023, arXiv 2309.00071 (yarn); arXiv 2407.21783 (llama3); Xiong et al. 2023,
arXiv 2309.16039, section 2.2 (abf, "adjusted base frequency": they raise the base by 50 for a
factor of 8 and train on; the power here was found without training, by
`bench/context_extension.py`). Left out: factors per pair found by a search (LongRoPE, arXiv
2402.13753), which are computed with all the same.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Callable
from typing import Any

from lmworks.core.errors import UserError, unknown_name
from lmworks.models.config import (
    DynamicNTKScaling,
    LayerConfig,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    NativeWindow,
    RoPEConfig,
    SlidingWindow,
    YaRNScaling,
)


def _pi(rope: RoPEConfig, factor: float, native: int, rotary_dim: int) -> RoPEConfig:
    return dataclasses.replace(rope, scaling=LinearScaling(factor=factor))


def _ntk(rope: RoPEConfig, factor: float, native: int, rotary_dim: int) -> RoPEConfig:
    # A larger base and no scaling: what every engine reads.
    if rotary_dim <= 2:
        raise UserError(f"ntk needs more than {rotary_dim} rotary dimensions")
    theta = rope.theta * factor ** (rotary_dim / (rotary_dim - 2))
    (held,) = struct.unpack("<f", struct.pack("<f", theta))  # as GGUF files hold it
    return dataclasses.replace(rope, theta=held)


def _abf(rope: RoPEConfig, factor: float, native: int, rotary_dim: int) -> RoPEConfig:
    # Further than ntk goes: its waves that turn a few times within the trained length would meet
    # angles that they never learned.
    return _ntk(rope, factor**_ABF_POWER, native, rotary_dim)


def _yarn(rope: RoPEConfig, factor: float, native: int, rotary_dim: int) -> RoPEConfig:
    scaling = YaRNScaling(factor=factor, original_max_position_embeddings=native)
    return dataclasses.replace(rope, scaling=scaling)


def _llama3(rope: RoPEConfig, factor: float, native: int, rotary_dim: int) -> RoPEConfig:
    scaling = Llama3Scaling(factor=factor, original_max_position_embeddings=native)
    return dataclasses.replace(rope, scaling=scaling)


def _dynamic(rope: RoPEConfig, factor: float, native: int, rotary_dim: int) -> RoPEConfig:
    scaling = DynamicNTKScaling(factor=1.0, original_max_position_embeddings=native)
    return dataclasses.replace(rope, scaling=scaling)


def _none(rope: RoPEConfig, factor: float, native: int, rotary_dim: int) -> RoPEConfig:
    return rope


_ABF_POWER = 2.5
_Method = Callable[[RoPEConfig, float, int, int], RoPEConfig]
# name: how positions are turned beyond the trained length, and that in a sentence.
METHODS: dict[str, tuple[_Method, str]] = {
    "yarn": (_yarn, "long waves stretched, short ones kept, a ramp between; scores sharper"),
    "ntk": (_ntk, "the base raised, so that long waves are stretched and short ones hardly"),
    "abf": (_abf, "the base raised by more than that, as for ntk with the factor's power 2.5"),
    "dynamic": (_dynamic, "ntk by as much as each sequence needs, anew at every length"),
    "llama3": (_llama3, "long waves stretched, short ones kept, a ramp between, by wave length"),
    "pi": (_pi, "all waves stretched alike (position interpolation)"),
    "none": (_none, "nothing is stretched; for comparison"),
}


def extended(
    config: ModelConfig,
    *,
    factor: float,
    method: str = "yarn",
    native_length: int = 0,
    keep_native: bool = True,
    ladder: bool = False,
) -> ModelConfig:
    """The config of a model that reads sequences `factor` times as long.

    Args:
        native_length: what the model was trained on; 0: its context.
        keep_native: sequences of at most that length are turned as before.
        ladder: longer ones are stretched by the first of 2, 4, 8 ... that suffices, and by no more
            than `factor`; it takes `keep_native`.
    Raises: UserError for an unknown method, a factor that does not stretch, or a model that has no
        rotary positions, or whose positions are stretched already.
    """
    if method not in METHODS:
        raise unknown_name("method to extend a context", method, METHODS)
    if not 1 < factor <= 1024:
        raise UserError(f"factor {factor:g}: give a number above 1, and at most 1024")
    native = native_length or config.max_position_embeddings
    if not 1 <= native <= config.max_position_embeddings:
        raise UserError(
            f"native length {native} must be from 1 to the model's context, "
            f"{config.max_position_embeddings}"
        )
    if ladder and not keep_native:
        raise UserError("a ladder begins with the native length: leave keep_native on")

    def turned(rope: RoPEConfig, head_dim: int) -> RoPEConfig:
        if rope.scaling is not None or rope.native is not None:
            how = rope.scaling.kind if rope.scaling else "a native window"
            raise UserError(
                f"this model's context was extended before ({how}): begin with the model that it "
                "was made of"
            )
        found, at = rope, native
        stretch, rotary_dim = METHODS[method][0], rope.rotary_dim(head_dim)
        for step in _steps(factor, ladder and method not in ("dynamic", "none")):
            longer = stretch(rope, step, native, rotary_dim)
            if keep_native and method not in ("dynamic", "none"):
                longer = dataclasses.replace(longer, native=NativeWindow(length=at, rope=found))
            found, at = longer, math.floor(native * step)
        return found

    layers = [_turned(layer, native, turned) for layer in config.layers]
    if all(new is old for new, old in zip(layers, config.layers)) and method != "none":
        raise UserError(
            "this model has no rotary positions that look further than a window: none of its "
            "layers can be stretched"
        )
    return dataclasses.replace(
        config, layers=tuple(layers), max_position_embeddings=math.floor(native * factor)
    )


def _steps(factor: float, ladder: bool) -> list[float]:
    """The factors of a ladder, ascending; the last is `factor`."""
    steps = [2.0**power for power in range(1, 11)] if ladder else []
    return [step for step in steps if step < factor] + [factor]


def _turned(
    layer: LayerConfig, native: int, turned: Callable[[RoPEConfig, int], RoPEConfig]
) -> LayerConfig:
    """The layer with its rotary positions stretched, or itself where that would change nothing."""
    mixer: Any = layer.mixer
    rope = getattr(mixer, "rope", None)
    pattern = getattr(mixer, "pattern", None)
    # Within a window no distance is longer than the model knows.
    if rope is None or (isinstance(pattern, SlidingWindow) and pattern.window <= native):
        return layer
    size = getattr(mixer, "qk_rope_head_dim", None) or mixer.head_dim
    new = turned(rope, size)
    if new == rope:
        return layer
    return dataclasses.replace(layer, mixer=dataclasses.replace(mixer, rope=new))
