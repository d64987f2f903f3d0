"""How text is changed before the kernels see it: as the normalizer does, but fast.

Most text needs no change, or one space for another; where each character changes on its own, a
kernel does it with a table that is filled as characters turn up. What the neighbours of a
character decide (marks that join it, jamo) goes through the readable normalizer.
"""

from __future__ import annotations

import functools
import threading
import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lmworks.tokenizers import normalizers, slots
from lmworks.tokenizers.calls import kernel
from lmworks.tokenizers.vocabulary import AddedToken, Step

if TYPE_CHECKING:
    from lmworks.tokenizers.tokenizer import PipelineTokenizer


def mapping_of(tokenizer: PipelineTokenizer) -> Mapping:
    """The mapping of a tokenizer's normalizer and of its pre-tokenizer's changes."""
    return Mapping(tokenizer)


class Mapping:
    """Text to the bytes that are cut."""

    def __init__(self, tokenizer: PipelineTokenizer) -> None:
        vocabulary = tokenizer.vocabulary
        self._normalizer = tokenizer.normalizer
        steps = _flat(vocabulary.normalizer)
        kinds = [str(step["type"]) for step in steps]
        self._form: Any = kinds[0] if len(kinds) == 1 and kinds[0] in _FORMS else None
        self._whole = frozenset(normalizers.WHOLE)
        self.replacements: list[tuple[bytes, bytes]] | None = None
        if self._form is None and all(kind == "Replace" for kind in kinds):
            self.replacements = _literals(steps)
        elif self._form is not None:
            self.replacements = []
        changer = tokenizer.pre_tokenizer
        if changer.prefix:
            self.replacements = None
        elif changer.spaces_as and self.replacements is not None:
            self.replacements.append((b" ", changer.spaces_as.encode()))
        mapped = [kind in _BY_CHARACTER for kind in kinds]
        first = mapped.index(False) if False in mapped else len(kinds)
        own = kinds == ["SentencePiece"]
        self._table = character_table(steps if own else steps[:first])
        self._rest = normalizers.Chain([] if own else [normalizers.build(s) for s in steps[first:]])
        self._spaces = _only_spaces(steps)

    def whole(self, text: str) -> bytes | None:
        """A text whose added tokens can be looked for after the change, or None.

        Raises: UnicodeEncodeError for lone surrogates.
        """
        if self.replacements is None:
            return None
        if self._form is not None and not text.isascii():
            if self._form != "NFC" and not self._whole.isdisjoint(text):
                return None
            if not unicodedata.is_normalized(self._form, text):
                return None
        data = text.encode()
        for old, new in self.replacements:
            if new in data:  # what is there already could not be told apart
                return None
            data = data.replace(old, new)
        return data

    def findable(self, tokens: Sequence[AddedToken]) -> list[AddedToken] | None:
        """Added tokens that changed text may hold; None when more than their text matters.

        A token that holds a replacement as it is (`▁`) can't be in the texts that `whole` takes.
        """
        if self.replacements is None:
            return None
        if any(token.lstrip or token.rstrip or token.single_word for token in tokens):
            return None
        if self._form and any(self._normalizer.normalize(t.text) != t.text for t in tokens):
            return None
        news = [new for _, new in self.replacements]
        return [t for t in tokens if not any(new in t.text.encode() for new in news)]

    def token(self, text: str) -> bytes:
        """An added token's text as it stands in changed text."""
        data = text.encode()
        for old, new in self.replacements or ():
            data = data.replace(old, new)
        return data

    def normalized(self, text: str) -> str:
        """As the tokenizer's normalizer, faster where that can be."""
        if self._spaces:
            return self._spaces + text.replace(" ", self._spaces) if text else text
        if self._table is not None and (found := self._table.apply(text)) is not None:
            return self._rest.normalize(found)
        return self._normalizer.normalize(text)


_FORMS = ("NFC", "NFD", "NFKC", "NFKD")


def _only_spaces(steps: list[Step]) -> str:
    """The mark of a normalizer that only puts it before the text and in the place of spaces."""
    kinds = [step["type"] for step in steps]
    if kinds == ["SentencePiece"]:
        normalizer = normalizers.SentencePiece(steps[0])
        simple = normalizer.prefix and not (
            normalizer.map or normalizer.squeeze or normalizer.symbols or normalizer.suffix
        )
        return normalizer.space if simple else ""
    if kinds == ["Prepend", "Replace"] and _literals(steps[1:]) == [
        (b" ", str(steps[0]["prepend"]).encode())
    ]:
        return str(steps[0]["prepend"])
    return ""


def _flat(step: Step | None) -> list[Step]:
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [inner for part in step["normalizers"] for inner in _flat(part)]


def _literals(steps: list[Step]) -> list[tuple[bytes, bytes]] | None:
    """Replacements of one character by another text, if that is all there is."""
    found = []
    for step in steps:
        old = step["pattern"].get("String", "")
        if len(old) != 1 or not step["content"]:
            return None
        found.append((old.encode(), str(step["content"]).encode()))
    return found


