"""Byte-level byte-pair encoding: any bytes in, ids out, and the same bytes back.

Text is cut into words (patterns.py), a word's bytes are the first symbols, and neighbouring
symbols are merged, lowest rank first, until no merge applies (merging.py). Words repeat, so their
ids are remembered. Special tokens are looked for only when the caller allows it: by default the
text of one stays text, so that nobody can write a turn marker into a message. Added tokens that
are not special (runs of spaces, `<think>`) are vocabulary like any other and are always found.

Left out: `encode` adds no beginning or end token; offsets of tokens in the text.

Source: Sennrich et al. 2016, arXiv 1508.07909; on bytes: Radford et al. 2019, section 2.2.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.tokenizers.added_tokens import AddedTokenFinder
from lmworks.tokenizers.base import Message, StreamDecoder, check_id
from lmworks.tokenizers.merging import merge
from lmworks.tokenizers.patterns import words_of
from lmworks.tokenizers.vocabulary import Vocabulary

_CACHED_WORDS = 1 << 18
_CACHED_WORD_BYTES = 64  # longer words rarely come again


class BPETokenizer:
    """Byte-level BPE over a Vocabulary.

    Raises: UserError for merges that make tokens which the vocabulary does not hold.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.vocab_size = len(vocabulary.tokens)
        self.special_tokens = {t.text: t.id for t in vocabulary.added_tokens if t.special}
        self.chat_template = vocabulary.chat_template
        ids = vocabulary.added_ids
        self.bos_token_id = ids.get(vocabulary.bos_token or "")
        self.eos_token_id = ids.get(vocabulary.eos_token or "")
        self.pad_token_id = ids.get(vocabulary.pad_token or "")
        form = vocabulary.normalization
        self._normalize = functools.partial(unicodedata.normalize, form) if form else None
        self.added_tokens = AddedTokenFinder(vocabulary.added_tokens, self._normalize)
        self._ids = _model_ids(vocabulary)
        self._byte_ids = [self._ids.get(bytes([byte])) for byte in range(256)]
        self._ranks = _ranked_merges(vocabulary, self._ids)
        self._words: dict[str, tuple[int, ...]] = {}

    def encode(self, text: str | bytes, *, allow_special: bool = False) -> list[int]:
        """Ids of `text`; bytes that are no UTF-8 are kept as they are.

        Args:
            allow_special: read the text of special tokens as those tokens. For templates and
                files, not for what a user typed.
        A byte that the vocabulary has no token for is dropped; ours have all 256.
        """
        if isinstance(text, bytes):
            # Invalid bytes become lone surrogates, which `_utf8` turns back into the bytes.
            text = text.decode("utf-8", "surrogateescape")
        ids: list[int] = []
        for piece, token_id in self.added_tokens.split(text, allow_special=allow_special):
            if token_id is None:
                self._extend(ids, piece)
            else:
                ids.append(token_id)
        return ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode` of each text."""
        return [self.encode(text) for text in texts]

    def _extend(self, ids: list[int], text: str) -> None:
        known = self._words
        for word in words_of(text, self.vocabulary.expressions):
            found = known.get(word)
            if found is None:
                found = self._word(word)
            ids.extend(found)

    def _word(self, word: str) -> tuple[int, ...]:
        data = _utf8(word)
        if self.vocabulary.ignore_merges and data in self._ids:
            ids: tuple[int, ...] = (self._ids[data],)
        else:
            ids = tuple(merge(self._first_symbols(data), self._ranks))
        if len(data) <= _CACHED_WORD_BYTES:
            if len(self._words) >= _CACHED_WORDS:
                self._words.clear()
            self._words[word] = ids
        return ids

    def _first_symbols(self, data: bytes) -> list[int]:
        # Some published vocabularies lack rare bytes; they are dropped, as their own code does.
        symbols = (self._byte_ids[byte] for byte in data)
        return [symbol for symbol in symbols if symbol is not None]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for. Raises: UserError for an id outside the vocabulary."""
        tokens = self.vocabulary.tokens
        return b"".join(tokens[check_id(i, self.vocab_size)] for i in ids)

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of the ids; bytes that are no UTF-8 become U+FFFD."""
        if skip_special:
            skipped = set(self.special_tokens.values())
            ids = (i for i in ids if i not in skipped)
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def stream_decoder(self) -> StreamDecoder:
        """For text that arrives token by token; special tokens give no text."""
        return StreamDecoder(self, skip_special=True)

    def render_chat(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> str:
        """The chat template filled in. Raises: UserError when there is none or it fails."""
        from lmworks.tokenizers.chat import render

        return render(self, messages, add_generation_prompt=add_generation_prompt)

    def encode_chat(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> list[int]:
        """Ids of the rendered chat, in which special tokens come from the template alone."""
        from lmworks.tokenizers.chat import encode

        return encode(self, messages, add_generation_prompt=add_generation_prompt)

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`."""
        from lmworks.tokenizers.huggingface import save

        save(self.vocabulary, Path(folder))

    def gguf_metadata(self) -> dict[str, Any]:
        """The `tokenizer.*` keys of a GGUF file."""
        from lmworks.tokenizers.gguf import to_metadata

        return to_metadata(self.vocabulary)


def _model_ids(vocabulary: Vocabulary) -> dict[bytes, int]:
    """Bytes to id for what merges may make; added tokens yield to the model's own."""
    added = {token.id: token for token in vocabulary.added_tokens}
    ids = {token: i for i, token in enumerate(vocabulary.tokens) if i not in added}
    for token_id, token in added.items():
        if token.in_vocabulary:
            ids.setdefault(vocabulary.tokens[token_id], token_id)
    return ids


def _ranked_merges(
    vocabulary: Vocabulary, ids: dict[bytes, int]
) -> dict[tuple[int, int], tuple[int, int]]:
    """(left, right) -> (rank, merged id)."""
    tokens = vocabulary.tokens
    ranks: dict[tuple[int, int], tuple[int, int]] = {}
    for rank, (left, right) in enumerate(vocabulary.merges):
        merged = ids.get(tokens[left] + tokens[right])
        if merged is None:
            raise UserError(
                f"merge {rank} joins {tokens[left]!r} and {tokens[right]!r} to a token that "
                "the vocabulary does not hold"
            )
        ranks[left, right] = (rank, merged)  # told twice: the last counts, as in tokenizers
    return ranks


def _utf8(word: str) -> bytes:
    try:
        return word.encode("utf-8")
    except UnicodeEncodeError:
        return word.encode("utf-8", "surrogateescape" if _escaped(word) else "surrogatepass")


def _escaped(word: str) -> bool:
    return all(0xDC80 <= ord(c) <= 0xDCFF for c in word if 0xD800 <= ord(c) <= 0xDFFF)
