"""What ports get wrong about attention: positions, mask, scale, heads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch

from lmworks.models import attention
from lmworks.models.config import AttentionConfig, SlidingWindow
from lmworks.models.model import Model
from lmworks.models.parity.changes import in_part, told
from lmworks.models.parity.changes_of_rotary import rotary_changes
from lmworks.models.parity.trial import Change, Stage, replaced


def attention_changes(stage: Stage) -> Iterator[Change]:
    """Those of a layer whose mixer is attention."""
    mixer = stage.config.layers[0].mixer
    if not isinstance(mixer, AttentionConfig):
        return
    yield from rotary_changes(mixer)
    yield from _scores(mixer, stage.config.hidden_size)
    yield from _masks(mixer, stage.given.shape[1])
    yield from _heads(mixer)
    if mixer.qk_norm is not None:
        other = "all" if mixer.qk_norm_over == "head" else "head"
        yield Change(
            cause="qk-norm missing",
            says="does not norm queries and keys",
            fix="apply q_norm and k_norm",
            config=in_part("mixer", qk_norm=None),
        )
        wanted = _OVER[mixer.qk_norm_over]
        yield Change(
            cause="qk-norm over",
            says=f"norms queries and keys over {_OVER[other]} instead of {wanted}",
            fix=f"norm over {wanted}",
            patch=lambda model: _norming(model, other),
        )


_OVER = {"all": "all heads together", "head": "each head"}


def _norming(model: Model, over: str) -> Any:
    mixer: Any = model.layers[0].mixer
    return replaced(mixer, "config", dataclasses.replace(mixer.config, qk_norm_over=over))


def _scores(mixer: AttentionConfig, hidden_size: int) -> Iterator[Change]:
    usual = 1 / math.sqrt(mixer.head_dim)
    scale = mixer.scale or usual
    words = {
        1.0: "1 (none)",
        usual: "1/sqrt(head_dim)",
        1 / mixer.head_dim: "1/head_dim",
        usual * usual * usual: "1/sqrt(head_dim) with q scaled already by 1/head_dim",
        1 / math.sqrt(hidden_size): "1/sqrt(hidden_size)",
        1 / math.sqrt(mixer.num_attention_heads): "1/sqrt(heads)",
        scale * usual: "the scale twice",
    }
    for value, word in words.items():
        if not math.isclose(value, scale):
            yield Change(
                cause="attention scale",
                says=f"scales the scores by {word} instead of {told(scale)}",
                fix=f"scale by {told(scale)}",
                config=in_part("mixer", scale=value),
            )
    for softcap in (None, 20.0, 30.0, 50.0):
        if softcap != mixer.softcap:
            yield Change(
                cause="attention softcap",
                says=f"caps the scores softly at {told(softcap)} instead of {told(mixer.softcap)}",
                fix=f"set attn_logit_softcapping to {told(mixer.softcap)}",
                config=in_part("mixer", softcap=softcap),
            )
    yield Change(
        cause="alibi",
        says="does not lower scores with distance" if mixer.alibi else "lowers scores (ALiBi)",
        fix=f"{'use' if mixer.alibi else 'leave out'} ALiBi",
        config=in_part("mixer", alibi=not mixer.alibi),
    )


def _masks(mixer: AttentionConfig, length: int) -> Iterator[Change]:
    yield Change(
        cause="causal mask missing" if mixer.causal else "causal mask added",
        says="lets positions see those after them" if mixer.causal else "hides later positions",
        fix=f"{'hide' if mixer.causal else 'show'} later positions",
        config=in_part("mixer", causal=not mixer.causal),
    )
    if mixer.causal:
        for by, says in ((-1, "does not let a position see itself"), (1, "shows the next one too")):
            yield Change(
                cause="causal mask off by one",
                says=f"{says}: its mask is off by one",
                fix="let a position see itself and those before it",
                patch=lambda model, by=by: replaced(attention, "score_mask", _shifted_mask(by)),  # type: ignore[misc]
            )
    window = mixer.pattern.window if isinstance(mixer.pattern, SlidingWindow) else None
    if window is not None:
        yield Change(
            cause="window missing",
            says=f"looks at all positions instead of a window of {window}",
            fix=f"set sliding_window to {window} in these layers",
            config=in_part("mixer", pattern=None),
        )
    for other in range(1, length):
        if other != window:
            near = window is not None and abs(other - window) == 1
            yield Change(
                cause="window off by one" if near else "window",
                says=f"looks at a window of {other} positions instead of {told(window or 'all')}",
                fix=f"set sliding_window to {told(window)}, the position itself included",
                config=in_part("mixer", pattern=SlidingWindow(window=other)),
                expense=0 if near else 2,
            )


def _shifted_mask(by: int) -> Any:
    plain = attention.score_mask

    def score_mask(config: Any, context: Any, new: int, seen: int, device: Any) -> Any:
        mask, causal = plain(config, context, new, seen, device)
        if mask is None and not causal:
            return mask, causal
        if mask is None:
            mask = torch.zeros(new, seen, device=device)
        distance = torch.arange(new)[:, None] - torch.arange(seen)
        hidden = torch.zeros(new, seen, device=device).masked_fill(distance + by < 0, -torch.inf)
        hidden[0, 0] = 0  # the first position must see something
        return hidden, False

    return score_mask


def _heads(mixer: AttentionConfig) -> Iterator[Change]:
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
