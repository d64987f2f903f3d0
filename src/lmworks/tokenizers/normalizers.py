"""Normalizers: how text is changed before it is cut, with every character's origin kept.

Steps are those of tokenizer.json. `normalize` is the short way for ids alone; `align` does the
same and keeps spans (aligned.py). Which characters are marks or control is what
unicode_data.py says; the Unicode forms are this Python's, but for characters that published
tokenizers leave whole.

`SentencePiece` is our own step for `.model` files, whose map replaces the longest prefix first;
Hugging Face's `Precompiled` looks at whole graphemes instead, and the two differ on rare text.

Sources: Unicode Standard Annex 15; the map's layout: sentencepiece's normalizer (a double-array
trie, then replacements ended by a zero byte).
"""

from __future__ import annotations

import base64
import functools
import itertools
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from lmworks.core.errors import UserError
from lmworks.tokenizers.aligned import AlignedText, Change
from lmworks.tokenizers.charsmap import CharsMap
from lmworks.tokenizers.unicode_data import has, lower, unassigned
from lmworks.tokenizers.unicode_tables import UNORDERED, WHOLE
from lmworks.tokenizers.vocabulary import Step


class Normalizer(Protocol):
    """A change of text, with or without spans."""

    def normalize(self, text: str) -> str: ...

    def align(self, text: AlignedText) -> AlignedText: ...


class _Changes:
    """A normalizer that tells its changes character by character."""

    def changes(self, text: str) -> Iterator[Change]:
        raise NotImplementedError

    def normalize(self, text: str) -> str:
        return "".join(character for character, _ in self.changes(text))

    def align(self, text: AlignedText) -> AlignedText:
        return text.changed(self.changes(text.text))


class UnicodeForm(_Changes):
    """NFC, NFD, NFKC or NFKD."""

    def __init__(self, form: str) -> None:
        self.form: Any = form
        self._newer = frozenset(WHOLE + UNORDERED)

    def normalize(self, text: str) -> str:
        if text.isascii() or self._newer.isdisjoint(text):
            return unicodedata.normalize(self.form, text)
        return super().normalize(text)

    def align(self, text: AlignedText) -> AlignedText:
        if self.normalize(text.text) == text.text:
            return text
        return super().align(text)

    def changes(self, text: str) -> Iterator[Change]:
        decomposed = _decomposed(text, "NFKD" if "K" in self.form else "NFD")
        return iter(decomposed) if self.form.endswith("D") else _composed(decomposed)


def _decomposed(text: str, form: Any) -> list[Change]:
    """Each character taken apart; marks in the order of their class."""
    found: list[Change] = []
    for character in text:
        parts = character if character in WHOLE else unicodedata.normalize(form, character)
        found += [(part, int(i > 0)) for i, part in enumerate(parts)]
    ordered: list[Change] = []
    for is_mark, run in itertools.groupby(found, lambda c: _class(c[0]) > 0):
        if is_mark:
            ordered += sorted(run, key=lambda c: _class(c[0]))
        else:
            ordered += run
    return ordered


def _class(character: str) -> int:
    """Canonical combining class."""
    return 0 if character in UNORDERED else unicodedata.combining(character)


def _composed(parts: list[Change]) -> Iterator[Change]:
    """Canonical composition (Annex 15, D117); what is swallowed lowers the number."""
    starter: Change | None = None
    marks: list[Change] = []
    last_class = 0
    for character, change in parts:
        kind = _class(character)
        if starter is None:
            if kind:
                yield character, change
            else:
                starter = (character, change)
            continue
        blocked = bool(marks) and last_class >= kind
        joined = "" if blocked else _join(starter[0], character)
        if joined:
            starter = (joined, starter[1] + change - 1)
        elif kind == 0:
            yield starter
            yield from marks
            starter, marks, last_class = (character, change), [], 0
        else:
            marks.append((character, change))
            last_class = kind
    if starter is not None:
        yield starter
        yield from marks


