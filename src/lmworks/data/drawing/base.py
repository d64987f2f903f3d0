"""The seam: a rule reads a document and yields pairs whose answers stand in its text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator

from lmworks.data.documents import Document, stable_id

RULES: dict[str, str] = {
    "docstring": "lmworks.data.drawing.docstring:draw",
    "definition": "lmworks.data.drawing.definition:draw",
    "heading": "lmworks.data.drawing.heading:draw",
    "opening": "lmworks.data.drawing.opening:draw",
}

MIN_ANSWER_WORDS, MAX_ANSWER_WORDS = 4, 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """A question and the answer that the document gives."""

    question: str
    answer: str


Rule = Callable[[Document], Iterator[Pair]]


def phrase(forms: tuple[str, ...], subject: str) -> str:
    """One of several ways to ask, chosen by the subject so that it never changes."""
    return forms[int(stable_id(subject), 16) % len(forms)].format(subject)


def clean(text: str) -> str:
    """A paragraph as one line, without the markup of reStructuredText and Markdown."""
    text = re.sub(r":[a-z:]+:`([^`<]+?)(?:\s*<[^>]*>)?`", r"\1", text)
    text = re.sub(r'"([\w.()]+)"', r"\1", text)  # the reference manual quotes code
    text = re.sub(r"`{1,2}([^`]+)`{1,2}_{0,2}", r"\1", text)
    text = re.sub(r"\*{1,2}([^*\s][^*]*)\*{1,2}", r"\1", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return " ".join(text.split())


def sentences(text: str) -> list[str]:
    """Sentences of a cleaned paragraph. A dot inside a name or after a single letter ends none."""
    return re.findall(r".+?(?:(?<!\b\w)(?<!e\.g)(?<!i\.e)[.!?](?=\s|$)|$)\s*", text)


def first_sentences(paragraph: str) -> str | None:
    """As many whole sentences as fit into an answer, or None when they make a poor one."""
    answer: list[str] = []
    num_words = 0
    for sentence in sentences(clean(paragraph)):
        num_words += len(sentence.split())
        if num_words > MAX_ANSWER_WORDS or len(answer) == 3:
            break
        answer.append(sentence.strip())
    text = " ".join(answer).strip()
    return text if is_good_answer(text) else None


def is_good_answer(text: str) -> bool:
    """Prose of a fair length that ends like a sentence: no lists, prompts or tables."""
    words = text.split()
    if not MIN_ANSWER_WORDS <= len(words) <= MAX_ANSWER_WORDS:
        return False
    if text[-1] not in ".!?" or ">>>" in text or "|" in text or "::" in text or "..." in text:
        return False
    letters = sum(c.isalpha() or c.isspace() for c in text)
    return letters > 0.75 * len(text) and (text[0].isalnum() or text[0] in "\"'")


def paragraphs(text: str) -> list[str]:
    """Blocks between empty lines, in order."""
    return [block for block in re.split(r"\n\s*\n", text) if block.strip()]
