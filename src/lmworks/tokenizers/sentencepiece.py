"""SentencePiece models: pieces with scores, and what is done to text; `.model` files read.

The file is a protocol buffer of a few fields, read here field by field: nothing of it is executed,
and what is not understood is refused by name. GGUF files hold the same pieces in other words
(gguf_sentencepiece.py).

User-defined pieces are taken out of the text before anything is merged; in a Unigram model a bonus
does the same.

Source: sentencepiece_model.proto, the wire format of protocol buffers, and sentencepiece 0.2.3.
"""

from __future__ import annotations

import base64
import dataclasses
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lmworks.core.errors import UserError
from lmworks.tokenizers.bpe import BPE
from lmworks.tokenizers.unigram import Unigram
from lmworks.tokenizers.vocabulary import AddedToken, Step, Vocabulary

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE_MODEL = 1, 2
_KINDS = {1: "Unigram", 2: "BPE", 3: "word", 4: "char"}
UNKNOWN_SURFACE = " \u2047 "

Fields = dict[int, list[Any]]


class Piece(NamedTuple):
    """An entry of the vocabulary; `kind` is one of the constants above."""

    text: str
    score: float
    kind: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is done to text, beside the pieces. Names as in sentencepiece_model.proto."""

    precompiled_charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    treat_whitespace_as_suffix: bool = False
    unk_surface: str = UNKNOWN_SURFACE


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
    kind = _one(trainer, 3, UNIGRAM)
    if kind not in (UNIGRAM, BPE_MODEL):
        raise UserError(f"SentencePiece models of kind {_KINDS.get(kind, kind)!r} can't be read")
    normalizer = _fields(fields[3][0]) if 3 in fields else {}
    settings = Settings(
        precompiled_charsmap=_one(normalizer, 2, b""),
        add_dummy_prefix=bool(_one(normalizer, 3, 1)),
        remove_extra_whitespaces=bool(_one(normalizer, 4, 1)),
        escape_whitespaces=bool(_one(normalizer, 5, 1)),
        treat_whitespace_as_suffix=bool(_one(trainer, 24, 0)),
        unk_surface=_one(trainer, 44, UNKNOWN_SURFACE.encode()).decode(),
    )
    model = bpe(pieces) if kind == BPE_MODEL else unigram(pieces)
    return assembled(pieces, model, settings, **_roles(pieces))


def assembled(
    pieces: Sequence[Piece], model: BPE | Unigram, settings: Settings, **parts: Any
) -> Vocabulary:
    """The vocabulary of these pieces.

    Args:
        parts: roles and whatever else the file says (`bos_token`, `post_processor`).
    """
    plain = all(piece.kind != USER_DEFINED for piece in pieces)
    added = {CONTROL, UNKNOWN} | ({USER_DEFINED} if isinstance(model, BPE) else set())
    return Vocabulary(
        model=model,
        added_tokens=tuple(
            AddedToken(id=i, text=text, special=kind != USER_DEFINED, normalized=kind not in _RAW)
            for i, (text, _, kind) in enumerate(pieces)
            if kind in added
        ),
        normalizer=_normalizer(settings, _symbols(pieces, model, settings), plain),
        decoder=_decoder(settings, next((p.text for p in pieces if p.kind == UNKNOWN), "<unk>")),
        **parts,
    )


_RAW = (CONTROL, UNKNOWN)  # looked for in the text as it was given


def _symbols(pieces: Sequence[Piece], model: BPE | Unigram, settings: Settings) -> list[str]:
    """What the normalizer has to leave alone; added tokens need that only beside a map."""
    symbols = [piece.text for piece in pieces if piece.kind == USER_DEFINED]
    needed = isinstance(model, Unigram) or settings.precompiled_charsmap or " " in "".join(symbols)
    return symbols if needed else []


def _normalizer(settings: Settings, symbols: list[str], plain: bool) -> Step:
    charsmap = settings.precompiled_charsmap
    busy = charsmap or settings.add_dummy_prefix or settings.remove_extra_whitespaces
    if plain and not busy and settings.escape_whitespaces:
        return {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    return {
        "type": "SentencePiece",
        "precompiled_charsmap": base64.b64encode(charsmap).decode(),
        "add_dummy_prefix": settings.add_dummy_prefix,
        "remove_extra_whitespaces": settings.remove_extra_whitespaces,
        "escape_whitespaces": settings.escape_whitespaces,
        "treat_whitespace_as_suffix": settings.treat_whitespace_as_suffix,
        "user_defined_symbols": symbols,
    }


def _decoder(settings: Settings, unknown: str) -> Step:
    squeezed = settings.remove_extra_whitespaces
    return {
        "type": "SentencePiece",
        "unk_piece": unknown,
        "unk_surface": settings.unk_surface,
        "strip": squeezed or settings.add_dummy_prefix,
        "strip_all": squeezed,
        "treat_whitespace_as_suffix": settings.treat_whitespace_as_suffix,
    }


def _roles(pieces: Sequence[Piece]) -> dict[str, Any]:
    controls = {text for text, _, kind in pieces if kind == CONTROL}
    unknown = next((text for text, _, kind in pieces if kind == UNKNOWN), None)
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    roles = {role: text if text in controls else None for role, text in named.items()}
    return roles | {"unk_token": unknown}


def pairs_by_score(pieces: Sequence[Piece]) -> Iterator[tuple[int, int, int]]:
    """Every pair of pieces that makes a piece: (left, right, what it makes).

    Raises: UserError for an unused piece that a pair makes: it would have to be taken apart again.
    """
    by_text = {text: i for i, (text, _, kind) in enumerate(pieces) if kind == NORMAL}
    for made, (text, _, kind) in enumerate(pieces):
        if kind not in (NORMAL, UNUSED):
            continue
        for at in range(1, len(text)):
            left, right = by_text.get(text[:at]), by_text.get(text[at:])
            if left is None or right is None:
                continue
            if kind == UNUSED:
                raise UserError(f"the unused piece {text!r} is made by others: it can't be read")
            yield left, right, made


def bpe(pieces: Sequence[Piece]) -> BPE:
    """Pairs of pieces that make a piece; the better its score, the earlier the merge."""
    made = list(pairs_by_score(pieces))
    scores = sorted({pieces[token].score for _, _, token in made}, reverse=True)
    rank_of = {score: rank for rank, score in enumerate(scores)}
    ranks = [rank_of[pieces[token].score] for _, _, token in made]
    order = sorted(range(len(made)), key=ranks.__getitem__)
    return BPE(
        tokens=tuple(b"" if kind == UNUSED else text.encode() for text, _, kind in pieces),
        merges=tuple(made[i][:2] for i in order),
        ranks=tuple(ranks[i] for i in order),
        byte_level=False,
        byte_fallback=any(kind == BYTE for _, _, kind in pieces),
        unk_id=_unknown(pieces),
        fuse_unk=True,
    )


def unigram(pieces: Sequence[Piece], *, float32: bool = True) -> Unigram:
    """The pieces as a Unigram model."""
    return Unigram(
        tokens=tuple(text.encode() for text, _, _ in pieces),
        scores=tuple(
            _to_float32(0.1 * (len(text.encode()) - 1)) if kind == USER_DEFINED else score
            for text, score, kind in pieces
        ),
        unk_id=_unknown(pieces),
        byte_fallback=any(kind == BYTE for _, _, kind in pieces),
        float32=float32,
        unmatched=frozenset(
            i for i, (_, _, kind) in enumerate(pieces) if kind not in (NORMAL, USER_DEFINED)
        ),
    )


def _to_float32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def _unknown(pieces: Sequence[Piece]) -> int | None:
    return next((i for i, piece in enumerate(pieces) if piece.kind == UNKNOWN), None)


def _piece(fields: Fields) -> Piece:
    score = struct.unpack("<f", _one(fields, 2, b"\0\0\0\0"))[0]
    return Piece(_one(fields, 1, b"").decode(), score, _one(fields, 3, NORMAL))


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
