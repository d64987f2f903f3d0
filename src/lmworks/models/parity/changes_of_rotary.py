"""What ports get wrong about rotary positions: layout, base, scaling, part, place, direction."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import torch

from lmworks.models import attention
from lmworks.models.config import AttentionConfig, LinearScaling, Llama3Scaling, RoPEConfig
from lmworks.models.model import Model
from lmworks.models.parity.changes import in_part, told
from lmworks.models.parity.trial import Change, replaced

_THETAS = (1e3, 1e4, 1e5, 2.5e5, 5e5, 1e6, 1e7)
_FRACTIONS = (0.25, 0.4, 0.5, 0.75, 1.0)


def rotary_changes(mixer: AttentionConfig) -> Iterator[Change]:
    """Those of an attention with rotary positions, or of one that should have none."""
    if mixer.rope is None:
        for theta in (1e4, 5e5, 1e6):
            yield Change(
                cause="rope added",
                says=f"turns q and k (theta {told(theta)}) where there are no rotary positions",
                fix="leave rotary positions out",
                config=in_part("mixer", rope=RoPEConfig(theta=theta)),
            )
        return
    yield Change(
        cause="rope missing",
        says="does not turn q and k by their positions",
        fix="apply rotary positions",
        config=in_part("mixer", rope=None),
    )
    yield from _settings(mixer.rope)
    yield from _code()


def _settings(rope: RoPEConfig) -> Iterator[Change]:
    for theta in _THETAS:
        if theta != rope.theta:
            yield _setting(rope, "theta", theta, "rope_theta")
    for fraction in _FRACTIONS:
        if fraction != rope.fraction:
            yield _setting(rope, "fraction", fraction, "partial_rotary_factor")
    for scaling in _scalings(rope.scaling):
        if scaling != rope.scaling:
            yield _setting(rope, "scaling", scaling, "rope_scaling")


def _setting(rope: RoPEConfig, field: str, value: Any, key: str) -> Change:
    former = getattr(rope, field)
    changed = dataclasses.replace(rope, **{field: value})
    return Change(
        cause=f"rope {field}",
        says=f"turns q and k with {field} {told(value)} instead of {told(former)}",
        fix=f"set {key} to {told(former)}",
        config=in_part("mixer", rope=changed),
    )


def _scalings(scaling: Any) -> Iterator[Any]:
    """None, the kinds with their usual factors, and the given kind with other numbers."""
    yield None
    for factor in (2.0, 4.0, 8.0, 16.0, 32.0):
        yield LinearScaling(factor=factor)
        yield Llama3Scaling(factor=factor)
        if hasattr(scaling, "factor"):
            yield dataclasses.replace(scaling, factor=factor)


def _code() -> Iterator[Change]:
    yield _function(
        "rope layout",
        "turns neighbouring dimensions (2i, 2i + 1) instead of (i, i + D/2)",
        "pair dimension i with i + D/2, or permute the rows of q_proj and k_proj",
        lambda: _interleaved,
    )
    for only, word in ((0, "q"), (1, "k")):
        yield _function(
            f"rope on {word} only",
            f"turns {word} alone",
            "turn both q and k",
            lambda only=only: _alternating(only),  # type: ignore[misc]
        )
    yield Change(
        cause="rope on v",
        says="turns v too",
        fix="turn q and k only",
        patch=_turning_values,
    )
    yield _function("rope direction", "turns the other way", "negate the sines", lambda: _reversed)
    for by in (-1, 1):
        yield Change(
            cause="rope position off by one",
            says=f"counts positions from {by} instead of 0",
            fix="begin with position 0",
            patch=lambda model, by=by: _counting(model, by),  # type: ignore[misc]
        )


def _function(cause: str, says: str, fix: str, make: Any) -> Change:
    return Change(
        cause=cause,
        says=says,
        fix=fix,
        patch=lambda model: replaced(attention, "apply_rotary", make()),
    )


_plain = attention.apply_rotary


def _interleaved(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    width = cos.shape[-1]
    order = torch.arange(width).view(-1, 2).mT.reshape(-1)
    turned = _plain(x[..., :width][..., order].contiguous(), cos, sin)[..., order.argsort()]
    return torch.cat((turned, x[..., width:]), dim=-1)


def _reversed(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return _plain(x, cos, -sin)


def _alternating(only: int) -> Any:
    """q comes first, then k."""
    calls = itertools.count()

    def turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return _plain(x, cos, sin) if next(calls) % 2 == only else x

    return turn


def _turning_values(model: Model) -> Any:
    mixer: Any = model.layers[0].mixer
    plain = mixer.values

    def values(x: torch.Tensor) -> torch.Tensor:
        cos, sin = (table[: x.shape[1]] for table in mixer.rotary.tables(x.shape[1], x.device))
        return attention.apply_rotary(plain(x), cos, sin)

    return replaced(mixer, "values", values)


class _Counting:
    """Rotary tables whose first row is that of position `by`."""

    def __init__(self, rotary: Any, by: int) -> None:
        self._rotary, self._by = rotary, by

    def tables(self, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """See `positions.Rotary`."""
        cos, sin = self._rotary.tables(length + 2, device)
        if self._by > 0:
            return cos[self._by :], sin[self._by :]
        return torch.cat((cos[1:2], cos)), torch.cat((-sin[1:2], sin))


def _counting(model: Model, by: int) -> Any:
    mixer: Any = model.layers[0].mixer
    return replaced(mixer, "rotary", _Counting(mixer.rotary, by))
