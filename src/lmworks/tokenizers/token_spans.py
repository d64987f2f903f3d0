"""Which characters each token of a long text stands for, worked out where somebody looks.

`PipelineTokenizer.encode_offsets` answers for a whole text, in plain Python. Here the ids come from
the kernels, and spans are made only for the part that is asked for; they are the same. Two ways:

- Where the bytes of the tokens, joined, are the text (byte-level tokenizers; SentencePiece style
  behind one space that is put in), a running sum of their sizes says it all.
- Elsewhere (characters are changed, white space is dropped) the text is cut into sections whose
  own ids, one behind the other, are the ids of the whole. That is checked, and a section that
  fails is made longer, up to the whole text.
"""

from __future__ import annotations

import functools
import itertools
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from lmworks.tokenizers.aligned import Span
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.wordpiece import WordPiece

_SECTION = 4096  # characters; read in some ten milliseconds
_KEPT_SECTIONS = 64
_CONTEXT = 64  # characters before a section that may decide how it begins
_SPACES = re.compile(r"\s+")


class Unit(NamedTuple):
    """The least run of characters that whole tokens stand for: as a rule one token."""

    start: int  # characters
    end: int
    first: int  # which token of the text is the first one; of a gap: the next
    ids: tuple[int, ...]  # several where they share a character; none for text that has no token


class IndexedText:
    """A text, its UTF-8 bytes, and the way between the places of both."""

    def __init__(self, text: str) -> None:
        """Raises: UnicodeEncodeError for lone surrogates."""
        self.text, self.data = text, text.encode()
        self.is_ascii = len(self.data) == len(text)

    @functools.cached_property
    def _starts(self) -> Any:
        data = np.frombuffer(self.data, dtype=np.uint8)
        starts = np.flatnonzero((data & 0xC0) != 0x80)
        return np.append(starts, len(data)).astype(np.int32)

    def byte_at(self, character: int) -> int:
        """Where a character's bytes begin."""
        return character if self.is_ascii else int(self._starts[character])

    def character_at(self, byte: int) -> int:
        """The character that a byte belongs to; the text's end for the end."""
        if self.is_ascii:
            return byte
        return int(np.searchsorted(self._starts, np.int32(byte), side="right")) - 1

    def begins_character(self, byte: int) -> bool:
        """Whether a character begins at this byte, or the text ends."""
        return byte >= len(self.data) or self.data[byte] & 0xC0 != 0x80


