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
from lmworks.tokenizers.buffers import Buffer, of_bytes, utf8
from lmworks.tokenizers.calls import kernel
from lmworks.tokenizers.charsmap import CharsMap
from lmworks.tokenizers.pre_tokenizers import Cut, PreTokenizer
from lmworks.tokenizers.unicode_data import has
from lmworks.tokenizers.vocabulary import AddedToken, Step

if TYPE_CHECKING:
    from lmworks.tokenizers.tokenizer import PipelineTokenizer


class Mapping:
    """Text to the bytes that are cut."""

    def __init__(self, tokenizer: PipelineTokenizer, changer: PreTokenizer | None = None) -> None:
        """`changer`: what changes normalised text, if not the tokenizer's pre-tokenizer."""
        vocabulary, self._tokenizer = tokenizer.vocabulary, tokenizer
        self._changer = changer or tokenizer.pre_tokenizer
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
        if self._changer.prefix:
            self.replacements = None
        elif self._changer.spaces_as and self.replacements is not None:
            self.replacements.append((b" ", self._changer.spaces_as.encode()))
        self._spaces = _only_spaces(steps).encode()
        mapped = [kind in _BY_CHARACTER for kind in kinds]
        first = mapped.index(False) if False in mapped else len(kinds)
        own = kinds == ["SentencePiece"]
        self._rest = normalizers.Chain([])
        self._table: Table | None = None
        if own:
            self._table = sentencepiece_table(steps[0], self._changer)
        elif self._spaces and not (self._changer.prefix or self._changer.spaces_as):
            mark = self._spaces.decode()
            self._table = LongestTable(None, space=mark, prefix=mark)
        elif self.replacements and [old for old, _ in self.replacements] == [b" "]:
            self._table = LongestTable(None, space=self.replacements[0][1].decode())
        elif steps[:first]:
            squeeze = steps[first : first + 1] == [_ONE_SPACE]
            done = first + squeeze
            self._rest = normalizers.Chain([normalizers.build(step) for step in steps[done:]])
            changer = self._changer if done == len(steps) else PreTokenizer()
            self._table = character_table(steps[:first], changer, squeeze=squeeze)

    def view(self, text: str, raw: Buffer) -> Buffer | None:
        """A text, of which `raw` is the UTF-8, as it is cut.

        None when only the readable normalizer can change it.
        """
        if self.replacements is not None and not self._in_form(text):
            return None
        if self._changer.each_word and self._changer.prefix in text:
            return None  # such a word gets no second mark
        if self._table is not None:
            found = self._table.apply(raw)
            if found is None or not self._rest.parts:
                return found
            rest = self._rest.normalize(found.tobytes().decode())
            return of_bytes(self._changer.change(rest).encode())
        if not self.replacements:
            return None if self.replacements is None else raw
        data = text.encode()
        for old, new in self.replacements:
            data = data.replace(old, new)
        return of_bytes(data)

    def _in_form(self, text: str) -> bool:
        """Whether a Unicode form, if there is one, leaves a text as it is."""
        if self._form is None or text.isascii():
            return True
        if self._form != "NFC" and not self._whole.isdisjoint(text):
            return False
        return unicodedata.is_normalized(self._form, text)

    def lacks(self, cut: Cut) -> bool:
        """Whether no changed text has a match: the change replaces the one character it is of."""
        return any(
            cut.expression in (old.decode(), "\\" + old.decode()) and old not in new
            for old, new in self.replacements or ()
        )

    def whole(self, text: str) -> bytes | None:
        """A text whose added tokens can be looked for after the change, or None.

        Raises: UnicodeEncodeError for lone surrogates.
        """
        if self.replacements is None or not self._in_form(text):
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
        held = [token for token in tokens if any(new in token.text.encode() for new in news)]
        if any(token.normalized for token in held):  # the change may make its text
            return None
        return [token for token in tokens if token not in held]

    def token(self, text: str) -> bytes:
        """An added token's text as it stands in changed text."""
        data = text.encode()
        for old, new in self.replacements or ():
            data = data.replace(old, new)
        return data

    def normalized(self, text: str) -> str:
        """As the tokenizer's normalizer, faster where that can be.

        Raises: UnicodeEncodeError for lone surrogates.
        """
        view = self._normalizing.view(text, utf8(text))
        return self._normalizer.normalize(text) if view is None else view.tobytes().decode()

    @functools.cached_property
    def _normalizing(self) -> Mapping:
        return Mapping(self._tokenizer, PreTokenizer())


