"""What ports get wrong before the first layer and after the last."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from torch import nn

from lmworks.models.config import (
    LearnedPositions,
    LMHeadConfig,
    ModelConfig,
    SinusoidalPositions,
)
from lmworks.models.model import Model
from lmworks.models.parity.changes import told
from lmworks.models.parity.trial import Change, Stage, replaced


def _embedding(**fields: Any) -> Any:
    return lambda config: dataclasses.replace(
        config, embedding=dataclasses.replace(config.embedding, **fields)
    )


def _head(**fields: Any) -> Any:
    return lambda config: dataclasses.replace(
        config, head=dataclasses.replace(config.head, **fields)
    )


def embedding_changes(stage: Stage) -> Iterator[Change]:
    """Scale, segments, norm, positions and the rows themselves."""
    config = stage.config.embedding
    root = math.sqrt(stage.config.hidden_size)
    for scale, word in ((1.0, "1"), (root, "sqrt(hidden_size)"), (1 / root, "1/sqrt(hidden_size)")):
        if scale != config.scale:
            yield Change(
                cause="embedding scale",
                says=f"multiplies the embedding by {word} instead of {told(config.scale)}",
                fix=f"multiply by {told(config.scale)}",
                config=_embedding(scale=scale),
            )
    if config.norm is not None:
        yield Change(
            cause="embedding norm missing",
            says="does not norm the embedding",
            fix="apply the embedding's norm",
            config=_embedding(norm=None),
        )
    if config.type_vocab_size:
        yield Change(
            cause="token types missing",
            says="does not add the row of segment 0",
            fix="add token_type_embeddings of segment 0",
            config=_embedding(type_vocab_size=0),
        )
        for row in range(1, config.type_vocab_size):
            yield Change(
                cause="token types",
                says=f"adds the row of segment {row} instead of 0",
                fix="give zeros as token_type_ids",
                state=lambda state, row=row: (  # type: ignore[misc]
                    state | {"embed_types.weight": state["embed_types.weight"].roll(-row, 0)}
                ),
            )
    for by in (-1, 1):
        yield Change(
            cause="token ids shifted",
            says=f"looks up the row of id {by:+d}",
            fix="use the ids as they are",
            state=lambda state, by=by: (  # type: ignore[misc]
                state | {"embed_tokens.weight": state["embed_tokens.weight"].roll(-by, 0)}
            ),
        )
    yield from _position_changes(stage)


def _position_changes(stage: Stage) -> Iterator[Change]:
    positions = stage.config.positions
    if positions is None:
        return
    yield Change(
        cause="positions missing",
        says="adds no positions to the embedding",
        fix="add the vector of each position",
        config=lambda config: dataclasses.replace(config, positions=None),
    )
    if isinstance(positions, LearnedPositions):
        for by in (-2, -1, 1, 2):
            yield Change(
                cause="position offset",
                says=f"takes the position's row {by:+d} ({positions.offset + by} instead of "
                f"{positions.offset} for the first)",
                fix=f"begin with row {positions.offset}",
                state=lambda state, by=by: (  # type: ignore[misc]
                    state | {"embed_positions.weight": state["embed_positions.weight"].roll(-by, 0)}
                ),
            )
    if isinstance(positions, SinusoidalPositions):
        flipped = dataclasses.replace(positions, interleaved=not positions.interleaved)
        yield Change(
            cause="sinusoids order",
            says=f"has sines and cosines {'in turns' if flipped.interleaved else 'in halves'}",
            fix="lay them out the other way",
            config=lambda config: dataclasses.replace(config, positions=flipped),
        )


def end_changes(stage: Stage) -> Iterator[Change]:
    """The head: which matrix, bias, scale, softcap, transform."""
    config, head = stage.config, stage.config.head
    if not isinstance(head, LMHeadConfig):
        return
    if not config.tie_word_embeddings:
        yield Change(
            cause="tied head",
            says="uses the embedding as its head, where the head has weights of its own",
            fix="load lm_head.weight, and set tie_word_embeddings to false",
            config=_tied,
        )
    for scale in _scales(head.scale, config.hidden_size):
        yield Change(
            cause="logit scale",
            says=f"scales the logits by {told(scale)} instead of {told(head.scale)}",
            fix=f"scale by {told(head.scale)}",
            config=_head(scale=scale),
        )
    for softcap in (None, 10.0, 15.0, 20.0, 30.0, 50.0):
        if softcap != head.softcap:
            yield Change(
                cause="logit softcap",
                says=f"caps the logits softly at {told(softcap)} instead of {told(head.softcap)}",
                fix=f"set final_logit_softcapping to {told(head.softcap)}",
                config=_head(softcap=softcap),
            )
    if config.norm is not None:
        yield Change(
            cause="norm twice",
            says="applies the last norm twice",
            fix="apply it once",
            patch=_norming_twice,
        )
    if head.transform:
        yield Change(
            cause="head transform missing",
            says="has no square layer before the head",
            fix="apply the head's dense layer, its activation and its norm",
            config=_head(transform=None, transform_norm=None),
        )


def _norming_twice(model: Model) -> Any:
    norm: Any = model.norm
    return replaced(model, "norm", nn.Sequential(norm, norm))


def _scales(scale: float, hidden_size: int) -> list[float]:
    root = math.sqrt(hidden_size)
    return [value for value in (1.0, 1 / root, root) if not math.isclose(value, scale)]


def _tied(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, tie_word_embeddings=True)
