"""What ports get wrong about heads: how many there are, how they are split, shared and joined."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from lmworks.models import attention
from lmworks.models.config import AttentionConfig
from lmworks.models.model import Model
from lmworks.models.parity.changes import in_part
from lmworks.models.parity.trial import Change, replaced


def head_changes(mixer: AttentionConfig) -> Iterator[Change]:
    """Those of an attention's heads."""
    heads, groups, size = mixer.num_attention_heads, mixer.num_key_value_heads, mixer.head_dim
    for times in (2, 4):
        for n, k, d in (
            (heads * times, groups * times, size / times),
            (heads / times, groups / times, size * times),
        ):
            if all(value >= 1 and value == int(value) for value in (n, k, d)):
                yield Change(
                    cause="number of heads",
                    says=f"cuts q, k and v into {n:g} heads of {d:g} instead of {heads} of {size}",
                    fix=f"set num_attention_heads to {heads} and head_dim to {size}",
                    config=in_part(
                        "mixer",
                        num_attention_heads=int(n),
                        num_key_value_heads=int(k),
                        head_dim=int(d),
                        scale=None,
                    ),
                    expense=1,
                )
    if heads != groups and groups > 1:
        yield Change(
            cause="key-value heads tiled",
            says="repeats the key-value heads as a whole (repeat) and not each for its neighbours",
            fix="use repeat_interleave (repeat_kv) over the head axis",
            patch=lambda model: replaced(attention, "attend", _tiled()),
            seen=lambda name, value: _tiled_heads(name, value, heads // groups),
        )
    yield Change(
        cause="heads not transposed",
        says="joins the heads without turning (heads, positions) back to (positions, heads)",
        fix="transpose before the reshape",
        patch=lambda model: _joining(model, lambda y: y.reshape(y.shape[0], y.shape[2], -1)),
    )
    yield Change(
        cause="heads split wrongly",
        says="cuts q, k and v as (head_dim, heads) instead of (heads, head_dim)",
        fix="reshape to (..., heads, head_dim)",
        patch=lambda model: replaced(model.layers[0].mixer, "_heads", _split(model)),
    )


def _tiled_heads(name: str, value: torch.Tensor, times: int) -> torch.Tensor:
    """A port that repeats heads shows k and v with as many heads as q."""
    return value.repeat(1, 1, times, 1) if name.endswith(("mixer.k", "mixer.v")) else value


def _tiled() -> Any:
    plain = attention.attend

    def attend(q: Any, k: Any, v: Any, *rest: Any, **options: Any) -> Any:
        times = q.shape[1] // k.shape[1]
        return plain(q, k.repeat(1, times, 1, 1), v.repeat(1, times, 1, 1), *rest, **options)

    return attend


def _joining(model: Model, join: Any) -> Any:
    mixer: Any = model.layers[0].mixer

    def output(y: torch.Tensor, context: Any) -> torch.Tensor:
        joined = join(y)
        context.note("mixer.attended", joined)
        out: torch.Tensor = mixer.o_proj(joined)
        return out

    return replaced(mixer, "_output", output)


def _split(model: Model) -> Any:
    mixer: Any = model.layers[0].mixer
    size = mixer.config.head_dim

    def heads(x: torch.Tensor, norm: Any) -> torch.Tensor:
        parts = x.view(*x.shape[:2], size, -1).permute(0, 3, 1, 2)
        return parts if norm is None else norm(parts)

    return heads