def character_table(steps: list[Step]) -> CharacterTable | None:
    """The table of a normalizer whose characters change on their own, or None."""
    if len(steps) == 1 and steps[0]["type"] == "SentencePiece":
        return _sentencepiece_table(steps[0])
    kinds = [str(step["type"]) for step in steps]
    if not kinds or any(kind not in _BY_CHARACTER for kind in kinds):
        return None
    normalize = normalizers.Chain([normalizers.build(step) for step in steps]).normalize
    graphemes = "Precompiled" in kinds
    composes = bool({"NFC", "NFKC"} & set(kinds))

    def replacement(character: str) -> str | None:
        new = normalize(character)
        if unicodedata.combining(character) and (new or graphemes):
            return None
        if (graphemes and _joins(character)) or (composes and character in _composing()):
            return None
        return new

    return CharacterTable(replacement)


_BY_CHARACTER = ("BertNormalizer", "Lowercase", "Nmt", "Precompiled", "StripAccents", *_FORMS)


def _joins(character: str) -> bool:
    """Whether it may share a grapheme with what is beside it."""
    code = ord(character)
    if character == "\r" or any(low <= code <= high for low, high in _JAMO_AND_FLAGS):
        return True
    return len(normalizers.graphemes(f"a{character}b")) != 3


_JAMO_AND_FLAGS = (
    (0x1100, 0x11FF), (0xA960, 0xA97F), (0xD7B0, 0xD7FF), (0x1F1E6, 0x1F1FF)
)  # fmt: skip


@functools.cache
def _composing() -> frozenset[str]:
    """Characters that the one before may swallow."""
    found = {chr(code) for code in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}
    for code in range(0x80, 0x12000):
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and "<" not in parts[0]:
            found.add(chr(int(parts[1], 16)))
    return frozenset(found)


def _sentencepiece_table(step: Step) -> CharacterTable | None:
    normalizer = normalizers.SentencePiece(step)
    if normalizer.suffix or normalizer.symbols:
        return None
    chars_map = normalizer.map
    later = chars_map.later_characters() if chars_map else frozenset()

    def replacement(character: str) -> str | None:
        if character in later:
            return None
        found = chars_map.longest_prefix(character) if chars_map else None
        return character if found is None else found[1]

    return CharacterTable(
        replacement,
        space=normalizer.space,
        squeeze=normalizer.squeeze,
        prefix=normalizer.space if normalizer.prefix else "",
    )


class CharacterTable:
    """Characters and what becomes of each, in pages of 128 that are filled when one is met."""

    def __init__(
        self,
        replacement: Callable[[str], str | None],
        *,
        space: str = "",
        squeeze: bool = False,
        prefix: str = "",
    ) -> None:
        """`replacement` gives None for a character that its neighbours change."""
        self._replacement = replacement
        self._prefix, self._space = prefix.encode(), space.encode()
        self._squeeze = 2 if squeeze else int(bool(space))
        self._pages = np.full(0x110000 >> 7, -1, dtype=np.int32)
        self._entries = np.empty(0x110000, dtype=np.uint32)
        self._pool = np.empty(1 << 22, dtype=np.uint8)
        self._used = self._filled = 0
        self._lock = threading.Lock()
        self._space_bytes = np.frombuffer(self._space or b" ", dtype=np.uint8)

    def apply(self, text: str) -> str | None:
        """The text changed; None when neighbours matter in it."""
        data = text.encode()
        source = np.frombuffer(data or b"\0", dtype=np.uint8)
        out = np.empty(2 * len(data) + 4096, dtype=np.uint8)
        a = np.zeros(slots.MAP_SLOTS, dtype=np.int64)
        for slot, array in (
            (slots.MAP_TEXT, source), (slots.MAP_PAGES, self._pages), (slots.MAP_POOL, self._pool),
            (slots.MAP_ENTRIES, self._entries), (slots.MAP_SPACE, self._space_bytes),
            (slots.MAP_OUT, out),
        ):  # fmt: skip
            a[slot] = array.ctypes.data
        a[slots.MAP_SIZE], a[slots.MAP_ROOM] = len(data), len(out)
        a[slots.MAP_SQUEEZE], a[slots.MAP_SPACE_SIZE] = self._squeeze, len(self._space)
        a[slots.MAP_SQUEEZED] = int(self._squeeze == 2)  # white space at the start goes
        run, address = kernel("map_characters"), int(a.ctypes.data)
        while (size := run(address)) < 0:
            if size == slots.MAP_NEIGHBOURS:
                return None
            if size == slots.MAP_FULL:
                out = np.concatenate([out, np.empty_like(out)])
                a[slots.MAP_OUT], a[slots.MAP_ROOM] = out.ctypes.data, len(out)
            elif not self._fill(-1 - size):
                return None
        return self._finished(out[:size].tobytes()).decode()

    def _finished(self, data: bytes) -> bytes:
        while self._squeeze == 2 and data.endswith(self._space):
            data = data.removesuffix(self._space)
        return self._prefix + data if data else data

    def _fill(self, page: int) -> bool:
        with self._lock:
            if self._pages[page] >= 0:
                return True
            for code in range(page << 7, (page + 1) << 7):
                place = (self._filled << 7) + (code & 127)
                new = None if 0xD800 <= code <= 0xDFFF else self._replacement(chr(code))
                data = b"" if new is None else new.encode()
                if len(data) > 254 or self._used + 254 > len(self._pool):
                    return False
                self._pool[self._used : self._used + len(data)] = list(data)
                size = 255 if new is None else len(data)
                self._entries[place] = self._used << 8 | size
                self._used += len(data)
            self._pages[page] = self._filled
            self._filled += 1
            return True
