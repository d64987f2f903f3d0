"""Pieces, scores and settings of a vocabulary, and SentencePiece `.model` files written.

A merge list says which pair merges first; a SentencePiece model says it of what is made. The two
are the same where all pairs that make a token stand together in the list; any other list is
refused, and so is a step that has no place in such a model.

Source: sentencepiece_model.proto and the wire format of protocol buffers.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.files import atomic_open
from lmworks.tokenizers.bpe import BPE, Pair
from lmworks.tokenizers.decoders import byte_of
from lmworks.tokenizers.sentencepiece import (
    BPE_MODEL,
    BYTE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    UNKNOWN_SURFACE,
    UNUSED,
    USER_DEFINED,
    Piece,
    Settings,
    pairs_by_score,
)
from lmworks.tokenizers.unigram import Unigram
from lmworks.tokenizers.vocabulary import Step, Vocabulary

_MARK = "▁"

Merged = dict[Pair, tuple[int, int]]  # pair -> (rank, what it makes)


def save(vocabulary: Vocabulary, path: Path) -> None:
    """Write a `.model` file, whole or not at all. Raises: UserError for what it can't hold."""
    data = to_bytes(vocabulary)
    with atomic_open(path) as file:
        file.write(data)


def to_bytes(vocabulary: Vocabulary) -> bytes:
    """A serialised SentencePiece model. Raises: UserError for what it can't hold."""
    pieces, settings = pieces_of(vocabulary), settings_of(vocabulary)
    roles = vocabulary.roles()
    for role, usual in {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}.items():
        if roles.get(role, usual) != usual:
            raise UserError(f"SentencePiece models name the {role} {usual!r}, not {roles[role]!r}")
    if vocabulary.unk_token is None or all(piece.kind != UNKNOWN for piece in pieces):
        raise UserError("SentencePiece models need an unknown token, and this one has none")
    kind = UNIGRAM if isinstance(vocabulary.model, Unigram) else BPE_MODEL
    trainer = [
        _number(3, kind),
        _number(4, len(pieces)),
        _number(24, settings.treat_whitespace_as_suffix),
        _number(35, any(piece.kind == BYTE for piece in pieces)),
        *(_number(40 + at, _id_of(pieces, text)) for at, text in enumerate(_role_texts(roles))),
        _data(44, settings.unk_surface.encode()),
    ]
    normalizer = [
        _data(1, b"identity" if not settings.precompiled_charsmap else b"user_defined"),
        _data(2, settings.precompiled_charsmap),
        _number(3, settings.add_dummy_prefix),
        _number(4, settings.remove_extra_whitespaces),
        _number(5, settings.escape_whitespaces),
    ]
    parts = [_data(1, _packed(piece)) for piece in pieces]
    return b"".join([*parts, _data(2, b"".join(trainer)), _data(3, b"".join(normalizer))])


def _role_texts(roles: dict[str, str]) -> list[str | None]:
    return [roles.get(role) for role in ("unk_token", "bos_token", "eos_token", "pad_token")]


def _id_of(pieces: list[Piece], text: str | None) -> int:
    return next((i for i, piece in enumerate(pieces) if piece.text == text), -1)


def _packed(piece: Piece) -> bytes:
    kind = b"" if piece.kind == NORMAL else _number(3, piece.kind)
    return _data(1, piece.text.encode()) + b"\x15" + struct.pack("<f", piece.score) + kind


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(int(value) & ((1 << 64) - 1))