class TokenizedText:
    """The ids of a text, and the characters of any part of them."""

    def __init__(
        self, tokenizer: PipelineTokenizer, text: IndexedText, *, allow_special: bool = False
    ) -> None:
        self.tokenizer, self.source = tokenizer, text
        self._special = allow_special
        self.ids = self._encode(text.text)  # int32 [tokens]
        self._lock = threading.Lock()
        self._read: OrderedDict[int, tuple[list[int], list[Span]]] = OrderedDict()

    @property
    def verbatim(self) -> bool:
        """Whether the tokens' bytes, joined, are the text."""
        return self._ends is not None

    def units(self, start: int, end: int) -> list[Unit]:
        """What lies from character `start` to `end`, whole units, without holes."""
        end = min(end, len(self.source.text))
        if start >= end:
            return []
        with self._lock:
            found = list(self._summed(start, end) if self.verbatim else self._aligned(start, end))
        return [unit for unit in found if unit.end > start and unit.start < end]

    def _encode(self, text: str) -> Any:
        return self.tokenizer.encode_array(text, allow_special=self._special)

    # Where the bytes are the text.

    @functools.cached_property
    def _ends(self) -> Any:
        """int64 [tokens]: where each token's bytes end in the text; None where they are not it."""
        if isinstance(self.tokenizer.vocabulary.model, WordPiece):
            return None  # its decoder puts spaces in that no token stands for
        data = np.frombuffer(self.source.data, dtype=np.uint8)
        known = np.flatnonzero(np.bincount(self.ids, minlength=1))
        tokens = [self.tokenizer.decode_bytes([i]) for i in known.tolist()]
        sizes = np.zeros(self.tokenizer.vocab_size, dtype=np.int64)
        sizes[known] = [len(token) for token in tokens]
        starts = np.cumsum(sizes) - sizes  # of each token in all of them joined
        ends = np.cumsum(sizes[self.ids])
        total = int(ends[-1]) if len(ends) else 0
        put_in = total - len(data)
        if put_in not in (0, 1):
            return None
        own = sizes[self.ids]
        places = np.arange(total) + np.repeat(starts[self.ids] - ends + own, own)
        joined = np.frombuffer(b"".join(tokens), dtype=np.uint8)[places]
        return ends - put_in if np.array_equal(joined[put_in:], data) else None

    def _summed(self, start: int, end: int) -> Iterator[Unit]:
        text, ends = self.source, self._ends
        first = int(np.searchsorted(ends, text.byte_at(start), side="right")) if start else 0
        while first > 0 and not text.begins_character(ends[first - 1]):
            first -= 1
        last = int(np.searchsorted(ends, text.byte_at(end), side="left")) + 1
        begin, token = max(0, int(ends[first - 1])) if first else 0, first
        for number in range(first, len(ends)):
            stop = int(ends[number])
            if stop <= begin or not text.begins_character(stop):
                continue  # the next token shares a character with this one
            ids = tuple(self.ids[token : number + 1].tolist())
            yield Unit(text.character_at(begin), text.character_at(stop), token, ids)
            begin, token = stop, number + 1
            if number + 1 >= last:
                return

    # Where they are not.

    def _aligned(self, start: int, end: int) -> Iterator[Unit]:
        for number, section in enumerate(self._sections):
            if section.start < end and section.end > start:
                ids, spans = self._spans(number, section)
                yield from units_of(ids, spans, section.start, section.end, section.first)

    def _spans(self, number: int, section: _Section) -> tuple[list[int], list[Span]]:
        if number in self._read:
            self._read.move_to_end(number)
            return self._read[number]
        begin = section.start - section.context
        part = self.source.text[begin : section.end]
        ids, spans = self.tokenizer.encode_offsets(part, allow_special=self._special)
        kept = ids[len(ids) - section.tokens :]
        moved = [(a + begin, b + begin) for a, b in spans[len(ids) - section.tokens :]]
        self._read[number] = kept, moved
        if len(self._read) > _KEPT_SECTIONS:
            self._read.popitem(last=False)
        return kept, moved

    @functools.cached_property
    def _sections(self) -> list[_Section]:
        """The whole text in parts that can be read on their own."""
        size, found, at, token, wanted = len(self.source.text), list[_Section](), 0, 0, 1
        while at < size:
            section = self._next_section(at, token, wanted * _SECTION)
            if section is not None:
                found.append(section)
                at, token, wanted = section.end, token + section.tokens, 1
                continue
            if found and at + wanted * _SECTION >= size:  # nothing fits from here: begin earlier
                at, token = found[max(0, len(found) - wanted)][:2]
                del found[max(0, len(found) - wanted) :]
            wanted *= 2
        return found

    def _next_section(self, start: int, token: int, size: int) -> _Section | None:
        text = self.source.text
        if start + size >= len(text):
            return self._fitting(start, len(text), token)
        for end in (_cut(text, start + size, after=True), _cut(text, start + size, after=False)):
            if end > start and (section := self._fitting(start, end, token)):
                return section
        return None

    def _fitting(self, start: int, end: int, token: int) -> _Section | None:
        """A section whose ids are those of the whole text from `token` on, if it is one."""
        text, whole = self.source.text, end == len(self.source.text)
        if start == 0 and whole:
            return _Section(0, 0, end, 0, len(self.ids))
        # Within a word a context would prove nothing: one unknown token may stand for both sides.
        for context in (0, _CONTEXT) if start and _beside_space(text, start) else (0,):
            begin = max(0, start - context)
            ids = self._encode(text[begin:end])
            if context:
                before = self._encode(text[begin:start])
                if not np.array_equal(before, ids[: len(before)]):
                    continue
                ids = ids[len(before) :]
            same = np.array_equal(ids, self.ids[token : token + len(ids)])
            if same and (not whole or token + len(ids) == len(self.ids)):
                return _Section(start, token, end, start - begin, len(ids))
        return None


class _Section(NamedTuple):
    start: int  # characters
    first: int  # its first token in the whole text
    end: int
    context: int  # characters before it that are read with it
    tokens: int


def units_of(ids: list[int], spans: list[Span], start: int, end: int, first: int = 0) -> list[Unit]:
    """Tokens and their spans as units that cover the text from `start` to `end`.

    Args:
        first: the number of the first token.
    """
    units: list[Unit] = []
    last = start
    for number, (token_id, (begin, stop)) in enumerate(zip(ids, spans), first):
        before = units[-1] if units else None
        if before and before.ids and (begin < last or stop <= last):
            last = max(last, stop)
            units[-1] = before._replace(end=last, ids=(*before.ids, token_id))
            continue
        begin = max(begin, last)
        if begin > last:
            units.append(Unit(last, begin, number, ()))
        last = max(stop, begin)
        units.append(Unit(begin, last, number, (token_id,)))
    if last < end:
        units.append(Unit(last, end, first + len(ids), ()))
    return units


def _cut(text: str, at: int, *, after: bool) -> int:
    """A place near `at`, before it if possible, where white space ends or begins.

    `at` itself in the midst of a long run without any.
    """
    for low, high in ((at - _SECTION // 2, at), (at, at + 16 * _SECTION)):
        spaces = _SPACES.finditer(text, low, high)
        places = [m.end() if after else m.start() for m in itertools.islice(spaces, _SECTION)]
        places = [place for place in places if low < place < high]
        if places:
            return places[-1] if high == at else places[0]
    return at


def _beside_space(text: str, at: int) -> bool:
    return text[at - 1 : at].isspace() or text[at : at + 1].isspace()


def joined_ids(units: list[Unit]) -> list[int]:
    """The ids of units, in order."""
    return list(itertools.chain.from_iterable(unit.ids for unit in units))