@functools.lru_cache(maxsize=1 << 16)
def _join(first: str, second: str) -> str:
    joined = unicodedata.normalize("NFC", first + second)
    return joined if len(joined) == 1 else ""


class Lowercase(_Changes):
    """Each character on its own: no final sigma, as in Hugging Face tokenizers."""

    def normalize(self, text: str) -> str:
        return text.lower() if text.isascii() else "".join(map(lower, text))

    def changes(self, text: str) -> Iterator[Change]:
        return ((low, int(i > 0)) for c in text for i, low in enumerate(lower(c)))


class Keep:
    """Only the characters that a test accepts."""

    def __init__(self, accepts: Callable[[str], bool]) -> None:
        self.accepts = functools.lru_cache(maxsize=1 << 16)(accepts)

    def normalize(self, text: str) -> str:
        return "".join(filter(self.accepts, text))

    def align(self, text: AlignedText) -> AlignedText:
        return text.kept([self.accepts(c) for c in text.text])


class Map:
    """Each character replaced by a text, whose characters all stand for it; "" drops it."""

    def __init__(self, replacement: Callable[[str], str]) -> None:
        self.replacement = functools.lru_cache(maxsize=1 << 16)(replacement)

    def normalize(self, text: str) -> str:
        return "".join(map(self.replacement, text))

    def align(self, text: AlignedText) -> AlignedText:
        out = [self.replacement(c) for c in text.text]
        spans = [span for new, span in zip(out, text.spans) for _ in new]
        return AlignedText("".join(out), spans)


class Strip:
    """White space off the ends."""

    def __init__(self, left: bool, right: bool) -> None:
        self.left, self.right = left, right

    def _ends(self, text: str) -> tuple[int, int]:
        start, end = 0, len(text)
        while self.left and start < end and is_white(text[start]):
            start += 1
        while self.right and end > start and is_white(text[end - 1]):
            end -= 1
        return start, end

    def normalize(self, text: str) -> str:
        start, end = self._ends(text)
        return text[start:end]

    def align(self, text: AlignedText) -> AlignedText:
        return text.cut(*self._ends(text.text))