_ONE_SPACE: Step = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
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


def character_table(
    steps: list[Step], changer: PreTokenizer, *, squeeze: bool = False
) -> CharacterTable:
    """The table of a normalizer whose characters change on their own; `squeeze`: one space."""
    kinds = [str(step["type"]) for step in steps]
    normalize = normalizers.Chain([normalizers.build(step) for step in steps]).normalize
    graphemes = "Precompiled" in kinds
    composes = bool({"NFC", "NFKC"} & set(kinds))
    each_word = changer.each_word

    def replacement(character: str) -> str | None:
        new = normalize(character)
        if unicodedata.combining(character) and (new or graphemes):
            return None
        if (graphemes and _joins(character)) or (composes and character in _composing()):
            return None
        return "".join(" " if has(c, "white") else c for c in new) if each_word else new

    return CharacterTable(
        replacement,
        space=changer.prefix if each_word else changer.spaces_as or " ",
        squeeze=squeeze or each_word,
        trim=each_word,
        prefix=changer.prefix,
        unless=changer.prefix_if,
    )


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


def sentencepiece_table(step: Step, changer: PreTokenizer) -> LongestTable | None:
    """The table of a `.model`'s normalizer, or None for one that only the readable way can do."""
    normalizer = normalizers.SentencePiece(step)
    if normalizer.suffix or normalizer.symbols or changer.prefix or changer.spaces_as:
        return None
    return LongestTable(
        normalizer.map,
        space=normalizer.space,
        squeeze=normalizer.squeeze,
        trim=normalizer.squeeze,
        prefix=normalizer.space if normalizer.prefix else "",
    )


