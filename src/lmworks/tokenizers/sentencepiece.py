"""SentencePiece `.model` files: BPE and Unigram.

The file is a protocol buffer of a few fields, read here field by field: nothing of it is executed,
and what is not understood is refused by name.

Source: sentencepiece_model.proto, and the wire format of protocol buffers.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.tokenizers.bpe import BPE
from lmworks.tokenizers.unigram import Unigram
from lmworks.tokenizers.vocabulary import AddedToken, Step, Vocabulary

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_UNIGRAM, _BPE = 1, 2
_KINDS = {1: "Unigram", 2: "BPE", 3: "word", 4: "char"}

Fields = dict[int, list[Any]]


def load(path: Path) -> Vocabulary:
    """Read a `.model` file. Raises: UserError when it is damaged or of another kind."""
    try:
        return from_bytes(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (IndexError, ValueError, struct.error, UnicodeDecodeError, TypeError) as error:
        raise UserError(
            f"{path} is not a SentencePiece model ({type(error).__name__}: {error})"
        ) from error


def from_bytes(data: bytes) -> Vocabulary:
    """The vocabulary of a serialised model. Raises: UserError as `load`."""
    fields = _fields(data)
    pieces = [_piece(_fields(piece)) for piece in fields.get(1, [])]
    if not pieces or 2 not in fields:
        raise UserError("not a SentencePiece model: no pieces or no trainer settings in it")
    trainer = _fields(fields[2][0])
    kind = _one(trainer, 3, _UNIGRAM)
    if kind not in (_UNIGRAM, _BPE):
        raise UserError(f"SentencePiece models of kind {_KINDS.get(kind, kind)!r} can't be read")
    if any(kind == _UNUSED for _, _, kind in pieces):
        raise UserError("a SentencePiece model with unused pieces can't be read")
    normalizer = _fields(fields[3][0]) if 3 in fields else {}
    suffix = bool(_one(trainer, 24, 0))
    roles: Any = _roles(pieces)
    return Vocabulary(
        model=_bpe(pieces) if kind == _BPE else _unigram(pieces),
        added_tokens=tuple(
            AddedToken(id=i, text=text, special=kind != _USER_DEFINED, normalized=False)
            for i, (text, _, kind) in enumerate(pieces)
            if kind in (_CONTROL, _UNKNOWN)
        ),
        normalizer=_normalizer(normalizer, pieces, suffix),
        decoder=_decoder(roles["unk_token"], trainer, normalizer),
        **roles,
    )


def _normalizer(fields: Fields, pieces: list[tuple[str, float, int]], suffix: bool) -> Step:
    symbols = [text for text, _, kind in pieces if kind == _USER_DEFINED]
    return {
        "type": "SentencePiece",
        "precompiled_charsmap": base64.b64encode(_one(fields, 2, b"")).decode(),
        "add_dummy_prefix": bool(_one(fields, 3, 1)),
        "remove_extra_whitespaces": bool(_one(fields, 4, 1)),
        "escape_whitespaces": bool(_one(fields, 5, 1)),
        "treat_whitespace_as_suffix": suffix,
        "user_defined_symbols": symbols,
    }


def _decoder(unknown: str | None, trainer: Fields, normalizer: Fields) -> Step:
    squeezed, prefixed = (bool(_one(normalizer, number, 1)) for number in (4, 3))
    return {
        "type": "SentencePiece",
        "unk_piece": unknown or "<unk>",
        "unk_surface": _one(trainer, 44, " \u2047 ".encode()).decode(),
        "strip": squeezed or prefixed,
        "strip_all": squeezed,
        "treat_whitespace_as_suffix": bool(_one(trainer, 24, 0)),
    }


def _roles(pieces: list[tuple[str, float, int]]) -> dict[str, str | None]:
    controls = {text for text, _, kind in pieces if kind == _CONTROL}
    unknown = next((text for text, _, kind in pieces if kind == _UNKNOWN), None)
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    roles = {role: text if text in controls else None for role, text in named.items()}
    return roles | {"unk_token": unknown}


def _bpe(pieces: list[tuple[str, float, int]]) -> BPE:
    """Pairs of pieces that make a piece; the better its score, the earlier the merge."""
    by_text = {
        text: i for i, (text, _, kind) in enumerate(pieces) if kind in (_NORMAL, _USER_DEFINED)
    }
    merges, ranks = [], []
    scores = sorted({score for _, score, kind in pieces if kind == _NORMAL}, reverse=True)
    rank_of = {score: rank for rank, score in enumerate(scores)}
    for text, score, kind in pieces:
        if kind != _NORMAL:
            continue
        for at in range(1, len(text)):
            left, right = by_text.get(text[:at]), by_text.get(text[at:])
            if left is not None and right is not None:
                merges.append((left, right))
                ranks.append(rank_of[score])
    order = sorted(range(len(merges)), key=ranks.__getitem__)
    unknown = next((i for i, piece in enumerate(pieces) if piece[2] == _UNKNOWN), None)
    return BPE(
        tokens=tuple(text.encode() for text, _, _ in pieces),
        merges=tuple(merges[i] for i in order),
        ranks=tuple(ranks[i] for i in order),
        byte_level=False,
        byte_fallback=any(kind == _BYTE for _, _, kind in pieces),
        unk_id=unknown,
        fuse_unk=True,
    )


def _unigram(pieces: list[tuple[str, float, int]]) -> Unigram:
    best = max((score for _, score, kind in pieces if kind == _NORMAL), default=0.0)
    scores = [
        len(text.encode()) * best - 0.1 if kind == _USER_DEFINED else score
        for text, score, kind in pieces
    ]
    return Unigram(
        tokens=tuple(text.encode() for text, _, _ in pieces),
        scores=tuple(scores),
        unk_id=next((i for i, piece in enumerate(pieces) if piece[2] == _UNKNOWN), None),
        byte_fallback=any(kind == _BYTE for _, _, kind in pieces),
        float32=True,
        unmatched=frozenset(
            i for i, (_, _, kind) in enumerate(pieces) if kind not in (_NORMAL, _USER_DEFINED)
        ),
    )


def _piece(fields: Fields) -> tuple[str, float, int]:
    """(text, score, kind)"""
    score = struct.unpack("<f", _one(fields, 2, b"\0\0\0\0"))[0]
    return _one(fields, 1, b"").decode(), score, _one(fields, 3, _NORMAL)


def _one(fields: Fields, number: int, default: Any) -> Any:
    value = fields.get(number, [default])[-1]
    if type(value) is not type(default):
        raise ValueError(f"field {number} is of another type")
    return value


def _fields(data: bytes) -> Fields:
    fields: Fields = {}
    for number, value in _walk(data):
        fields.setdefault(number, []).append(value)
    return fields


def _walk(data: bytes) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(wire, -1)
        if size < 0 or at + size > len(data):
            raise ValueError(f"byte {at}: a field that does not end")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError(f"byte {at}: a number that does not end")
