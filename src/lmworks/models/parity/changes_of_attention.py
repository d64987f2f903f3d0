"""What ports get wrong about attention: positions, mask, scale, weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from lmworks.models import attention
from lmworks.models.config import AttentionConfig, SlidingWindow
from lmworks.models.model import Model
from lmworks.models.parity.changes import in_part, told
from lmworks.models.parity.changes_of_heads import head_changes
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
    yield from _weights(stage)
    yield from head_changes(mixer)
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


# (scores, which keys each query sees) -> weights
_Weigh = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_WEIGHTS: dict[str, tuple[str, str, _Weigh]] = {
    "softmax axis": (
        "takes the softmax over the queries instead of the keys",
        "take it over the last axis of (queries, keys)",
        lambda scores, seen: scores.masked_fill(~seen, -1e9).softmax(dim=-2),
    ),
    "mask added as numbers": (
        "adds a mask of ones and zeros to the scores",
        "add 0 where a position is seen and -infinity elsewhere, or give a mask of booleans",
        lambda scores, seen: (scores + seen).softmax(dim=-1),
    ),
    "mask inverted": (
        "shows what should be hidden and hides the rest",
        "invert the mask (True means seen)",
        lambda scores, seen: scores.masked_fill(seen, -1e9).softmax(dim=-1),
    ),
    "mask after the softmax": (
        "hides positions after the softmax, so that weights do not sum to 1",
        "mask the scores before the softmax",
        lambda scores, seen: scores.softmax(dim=-1) * seen,
    ),
    "softmax missing": (
        "multiplies by the scores without a softmax",
        "take the softmax of the scores",
        lambda scores, seen: scores * seen,
    ),
}


def _weights(stage: Stage) -> Iterator[Change]:
    for cause, (says, fix, weigh) in _WEIGHTS.items():
        yield Change(
            cause=cause,
            says=says,
            fix=fix,
            patch=lambda model, weigh=weigh: replaced(attention, "attend", _weighing(weigh)),  # type: ignore[misc]
        )


def _weighing(weigh: _Weigh) -> Any:
    def attend(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        config: AttentionConfig,
        *,
        mask: torch.Tensor | None,
        is_causal: bool,
    ) -> torch.Tensor:
        times = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(times, dim=1), v.repeat_interleave(times, dim=1)
        scores = q @ k.mT * (config.scale or q.shape[-1] ** -0.5)
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool)
        seen = seen.tril() if is_causal else seen if mask is None else mask > -1e30
        return weigh(scores, seen) @ v

    return attend
