"""Byte-level byte-pair encoding: any bytes in, ids out, and the same bytes back.

Text is cut into words (patterns.py), a word's bytes are the first symbols, and neighbouring
symbols are merged, lowest rank first, until no merge applies. Words repeat, so their ids are
remembered. Special tokens are looked for only when the caller allows it: by default the text of
one stays text, so that nobody can write a turn marker into a message.

Source: Sennrich et al. 2016, arXiv 1508.07909; on bytes: Radford et al. 2019, section 2.2.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.tokenizers.base import Message, StreamDecoder, check_id
from lmworks.tokenizers.patterns import split

_CACHED_WORDS = 1 << 18
_CACHED_WORD_BYTES = 64  # longer words rarely come again


@functools.cache
def byte_alphabet() -> tuple[str, ...]:
    """A printable character for each byte, as GPT-2's files write them; index = byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table, extra = {byte: chr(byte) for byte in plain}, 0x100
    for byte in range(256):
        if byte not in table:
            table[byte], extra = chr(extra), extra + 1
    return tuple(table[byte] for byte in range(256))


@functools.cache
def alphabet_bytes() -> dict[str, int]:
    """The inverse of `byte_alphabet`."""
    return {character: byte for byte, character in enumerate(byte_alphabet())}


def to_alphabet(data: bytes) -> str:
    """Bytes as GPT-2's printable characters."""
    table = byte_alphabet()
    return "".join(table[byte] for byte in data)


def from_alphabet(token: str) -> bytes:
    """Printable characters back to bytes. Raises: KeyError for a character outside the alphabet."""
    table = alphabet_bytes()
    return bytes(table[character] for character in token)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a byte-level BPE tokenizer is made of, whatever file it came from."""

    tokens: tuple[bytes, ...]  # by id; special tokens as the UTF-8 of their text
    merges: tuple[tuple[int, int], ...]  # pairs of ids, lowest rank first
    special_tokens: dict[str, int]
    expressions: tuple[str, ...]  # pre-tokenisation, see patterns.py
    normalization: str | None = None  # NFC, NFD, NFKC, NFKD
    ignore_merges: bool = False  # a word that is a token is that token, whatever the merges say
    control_tokens: frozenset[str] = frozenset()  # those of special_tokens that decode may skip
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    chat_template: str | None = None


class BPETokenizer:
    """Byte-level BPE over a Vocabulary.

    Raises: UserError for merges that make tokens which the vocabulary does not hold.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.vocab_size = len(vocabulary.tokens)
        self.special_tokens = dict(vocabulary.special_tokens)
        self.chat_template = vocabulary.chat_template
        self.bos_token_id = self._special(vocabulary.bos_token)
        self.eos_token_id = self._special(vocabulary.eos_token)
        self.pad_token_id = self._special(vocabulary.pad_token)
        special = set(self.special_tokens.values())
        self._skippable = {vocabulary.special_tokens[t] for t in vocabulary.control_tokens}
        self._ids = {t: i for i, t in enumerate(vocabulary.tokens) if i not in special}
        self._byte_ids = [self._ids.get(bytes([byte])) for byte in range(256)]
        self._ranks = self._ranked_merges()
        self._words: dict[str, tuple[int, ...]] = {}
        self.special_pattern = _any_of(self.special_tokens)

    def _special(self, token: str | None) -> int | None:
        return None if token is None else self.special_tokens.get(token)

    def _ranked_merges(self) -> dict[tuple[int, int], tuple[int, int]]:
        """(left, right) -> (rank, merged id)."""
        tokens = self.vocabulary.tokens
        ranks: dict[tuple[int, int], tuple[int, int]] = {}
        for rank, (left, right) in enumerate(self.vocabulary.merges):
            merged = self._ids.get(tokens[left] + tokens[right])
            if merged is None:
                raise UserError(
                    f"merge {rank} joins {tokens[left]!r} and {tokens[right]!r} to a token that "
                    "the vocabulary does not hold"
                )
            ranks.setdefault((left, right), (rank, merged))
        return ranks

    def encode(self, text: str | bytes, *, allow_special: bool = False) -> list[int]:
        """Ids of `text`; bytes that are no UTF-8 are kept as they are.

        Args:
            allow_special: read the text of special tokens as those tokens. For templates and
                files, not for what a user typed.
        A byte that the vocabulary has no token for is dropped; ours have all 256.
        """
        if isinstance(text, bytes):
            # Invalid bytes become lone surrogates, which `_word` turns back into the bytes.
            text = text.decode("utf-8", "surrogateescape")
        ids: list[int] = []
        if not allow_special or self.special_pattern is None:
            self._extend(ids, text)
            return ids
        at = 0
        for match in self.special_pattern.finditer(text):
            self._extend(ids, text[at : match.start()])
            ids.append(self.special_tokens[match[0]])
            at = match.end()
        self._extend(ids, text[at:])
        return ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """`encode` of each text."""
        return [self.encode(text) for text in texts]

    def _extend(self, ids: list[int], text: str) -> None:
        if self.vocabulary.normalization:
            text = unicodedata.normalize(self.vocabulary.normalization, text)  # type: ignore[arg-type]
        known = self._words
        for word in split(text, self.vocabulary.expressions):
            found = known.get(word)
            if found is None:
                found = self._word(word)
            ids.extend(found)

    def _word(self, word: str) -> tuple[int, ...]:
        data = _utf8(word)
        if self.vocabulary.ignore_merges and data in self._ids:
            ids: tuple[int, ...] = (self._ids[data],)
        else:
            ids = tuple(self._merge(self._first_symbols(data)))
        if len(data) <= _CACHED_WORD_BYTES:
            if len(self._words) >= _CACHED_WORDS:
                self._words.clear()
            self._words[word] = ids
        return ids

    def _first_symbols(self, data: bytes) -> list[int]:
        # Some published vocabularies lack rare bytes; they are dropped, as their own code does.
        symbols = (self._byte_ids[byte] for byte in data)
        return [symbol for symbol in symbols if symbol is not None]

    def _merge(self, symbols: list[int]) -> list[int]:
        """Apply merges, lowest rank first, leftmost first among equals."""
        if len(symbols) > _LONG_WORD:
            return merge_long(symbols, self._ranks)
        ranks = self._ranks
        while len(symbols) > 1:
            best, best_pair = None, None
            for pair in itertools.pairwise(symbols):
                found = ranks.get(pair)
                if found is not None and (best is None or found[0] < best[0]):
                    best, best_pair = found, pair
            if best is None or best_pair is None:
                break
            symbols = _replace(symbols, best_pair, best[1])
        return symbols

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that the ids stand for. Raises: UserError for an id outside the vocabulary."""
        tokens = self.vocabulary.tokens
        return b"".join(tokens[check_id(i, self.vocab_size)] for i in ids)

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Text of the ids; bytes that are no UTF-8 become U+FFFD."""
        if skip_special:
            ids = (i for i in ids if i not in self._skippable)
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


