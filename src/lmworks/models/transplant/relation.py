"""Which token of an old vocabulary is which of a new one, by the bytes they add to a text.

Special tokens are matched by their text, then by their role (the one that ends a text with the
one that ends a text); a special token never takes the row of a plain one that is spelt alike.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from lmworks.models.transplant.base import Relation

if TYPE_CHECKING:
    from lmworks.tokenizers.tokenizer import PipelineTokenizer

_ROLES = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


def relate(old: PipelineTokenizer, new: PipelineTokenizer) -> Relation:
    """Compare two vocabularies token by token."""
    old_bytes, plain = _bytes_of(old), _plain(old)
    by_bytes = _ids_by_bytes(old, old_bytes, plain)
    special = _special(old, new)
    shared = np.full(new.vocab_size, -1, dtype=np.int64)
    pieces = []
    for token, data in enumerate(_bytes_of(new)):
        if token in special:
            shared[token] = special[token]
        elif data in by_bytes:
            shared[token] = by_bytes[data]
        if shared[token] < 0:
            pieces.append(() if token in special or not data else tuple(_spell(old, data)))
    widths = np.array([len(data) for data in old_bytes], dtype=np.int64)
    return Relation(shared=shared, pieces=tuple(pieces), widths=widths, plain=plain)


def _bytes_of(tokenizer: PipelineTokenizer) -> list[bytes]:
    return [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]


def _plain(tokenizer: PipelineTokenizer) -> np.ndarray:
    plain = np.array([bool(token) for token in tokenizer.vocabulary.tokens])
    plain[list(tokenizer.special_tokens.values())] = False
    return plain


def _ids_by_bytes(
    tokenizer: PipelineTokenizer, tokens: list[bytes], plain: np.ndarray
) -> dict[bytes, int]:
    """The id of each token of text; of several alike, the one that encoding gives, or the first."""
    found: dict[bytes, list[int]] = defaultdict(list)
    for token in np.flatnonzero(plain).tolist():
        if tokens[token]:
            found[tokens[token]].append(token)
    for data, ids in found.items():
        if len(ids) > 1:
            used = _spell(tokenizer, data)
            ids.sort(key=lambda token: [token] != used)
    return {data: ids[0] for data, ids in found.items()}


def _special(old: PipelineTokenizer, new: PipelineTokenizer) -> dict[int, int]:
    """New special id -> old id, or -1."""
    roles = {
        getattr(new, role): getattr(old, role)
        for role in _ROLES
        if getattr(new, role) is not None and getattr(old, role) is not None
    }
    return {
        token: old.special_tokens.get(text, roles.get(token, -1))
        for text, token in new.special_tokens.items()
    }


def _spell(tokenizer: PipelineTokenizer, data: bytes) -> list[int]:
    """The ids of some bytes in the middle of a text."""
    if tokenizer.byte_level:
        return tokenizer.encode(data)
    # SentencePiece and WordPiece put a space before a text: taken from it, or from what comes out.
    text = data.decode("utf-8", "replace")
    ids = tokenizer.encode(text.removeprefix(" "))
    if not text.startswith(" ") and len(ids) > 1 and tokenizer.decode_bytes(ids[:1]) == b" ":
        return ids[1:]
    return ids
