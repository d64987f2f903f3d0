"""One text under one model: every head's small picture and figures, and some heads large.

What the command prints and writes, and what the Studio's page asks for piece by piece.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from lmworks.core.errors import UserError
from lmworks.models.attention_rollout import rollout
from lmworks.models.attention_summaries import HeadSummary, Overview, PooledImage
from lmworks.models.attention_trace import (
    MOST_BYTES,
    AttentionTrace,
    Heads,
    all_heads,
    check_heads,
    kept_bytes,
    trace_attention,
)
from lmworks.tokenizers.readable import readable, visible

if TYPE_CHECKING:
    from lmworks.models.config import ModelConfig
    from lmworks.models.model import Model
    from lmworks.tokenizers.tokenizer import PipelineTokenizer

SMALL, LARGE = 48, 512  # cells of a picture
MOST_ROLLOUT = 2048  # tokens
_MOST_CHOSEN, _MOST_NAMED = 6, 10
# The patterns that a reader wants to see first.
_TELLING = ("induction", "previous", "next", "first", "itself", "near", "mixed", "even")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadPicture:
    """One head, large.

    Attributes:
        image: (cells, cells), 0 to 1; `step` tokens to a cell, by the largest weight.
    """

    summary: HeadSummary
    image: np.ndarray
    step: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionReport:
    """What a page or picture of a text's attention is made of.

    Attributes:
        tokens: the text's tokens as they can be shown.
        images: (layer, head) -> (cells, cells) small picture.
        rollout: (cells, cells) of the last layer, or None where it was not asked for.
        rows: (layer, head) of the chosen -> what the query that was asked for looks at most, as
            (place, token, weight).
        every: every so many-th query was looked at for figures and small pictures.
    """

    model: str
    tokens: list[str]
    summaries: list[HeadSummary]
    images: dict[tuple[int, int], np.ndarray]
    chosen: list[HeadPicture]
    rollout: np.ndarray | None
    rows: dict[tuple[int, int], list[tuple[int, str, float]]]
    every: int


def text_tokens(tokenizer: PipelineTokenizer, text: str) -> tuple[torch.Tensor, list[str]]:
    """(T,) ids as the model is given them, special tokens included, and each token's text."""
    found = tokenizer.encoding(text)
    labels = [
        visible(token) if special else readable(tokenizer.token_bytes(i))
        for i, token, special in zip(found.ids, found.tokens, found.special_tokens_mask)
    ]
    return torch.tensor(found.ids, dtype=torch.int64), labels


def chosen_heads(
    config: ModelConfig, layers: Collection[int] | None, heads: Collection[int] | None
) -> Heads:
    """These heads of these layers; None: all. Raises: UserError for what the model has not."""
    known = all_heads(config)
    wanted = {
        layer: list(known.get(layer, [0]) if heads is None else heads)
        for layer in (known if layers is None else layers)
    }
    check_heads(config, wanted)
    return wanted


def explain_attention(
    model: Model,
    tokenizer: PipelineTokenizer,
    text: str,
    *,
    name: str = "model",
    layers: Collection[int] | None = None,
    heads: Collection[int] | None = None,
    query: int | None = None,
    with_rollout: bool = False,
) -> AttentionReport:
    """Look at a text's attention.

    Args:
        layers, heads: only these, of which nothing else is computed; None: all.
        query: the number of a token whose rows the report should have.
        with_rollout: needs all heads, and at most MOST_ROLLOUT tokens.
    Raises: UserError as `trace_attention`, and for rollout where it can't be had.
    """
    ids, tokens = text_tokens(tokenizer, text)
    config = (model.encoder or model).config
    wanted = chosen_heads(config, layers, heads)
    if with_rollout and (layers is not None or heads is not None or len(ids) > MOST_ROLLOUT):
        raise UserError(
            f"rollout needs all heads, and a text of at most {MOST_ROLLOUT} tokens; this has "
            f"{len(ids)}"
        )
    if query is not None and not 0 <= query < len(ids):
        raise UserError(f"query {query}: the text has tokens 0 to {len(ids) - 1}")
    overview = Overview(ids, SMALL, heads=wanted)
    fits = with_rollout or kept_bytes(config, wanted, len(ids)) <= MOST_BYTES
    keep = wanted if fits else {}
    trace = trace_attention(model, ids, keep=keep, visit=overview, layers=wanted)
    summaries = overview.summaries.all()
    telling = summaries if len(summaries) <= _MOST_CHOSEN else clearest(summaries)
    if not fits:  # what they look at is read again, now that it is known which ones
        again: dict[int, list[int]] = {}
        for summary in telling:
            again.setdefault(summary.layer, []).append(summary.head)
        trace = trace_attention(model, ids, keep=again)
    return AttentionReport(
        model=name,
        tokens=tokens,
        summaries=summaries,
        images={key: image.image() for key, image in overview.images.items()},
        chosen=[head_picture(trace, summary) for summary in telling],
        rollout=rollout_image(trace) if with_rollout else None,
        rows=_rows(trace, telling, tokens, query) if query is not None else {},
        every=overview.every,
    )


def _rows(
    trace: AttentionTrace, summaries: Sequence[HeadSummary], tokens: Sequence[str], query: int
) -> dict[tuple[int, int], list[tuple[int, str, float]]]:
    found = {}
    for summary in summaries:
        weights = trace.rows(summary.layer, summary.head, query, query + 1)[0]
        found[summary.layer, summary.head] = strongest(weights, tokens, _MOST_NAMED)
    return found


def clearest(summaries: Sequence[HeadSummary]) -> list[HeadSummary]:
    """The clearest head of each kind, the telling kinds first."""
    best: dict[str, HeadSummary] = {}
    for summary in summaries:
        held = best.get(summary.kind)
        if held is None or strength(summary) > strength(held):
            best[summary.kind] = summary
    return [best[kind] for kind in _TELLING if kind in best][:_MOST_CHOSEN]


def strength(summary: HeadSummary) -> float:
    """How clear a head's kind is, to compare heads of one kind."""
    if summary.kind == "near":
        return -summary.distance
    if summary.kind in ("even", "mixed"):
        return summary.evenness if summary.kind == "even" else -summary.evenness
    return float(getattr(summary, summary.kind))


def head_picture(trace: AttentionTrace, summary: HeadSummary, size: int = LARGE) -> HeadPicture:
    """One kept head, large."""
    image = PooledImage(len(trace), size)
    for start, weights in trace.tiles(summary.layer, summary.head):
        image.add(torch.arange(start, start + len(weights)), weights)
    return HeadPicture(summary=summary, image=image.image(), step=image.step)


def rollout_image(trace: AttentionTrace, size: int = LARGE) -> np.ndarray:
    """The rollout of the last layer as a picture."""
    image = PooledImage(len(trace), size)
    image.add(torch.arange(len(trace)), rollout(trace))
    return image.image()


def strongest(
    weights: torch.Tensor, tokens: Sequence[str], most: int
) -> list[tuple[int, str, float]]:
    """Of one query's weights (T,): (place, token, weight) of the largest, largest first."""
    values, places = weights.topk(min(most, len(weights)))
    return [(int(p), tokens[int(p)], float(v)) for v, p in zip(values, places)]