class Prepend:
    """A text before the first character, if there is one."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    def normalize(self, text: str) -> str:
        return self.prefix + text if text else text

    def align(self, text: AlignedText) -> AlignedText:
        return text.prepend(self.prefix)


class Replace:
    """Every match of a pattern replaced."""

    def __init__(self, pattern: Step, content: str) -> None:
        from lmworks.tokenizers.patterns import compiled

        self.literal = str(pattern["String"]) if "String" in pattern else None
        self.content = content
        import regex

        escaped = None if self.literal is None else regex.escape(self.literal)
        self.expression = str(pattern["Regex"] if escaped is None else escaped)
        compiled(self.expression)

    def normalize(self, text: str) -> str:
        from lmworks.tokenizers.patterns import replaced

        if self.literal:
            return text.replace(self.literal, self.content)
        return replaced(self.expression, text, self.content)

    def align(self, text: AlignedText) -> AlignedText:
        from lmworks.tokenizers.patterns import spans_of

        return text.replace(spans_of(self.expression, text.text), self.content)


class Precompiled(_Changes):
    """A SentencePiece map applied to graphemes, as Hugging Face tokenizers does."""

    def __init__(self, charsmap: bytes) -> None:
        self.map = CharsMap(charsmap)
        self.parts = functools.lru_cache(maxsize=1 << 16)(self._parts)

    def _parts(self, grapheme: str) -> tuple[tuple[str, str], ...]:
        """(what goes, what comes), the grapheme whole or character by character."""
        if len(grapheme.encode("utf-8", "surrogatepass")) < 6:
            new = self.map.shortest_prefix(grapheme)
            if new is not None:
                return ((grapheme, new),)
        if len(grapheme) > 1:
            return tuple(part for c in grapheme for part in self._parts(c))
        return ((grapheme, grapheme),)

    def normalize(self, text: str) -> str:
        return "".join(new for g in graphemes(text) for _, new in self.parts(g))

    def changes(self, text: str) -> Iterator[Change]:
        found: list[Change] = []
        for grapheme in graphemes(text):
            for old, new in self.parts(grapheme):
                found += [(c, 0) for c in new]
                more = len(new) - len(old)
                for i in range(len(found) - max(0, more), len(found)):
                    found[i] = (found[i][0], 1)
                if more < 0 and found:
                    found[-1] = (found[-1][0], found[-1][1] + more)
        return iter(found)


def graphemes(text: str) -> list[str]:
    """Extended grapheme clusters (Annex 29); characters newer than our tables join nothing."""
    from lmworks.tokenizers.patterns import compiled

    shown = text
    if not text.isascii() and unassigned().search(text):
        newer = compiled(r"\P{Cn}")
        shown = unassigned().sub(lambda c: "a" if newer.match(c[0]) else c[0], text)
    found, at = [], 0
    for cluster in compiled(r"\X").findall(shown):
        found.append(text[at : at + len(cluster)])
        at += len(cluster)
    return found


class SentencePiece(_Changes):
    """What a `.model` does to text: its map, white space, the leading mark, spaces as ▁."""

    def __init__(self, step: Step) -> None:
        data = base64.b64decode(step.get("precompiled_charsmap") or "")
        self.map = CharsMap(data) if data else None
        self.squeeze = bool(step.get("remove_extra_whitespaces", True))
        self.prefix = bool(step.get("add_dummy_prefix", True))
        self.space = "▁" if step.get("escape_whitespaces", True) else " "
        self.symbols = tuple(sorted(step.get("user_defined_symbols", ()), key=len, reverse=True))
        self._beginning: dict[str, list[str]] = {}  # symbols by their first character
        for symbol in self.symbols:
            self._beginning.setdefault(symbol[:1], []).append(symbol)
        self.suffix = bool(step.get("treat_whitespace_as_suffix", False))

    def _parts(self, text: str) -> Iterator[tuple[str, str]]:
        """(what goes, what comes) from left to right."""
        at = 0
        while at < len(text):
            known = self._beginning.get(text[at], ())
            symbol = next((s for s in known if text.startswith(s, at)), "")
            found = (
                None if symbol or self.map is None else self.map.longest_prefix(text[at : at + 32])
            )
            if symbol or found is None:
                symbol = symbol or text[at]
                found = (len(symbol), symbol if not "\ud800" <= symbol <= "\udfff" else "\ufffd")
            yield text[at : at + found[0]], found[1]
            at += found[0]

    def normalize(self, text: str) -> str:
        return self.align(AlignedText(text)).text

    def align(self, text: AlignedText) -> AlignedText:
        """A character's span ends where the next one's begins, as in SentencePiece."""
        characters: list[str] = []
        starts: list[int] = []
        at = begin = 0
        after_space = self.squeeze
        for old, new in self._parts(text.text):
            if self.squeeze and at == begin and new == " ":  # white space before everything
                begin = at + len(old)
            new = new.lstrip(" ") if after_space else new
            for character in new:
                characters.append(self.space if character == " " else character)
                starts.append(at)
            if new:
                after_space = self.squeeze and new.endswith(" ")
            at += len(old)
        while self.squeeze and characters and characters[-1] == self.space:
            characters.pop()
            at = starts.pop()
        if self.prefix and characters:
            characters.insert(len(characters) if self.suffix else 0, self.space)
            starts.insert(len(starts) if self.suffix else 0, at if self.suffix else begin)
        origin = [start for start, _ in text.spans] + [text.spans[-1][1] if text.spans else 0]
        spans = [(origin[a], origin[b]) for a, b in zip(starts, [*starts[1:], at])]
        return AlignedText("".join(characters), spans)


class Chain:
    """Normalizers one after the other."""

    def __init__(self, parts: list[Normalizer]) -> None:
        self.parts = parts

    def normalize(self, text: str) -> str:
        for part in self.parts:
            text = part.normalize(text)
        return text

    def align(self, text: AlignedText) -> AlignedText:
        for part in self.parts:
            text = part.align(text)
        return text


def is_white(character: str) -> bool:
    """Unicode's White_Space; Python's isspace() adds four separators that are none."""
    return has(character, "white")


def _is_chinese(character: str) -> bool:
    return any(low <= ord(character) <= high for low, high in _CHINESE)


_CHINESE = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F), (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


def _cleaned(character: str) -> str:
    if has(character, "bert_control"):
        return ""
    return " " if is_white(character) else character


def _nmt(character: str) -> str:
    code = ord(character)
    if code in _NMT_DROPPED or 0x0001 <= code <= 0x0008 or 0x000E <= code <= 0x001F:
        return ""
    return " " if code in _NMT_SPACES else character


_NMT_DROPPED = {0x000B, 0x007F, 0x008F, 0x009F}
_NMT_SPACES = {0x0009, 0x000A, 0x000C, 0x000D, 0x1680, *range(0x200B, 0x2010), 0x2028, 0x2029,
               0x2581, 0xFEFF, 0xFFFD}  # fmt: skip


def _bert(step: Step) -> Normalizer:
    strip, lower = step.get("strip_accents"), step.get("lowercase", True)
    parts: list[Normalizer] = []
    if step.get("clean_text", True):
        parts.append(Map(_cleaned))
    if step.get("handle_chinese_chars", True):
        parts.append(Map(lambda c: f" {c} " if _is_chinese(c) else c))
    if lower if strip is None else strip:
        parts += [UnicodeForm("NFD"), Keep(lambda c: not has(c, "bert_mark"))]
    if lower:
        parts.append(Lowercase())
    return Chain(parts)


def _strip_accents() -> Normalizer:
    return Keep(lambda c: not has(c, "mark"))


def _precompiled(step: Step) -> Normalizer:
    return Precompiled(base64.b64decode(step["precompiled_charsmap"] or ""))


def _sequence(step: Step) -> Normalizer:
    return Chain([build(inner) for inner in step["normalizers"]])


NORMALIZERS: dict[str, Callable[[Step], Normalizer]] = {
    "BertNormalizer": _bert,
    "Lowercase": lambda step: Lowercase(),
    "NFC": lambda step: UnicodeForm("NFC"),
    "NFD": lambda step: UnicodeForm("NFD"),
    "NFKC": lambda step: UnicodeForm("NFKC"),
    "NFKD": lambda step: UnicodeForm("NFKD"),
    "Nmt": lambda step: Map(_nmt),
    "Precompiled": _precompiled,
    "Prepend": lambda step: Prepend(str(step["prepend"])),
    "Replace": lambda step: Replace(step["pattern"], str(step["content"])),
    "SentencePiece": SentencePiece,
    "Sequence": _sequence,
    "Strip": lambda step: Strip(bool(step["strip_left"]), bool(step["strip_right"])),
    "StripAccents": lambda step: _strip_accents(),
}


def build(step: Step | None) -> Normalizer:
    """The normalizer of a step. Raises: UserError for one that is not known."""
    if step is None:
        return Chain([])
    kind = str(step["type"])
    if kind not in NORMALIZERS:
        raise UserError(f"the normalizer {kind!r} can't be read; known: {', '.join(NORMALIZERS)}")
    return NORMALIZERS[kind](step)


def sentencepiece_as_sequence(step: Step) -> Step | None:
    """The nearest steps that Hugging Face tokenizers knows; maps differ on rare graphemes."""
    steps: list[Step] = []
    if step.get("precompiled_charsmap"):
        steps.append({"type": "Precompiled", "precompiled_charsmap": step["precompiled_charsmap"]})
    if step.get("remove_extra_whitespaces", True):
        steps.append({"type": "Replace", "pattern": {"Regex": "^ +| +$|(?<= ) +"}, "content": ""})
    if step.get("add_dummy_prefix", True):
        steps.append({"type": "Prepend", "prepend": "▁"})
    if step.get("escape_whitespaces", True):
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
    return {"type": "Sequence", "normalizers": steps} if steps else None