class Table:
    """What a kernel changes text by. Subclasses say which, and what it looks up."""

    kernel: str

    def __init__(
        self,
        *,
        space: str = " ",
        squeeze: bool = False,
        trim: bool = False,
        prefix: str = "",
        unless: str = "",
    ) -> None:
        """
        Args:
            space: what a space is written as.
            squeeze: one for many. trim: none at start and end.
            prefix: put before a text, unless it begins with one of the characters in `unless`.
        """
        self._prefix, self._space = prefix.encode(), space.encode()
        self._unless = tuple(character.encode() for character in unless)
        self._trim = trim
        self._squeeze = 2 if squeeze else int(space != " ")
        self._space_bytes = np.frombuffer(self._space, dtype=np.uint8)
        self._ascii = np.zeros(128, dtype=np.uint32)  # what becomes of a byte on its own
        self._ascii_sizes = np.full(128, slots.LOOK_UP, dtype=np.uint8)
        self.slots = np.zeros(slots.MAP_SLOTS, dtype=np.int64)
        for slot, array in (
            (slots.MAP_SPACE, self._space_bytes),
            (slots.MAP_ASCII, self._ascii),
            (slots.MAP_ASCII_SIZES, self._ascii_sizes),
        ):
            self.slots[slot] = array.ctypes.data
        self.slots[slots.MAP_SQUEEZE] = self._squeeze
        self.slots[slots.MAP_SPACE_SIZE] = len(self._space)
        self.slots[slots.MAP_SQUEEZED] = int(trim)  # white space at the start goes

    def plain(self, code: int, data: bytes) -> None:
        """Say what a byte of ASCII always becomes, where that can be said in four bytes."""
        if self._squeeze and data == b" ":
            data = self._space if code == 32 else b"     "  # another space: looked up
        elif self._squeeze and (code == 32 or b" " in data):
            return
        if len(data) <= 4:
            self._ascii[code] = int.from_bytes(data, "little")
            self._ascii_sizes[code] = len(data)

    def fill(self, page: int) -> bool:
        """Make a page of characters known; False when that can't be."""
        return False

    def apply(self, text: Buffer) -> Buffer | None:
        """The text changed; None when neighbours matter in it."""
        before = len(self._prefix)
        out = np.empty(text.size + text.size // 2 + 2048 + before, dtype=np.uint8)
        out[:before] = np.frombuffer(self._prefix, dtype=np.uint8)
        a = self.slots.copy()
        a[slots.MAP_TEXT], a[slots.MAP_SIZE] = text.address, text.size
        a[slots.MAP_OUT], a[slots.MAP_ROOM] = out.ctypes.data, len(out)
        a[slots.MAP_DONE] = before
        run, address = kernel(self.kernel), int(a.ctypes.data)
        while (size := run(address)) < 0:
            if size == slots.MAP_NEIGHBOURS:
                return None
            if size == slots.MAP_FULL:
                out = np.concatenate([out, np.empty_like(out)])
                a[slots.MAP_OUT], a[slots.MAP_ROOM] = out.ctypes.data, len(out)
            elif not self.fill(-1 - size):
                return None
        return self._finished(out, size)

    def _finished(self, out: Any, size: int) -> Buffer:
        before, space = len(self._prefix), self._space
        while self._trim and size > before and out[:size][-len(space) :].tobytes() == space:
            size -= len(space)
        first = out[before : before + 4].tobytes()[: size - before]
        bare = size == before or (self._unless and first.startswith(self._unless))
        begin = before if bare else 0
        return Buffer(out.ctypes.data + begin, size - begin, out)


class CharacterTable(Table):
    """Characters and what becomes of each, in pages of 128 that are filled when one is met."""

    kernel = "map_characters"

    def __init__(self, replacement: Callable[[str], str | None], **options: Any) -> None:
        """`replacement` gives None for a character that its neighbours change."""
        super().__init__(**options)
        self._replacement = replacement
        self._pages = np.full(0x110000 >> 7, -1, dtype=np.int32)
        self._entries = np.empty(0x110000, dtype=np.uint32)
        self._pool = np.empty(1 << 22, dtype=np.uint8)
        self._used = self._filled = 0
        self._lock = threading.Lock()
        for slot, array in (
            (slots.MAP_PAGES, self._pages),
            (slots.MAP_POOL, self._pool),
            (slots.MAP_ENTRIES, self._entries),
        ):
            self.slots[slot] = array.ctypes.data

    def fill(self, page: int) -> bool:
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
                if page == 0 and new is not None:
                    self.plain(code, data)
            self._pages[page] = self._filled
            self._filled += 1
            return True


class LongestTable(Table):
    """A SentencePiece map as it is: the longest entry that begins at a place is replaced."""

    kernel = "map_longest"

    def __init__(self, chars_map: CharsMap | None, **options: Any) -> None:
        super().__init__(**options)
        self._units = np.array(chars_map.units if chars_map else [], dtype=np.uint32)
        texts = chars_map.replacements if chars_map else b""
        self._texts = np.frombuffer(texts + bytes(8), dtype=np.uint8)
        self.slots[slots.MAP_PAGES], self.slots[slots.MAP_ENTRIES] = (
            self._units.ctypes.data,
            len(self._units),
        )
        self.slots[slots.MAP_POOL] = self._texts.ctypes.data
        begins = chars_map.ascii_beginnings() if chars_map else frozenset()
        for code in set(range(128)) - begins:
            self.plain(code, bytes([code]))
