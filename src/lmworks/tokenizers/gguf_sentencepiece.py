"""SentencePiece vocabularies in a GGUF file: `tokenizer.ggml.model` llama, t5 and gemma4.

`llama` is BPE by scores, `t5` a Unigram model with its map of characters, `gemma4` BPE by a list
of merges over plain characters. Ids are SentencePiece's: llama.cpp lets control tokens be merged
out of ordinary text and puts a space after every user-defined token, and the models' own
tokenizers don't.

Source: llama.cpp's conversion and loader.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lmworks.core.errors import UserError
from lmworks.tokenizers import gguf_metadata as keys
from lmworks.tokenizers.bpe import BPE
from lmworks.tokenizers.gguf_byte_level import merges, written_merges
from lmworks.tokenizers.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNKNOWN_SURFACE,
    UNUSED,
    USER_DEFINED,
    Piece,
    Settings,
    assembled,
    bpe,
    unigram,
)
from lmworks.tokenizers.sentencepiece_writer import kinds_of, pieces_of, settings_of
from lmworks.tokenizers.unigram import Unigram
from lmworks.tokenizers.vocabulary import Vocabulary

_ENDS = {"llama": (True, False), "t5": (False, True), "gemma4": (True, False)}  # bos, eos
_LINES: dict[str, Any] = {
    "type": "Split",
    "pattern": {"Regex": r"[^\n]+|\n+"},
    "behavior": "Isolated",
    "invert": False,
}


def read(metadata: keys.Metadata) -> Vocabulary:
    """The vocabulary. Raises: UserError for a damaged one."""
    kind = metadata["tokenizer.ggml.model"]
    texts = keys.tokens(metadata)
    kinds = _kinds(metadata, texts)
    scores = [0.0] * len(texts) if kind == "gemma4" else keys.scores(metadata, len(texts))
    pieces = [
        Piece(text.replace(" ", "▁") if k == USER_DEFINED else text, score, k)
        for text, score, k in zip(texts, scores, kinds)
    ]
    model: BPE | Unigram
    if kind == "t5":
        model = unigram(pieces, float32=False)
    else:
        model = bpe(pieces) if kind == "llama" else _merging(metadata, pieces)
    named = keys.roles(metadata, texts)
    bos, eos = _ENDS[kind]
    return assembled(
        pieces,
        model,
        _settings(metadata, kind),
        pre_tokenizer=_LINES if kind == "gemma4" else None,
        post_processor=keys.around(metadata, named, texts, bos=bos, eos=eos),
        chat_template=keys.template(metadata),
        **named,
    )


def _kinds(metadata: keys.Metadata, texts: list[str]) -> list[int]:
    """Types of the tokens; those with a role are control or unknown, whatever the file says."""
    kinds = list(keys.token_types(metadata, len(texts)))
    if not set(kinds) <= {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE}:
        raise UserError("the vocabulary is damaged: a token is of an unknown type")
    for role, key in keys.ROLES.items():
        found = keys.token_id(metadata, key, len(texts))
        if found is not None and (role == "unk_token" or kinds[found] == NORMAL):
            kinds[found] = UNKNOWN if role == "unk_token" else CONTROL
    return kinds


def _settings(metadata: keys.Metadata, kind: str) -> Settings:
    return Settings(
        precompiled_charsmap=_charsmap(metadata) if kind == "t5" else b"",
        add_dummy_prefix=keys.flag(metadata, "add_space_prefix", kind == "llama"),
        remove_extra_whitespaces=kind == "t5"
        and keys.flag(metadata, "remove_extra_whitespaces", False),
    )


def _charsmap(metadata: keys.Metadata) -> bytes:
    values = metadata.get("tokenizer.ggml.precompiled_charsmap", [])
    try:
        return bytes(value & 255 for value in values)
    except TypeError as error:
        raise UserError(
            "the vocabulary is damaged: tokenizer.ggml.precompiled_charsmap is no list of bytes"
        ) from error


def _merging(metadata: keys.Metadata, pieces: list[Piece]) -> BPE:
    texts = [piece.text for piece in pieces]
    return BPE(
        tokens=tuple(b"" if k == UNUSED else text.encode() for text, _, k in pieces),
        merges=tuple(merges(keys.strings(metadata, "merges"), texts)),
        byte_level=False,
        byte_fallback=any(piece.kind == BYTE for piece in pieces),
        unk_id=next((i for i, piece in enumerate(pieces) if piece.kind == UNKNOWN), None),
        fuse_unk=True,
    )


def write(vocabulary: Vocabulary) -> keys.Metadata:
    """The `tokenizer.*` keys. Raises: UserError for what the kind has no place for."""
    keys.check_added(vocabulary)
    lines = dataclasses.replace(vocabulary, pre_tokenizer=None)
    settings = settings_of(lines if vocabulary.pre_tokenizer == _LINES else vocabulary)
    if settings.treat_whitespace_as_suffix or settings.unk_surface != UNKNOWN_SURFACE:
        raise UserError(
            "GGUF files can't hold this tokenizer: white space as a suffix, or an unknown token "
            "with a surface of its own, has no place there"
        )
    by_merges = vocabulary.pre_tokenizer == _LINES
    pieces = _write_merges(vocabulary) if by_merges else _pieces(vocabulary, settings)
    return pieces | keys.written_roles(vocabulary)


def _pieces(vocabulary: Vocabulary, settings: Settings) -> keys.Metadata:
    pieces = pieces_of(vocabulary)
    metadata: keys.Metadata = {
        "tokenizer.ggml.model": "t5" if isinstance(vocabulary.model, Unigram) else "llama",
        "tokenizer.ggml.tokens": [
            text.replace("▁", " ") if kind == USER_DEFINED else text for text, _, kind in pieces
        ],
        "tokenizer.ggml.scores": [float(piece.score) for piece in pieces],
        "tokenizer.ggml.token_type": [piece.kind for piece in pieces],
        "tokenizer.ggml.add_space_prefix": settings.add_dummy_prefix,
    }
    changes = settings.remove_extra_whitespaces or settings.precompiled_charsmap
    if not isinstance(vocabulary.model, Unigram):
        if changes:
            raise UserError(
                "GGUF files can't hold this tokenizer: BPE by scores changes no text there"
            )
        return metadata
    metadata["tokenizer.ggml.remove_extra_whitespaces"] = settings.remove_extra_whitespaces
    if settings.precompiled_charsmap:
        metadata["tokenizer.ggml.precompiled_charsmap"] = settings.precompiled_charsmap
    return metadata


def _write_merges(vocabulary: Vocabulary) -> keys.Metadata:
    model = vocabulary.model
    assert isinstance(model, BPE)
    texts, kinds = keys.written_types(vocabulary)
    return {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": [
            text.replace("▁", " ") if kind == USER_DEFINED else text
            for text, kind in zip(texts, kinds)
        ],
        "tokenizer.ggml.token_type": kinds_of(vocabulary),
        "tokenizer.ggml.merges": written_merges(model, vocabulary.texts),
    }