_LONG_WORD = 200  # from here on the quadratic loop loses to the heap


def _replace(symbols: list[int], pair: tuple[int, int], merged: int) -> list[int]:
    left, right = pair
    out, at, last = [], 0, len(symbols) - 1
    while at <= last:
        if at < last and symbols[at] == left and symbols[at + 1] == right:
            out.append(merged)
            at += 2
        else:
            out.append(symbols[at])
            at += 1
    return out


def merge_long(symbols: list[int], ranks: dict[tuple[int, int], tuple[int, int]]) -> list[int]:
    """The same merges in O(n log n), for one word of megabytes (a line without spaces)."""
    import heapq

    symbols = list(symbols)
    after: list[int] = [*range(1, len(symbols)), -1]
    before: list[int] = [*range(-1, len(symbols) - 1)]
    heap: list[tuple[int, int, int, int]] = []

    def offer(at: int) -> None:
        if at >= 0 and after[at] >= 0:
            found = ranks.get((symbols[at], symbols[after[at]]))
            if found is not None:
                heapq.heappush(heap, (found[0], at, symbols[at], symbols[after[at]]))

    for at in range(len(symbols) - 1):
        offer(at)
    while heap:
        _, at, left, right = heapq.heappop(heap)
        following = after[at]
        if symbols[at] != left or following < 0 or symbols[following] != right:
            continue  # a merge nearby made this offer stale
        symbols[at], symbols[following] = ranks[left, right][1], -1
        after[at] = after[following]
        if after[at] >= 0:
            before[after[at]] = at
        offer(before[at])
        offer(at)
    return [symbol for symbol in symbols if symbol >= 0]


def _utf8(word: str) -> bytes:
    try:
        return word.encode("utf-8")
    except UnicodeEncodeError:
        return word.encode("utf-8", "surrogateescape" if _escaped(word) else "surrogatepass")


def _escaped(word: str) -> bool:
    return all(0xDC80 <= ord(c) <= 0xDCFF for c in word if 0xD800 <= ord(c) <= 0xDFFF)


def _any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    # Longest first, so that no special token hides a longer one that starts like it.
    ordered: Iterator[str] = (re.escape(t) for t in sorted(texts, key=len, reverse=True) if t)
    joined = "|".join(ordered)
    return re.compile(joined) if joined else None