def _data(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def pieces_of(vocabulary: Vocabulary) -> list[Piece]:
    """Pieces of a Unigram model, or of a BPE over characters.

    Raises: UserError for a model of another kind, or merges that scores can't tell.
    """
    model = vocabulary.model
    if isinstance(model, BPE):
        _check(model)
    elif not isinstance(model, Unigram):
        raise UserError(f"SentencePiece models hold BPE and Unigram, not {type(model).__name__}")
    kinds = kinds_of(vocabulary)
    texts = [text or f"[PAD{i}]" for i, text in enumerate(vocabulary.texts)]
    if len(set(texts)) < len(texts):
        raise UserError("two tokens have the same text: SentencePiece pieces differ in theirs")
    if isinstance(model, Unigram):
        scores = [*model.scores, *[0.0] * (len(texts) - len(model.scores))]
        return [Piece(*each) for each in zip(texts, scores, kinds)]
    cut = {i for i, kind in enumerate(kinds) if kind == USER_DEFINED}
    merged = {
        pair: found
        for pair, found in model.ranked.items()
        if cut.isdisjoint((*pair, found[1]))  # the text is cut at these before it is merged
    }
    made = _scores(model, merged)
    worst = -float(len(model.tokens) + len(model.merges))
    pieces = [
        Piece(text, made.get(i, worst - i if kind == NORMAL else 0.0), kind)
        for i, (text, kind) in enumerate(zip(texts, kinds))
    ]
    _check_pairs(set(merged), pieces)
    return pieces


def _check(model: BPE) -> None:
    if model.byte_level or model.end_of_word_suffix or model.continuing_subword_prefix:
        raise UserError("SentencePiece models hold BPE over plain characters only")
    if model.ignore_merges:
        raise UserError("SentencePiece models have no place for 'ignore_merges'")


def kinds_of(vocabulary: Vocabulary) -> list[int]:
    """The kind of each token."""
    added = {token.id: token for token in vocabulary.added_tokens}
    model = vocabulary.model
    fallback = getattr(model, "byte_fallback", False)
    kinds = []
    for i, text in enumerate(vocabulary.texts):
        if i in added:
            kinds.append(CONTROL if added[i].special else USER_DEFINED)
        elif not text:
            kinds.append(UNUSED)
        else:
            kinds.append(BYTE if fallback and byte_of(text) is not None else NORMAL)
    unknown = getattr(model, "unk_id", None)
    if unknown is not None:
        kinds[unknown] = UNKNOWN
    if isinstance(model, Unigram):
        for symbol in (vocabulary.normalizer or {}).get("user_defined_symbols", ()):
            kinds[vocabulary.texts.index(symbol)] = USER_DEFINED
    return kinds


def _scores(model: BPE, merged: Merged) -> dict[int, float]:
    """The score of each token that a merge makes."""
    made: dict[int, float] = {}
    before = None
    for rank, token in sorted(merged.values()):
        if token != before and token in made:
            text = model.tokens[token].decode("utf-8", "replace")
            raise UserError(f"the merges that make {text!r} stand apart: scores can't say that")
        made.setdefault(token, -float(rank))
        before = token
    return made


def _check_pairs(told: set[Pair], pieces: list[Piece]) -> None:
    """Scores bring all pairs that make a token, so the list must hold them all."""
    for left, right, _ in pairs_by_score(pieces):
        if (left, right) not in told:
            a, b = pieces[left].text, pieces[right].text
            raise UserError(f"no merge joins {a!r} and {b!r}, and a SentencePiece model would")
        told.discard((left, right))
    if told:
        a, b = (pieces[i].text for i in min(told))
        raise UserError(f"a SentencePiece model wouldn't join {a!r} and {b!r}, and a merge does")


def settings_of(vocabulary: Vocabulary) -> Settings:
    """What the steps do to text, in SentencePiece's words. Raises: UserError for others."""
    own = vocabulary.normalizer
    if own is not None and own["type"] == "SentencePiece":
        decoder = vocabulary.decoder or {}
        return Settings(
            precompiled_charsmap=base64.b64decode(own["precompiled_charsmap"]),
            add_dummy_prefix=bool(own["add_dummy_prefix"]),
            remove_extra_whitespaces=bool(own["remove_extra_whitespaces"]),
            escape_whitespaces=bool(own["escape_whitespaces"]),
            treat_whitespace_as_suffix=bool(own["treat_whitespace_as_suffix"]),
            unk_surface=str(decoder.get("unk_surface", UNKNOWN_SURFACE)),
        )
    given: dict[str, Any] = {}
    for step in [*_flat(own, "normalizers"), *_flat(vocabulary.pre_tokenizer, "pretokenizers")]:
        given |= _setting(step)
    if not given.pop("escape_whitespaces", False):
        raise UserError("no step writes spaces as ▁: SentencePiece models can't hold that")
    return Settings(
        **{"add_dummy_prefix": False, "remove_extra_whitespaces": False} | given,
    )


def _flat(step: Step | None, inner: str) -> Iterable[Step]:
    if step is None:
        return []
    return step[inner] if step["type"] == "Sequence" else [step]


def _setting(step: Step) -> dict[str, Any]:
    """What a step of tokenizer.json is in SentencePiece's words."""
    kind, pattern = step["type"], step.get("pattern") or {}
    if kind == "Prepend" and step["prepend"] == _MARK:
        return {"add_dummy_prefix": True}
    if kind == "Replace" and pattern.get("String") == " " and step["content"] == _MARK:
        return {"escape_whitespaces": True}
    if kind == "Precompiled":
        return {"precompiled_charsmap": base64.b64decode(step["precompiled_charsmap"] or "")}
    if kind == "Split" and pattern.get("String") == " ":
        return {}  # there is no space left to split at
    if kind == "Metaspace" and step.get("replacement", _MARK) == _MARK:
        scheme = step.get("prepend_scheme")
        prefix = scheme != "never" if scheme else bool(step.get("add_prefix_space", True))
        return {"escape_whitespaces": True, "add_dummy_prefix": prefix}
    raise UserError(f"SentencePiece models have no place for the step {kind!r} as it is here")
