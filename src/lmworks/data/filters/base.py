"""The seam: a filter says why a document should go, or nothing.

The rules are those of Gopher (Rae et al. 2021, arXiv 2112.11446, table A1) and C4 (Raffel et al.
2020, section 2.2); the limits and their reasons stand in `config.py`. What counts as a word is the
same for all of them: see `Words`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

from lmworks.core.tables import load_target
from lmworks.data.documents import Document, Dropped
from lmworks.data.filters.config import Limits, QualityConfig
from lmworks.data.readers.base import is_code

FILTERS: dict[str, str] = {
    "too_short": "lmworks.data.filters.length:too_short",
    "word_length": "lmworks.data.filters.words:word_length",
    "few_words": "lmworks.data.filters.words:few_words",
    "symbols": "lmworks.data.filters.words:symbols",
    "repeated_lines": "lmworks.data.filters.repetition:repeated_lines",
    "repeated_words": "lmworks.data.filters.repetition:repeated_words",
    "boilerplate": "lmworks.data.filters.boilerplate:boilerplate",
}

# Thai, Lao, Myanmar, Khmer, kana, Han: no spaces between words, so each character counts as one.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """A document as the filters see it: its words are counted once."""

    document: Document
    quality: QualityConfig

    @cached_property
    def words(self) -> list[str]:
        """What spaces part; characters of scripts that use none count one by one."""
        return _WORD.findall(self.document.text)

    @cached_property
    def spaced(self) -> bool:
        """Whether spaces part most of the text; if not, the length of words says nothing."""
        return len(self.document.text.split()) > 0.5 * len(self.words)

    @property
    def limits(self) -> Limits:
        """The limits for this kind of text."""
        return self.quality.code if is_code(self.document.source) else self.quality.prose


Filter = Callable[[Judged], str | None]  # the evidence, or None to keep


def drop_poor(
    rows: Iterable[Document | Dropped], quality: QualityConfig
) -> Iterator[Document | Dropped]:
    """Each document, or the first rule that drops it and the evidence."""
    filters: dict[str, Filter] = {name: load_target(target) for name, target in FILTERS.items()}
    for row in rows:
        yield row if isinstance(row, Dropped) else _judge(row, quality, filters)


def _judge(
    document: Document, quality: QualityConfig, filters: dict[str, Filter]
) -> Document | Dropped:
    judged = Judged(document=document, quality=quality)
    for name, judge in filters.items():
        if evidence := judge(judged):
            return Dropped.of(document, name, evidence)
    return document
