"""Numbers that no list holds: a base, an epsilon, a scale, found by search.

Each is a family of changes with one number; the number that brings the reference nearest to the
port is looked for, rounded to few digits, and then tested like any other change.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lmworks.models.config import AttentionConfig, LMHeadConfig, RMSNormConfig
from lmworks.models.parity.changes import in_layer, in_part
from lmworks.models.parity.trial import EMBEDDING, END, Change, Stage

_COARSE, _FINE = 25, 40
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, kw_only=True)
class _Family:
    cause: str
    says: str  # {} is the number
    fix: str
    low: float
    high: float
    make: Callable[[float], Any]  # number -> change of the config


def fits_of(stage: Stage, operation: str) -> Iterator[Change]:
    """The best number of every family that has one."""
    for family in _families(stage):
        value = _best(stage, operation, family)
        for digits in (2, 3, 4, 6):
            shown = float(f"{value:.{digits}g}")
            yield Change(
                cause=family.cause,
                says=family.says.format(f"{shown:g}"),
                fix=family.fix,
                config=family.make(shown),
                expense=digits,
            )


def _families(stage: Stage) -> Iterator[_Family]:
    if stage.name == EMBEDDING:
        scale = stage.config.embedding.scale
        yield _Family(
            cause="embedding scale",
            says=f"multiplies the embedding by {{}} instead of {scale:g}",
            fix=f"multiply by {scale:g}",
            low=1e-3,
            high=1e3,
            make=lambda v: (
                lambda c: dataclasses.replace(
                    c, embedding=dataclasses.replace(c.embedding, scale=v)
                )
            ),
        )
    elif stage.name == END:
        yield from _of_the_end(stage)
    else:
        yield from _of_a_layer(stage)


def _of_the_end(stage: Stage) -> Iterator[_Family]:
    head, norm = stage.config.head, stage.config.norm
    if isinstance(head, LMHeadConfig):
        for name, cause, says in (
            ("scale", "logit scale", "scales the logits by {}"),
            ("softcap", "logit softcap", "caps the logits softly at {}"),
        ):
            former = getattr(head, name)
            yield _Family(
                cause=cause,
                says=f"{says} instead of {former}",
                fix=f"use {former}",
                low=1e-3,
                high=1e3,
                make=lambda v, name=name: (
                    lambda c: dataclasses.replace(  # type: ignore[misc]
                        c, head=dataclasses.replace(c.head, **{name: v})
                    )
                ),
            )
    if norm is not None:
        yield _eps(norm.eps, lambda c, new: dataclasses.replace(c, norm=new), norm)


def _of_a_layer(stage: Stage) -> Iterator[_Family]:
    layer = stage.config.layers[0]
    yield _eps(layer.norm.eps, lambda c, new: in_layer(norm=new)(c), layer.norm)
    mixer = layer.mixer
    if not isinstance(mixer, AttentionConfig):
        return
    for name, cause, says in (
        ("scale", "attention scale", "scales the scores by {}"),
        ("softcap", "attention softcap", "caps the scores softly at {}"),
    ):
        former = getattr(mixer, name)
        yield _Family(
            cause=cause,
            says=f"{says} instead of {former or 'the usual'}",
            fix=f"use {former or 'the usual'}",
            low=1e-3,
            high=1e3,
            make=lambda v, name=name: in_part("mixer", **{name: v}),  # type: ignore[misc]
        )
    if mixer.rope is not None:
        rope = mixer.rope
        yield _Family(
            cause="rope theta",
            says=f"turns q and k with theta {{}} instead of {rope.theta:g}",
            fix=f"set rope_theta to {rope.theta:g}",
            low=10,
            high=1e9,
            make=lambda v: in_part("mixer", rope=dataclasses.replace(rope, theta=v)),
        )


def _eps(eps: float, put: Any, norm: Any) -> _Family:
    word = "RMSNorm" if isinstance(norm, RMSNormConfig) else "LayerNorm"
    return _Family(
        cause="norm eps",
        says=f"uses {word} with eps {{}} instead of {eps:g}",
        fix=f"set rms_norm_eps (or layer_norm_eps) to {eps:g}",
        low=1e-12,
        high=1e-1,
        make=lambda v: lambda c: put(c, dataclasses.replace(norm, eps=v)),
    )


def _best(stage: Stage, operation: str, family: _Family) -> float:
    """The number with the least error: a coarse grid over the logarithm, then golden sections."""

    def error(log: float) -> float:
        change = Change(cause="", says="", fix="", config=family.make(math.exp(log)))
        return stage.error(change, operation)

    low, high = math.log(family.low), math.log(family.high)
    grid = [low + (high - low) * i / (_COARSE - 1) for i in range(_COARSE)]
    middle = min(grid, key=error)
    step = (high - low) / (_COARSE - 1)
    low, high = middle - step, middle + step
    for _ in range(_FINE):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if error(left) < error(right):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)
