"""The seam: a rule reads a document and yields pairs whose answers stand in its text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator

from lmworks.data.documents import Document, stable_id
from lmworks.data.readers.rest import without_roles

RULES: dict[str, str] = {
    "docstring": "lmworks.data.drawing.docstring:draw",
    "definition": "lmworks.data.drawing.definition:draw",
    "heading": "lmworks.data.drawing.heading:draw",
    "opening": "lmworks.data.drawing.opening:draw",
}

_NO_ANSWER = re.compile(r"(?:New|Changed|Deprecated|Removed) (?:in|since) version|see also", re.I)
_MARKUP = (">>>", "|", "::", "...", "->", "[]", "{", "```", " = ")
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


def as_subject(text: str) -> str:
    """How a subject stands inside a sentence: a leading article in lower case, no quotes."""
    text = re.sub(r"[\"`]", "", text).strip()
    return re.sub(r"^(?:A|An|The)(?= )", lambda article: article[0].lower(), text)


_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3})(?=[^\s*])([^*]*[^\s*])\1(?![\w*])")
# Only around several words: `__init__` is a name.
_UNDERSCORES = re.compile(r"(?<!\w)__?(?=[^\s_])([^_\s]+(?:\s+[^_\s]+)+)__?(?!\w)")
_IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
_LINK = re.compile(r"\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])")
_CODE = re.compile(r"`{1,2}([^`]+)`{1,2}")
_MAX_CLEANED_CHARACTERS = 5000


def clean(text: str) -> str:
    """A paragraph as one line, without the inline markup of reStructuredText and Markdown.

    Only the first 5,000 characters: no answer is longer, and a paragraph may be a whole book.
    """
    text = " ".join(text[:_MAX_CLEANED_CHARACTERS].split())
    text = _LINK.sub(r"\1", _IMAGE.sub("", without_roles(text)))
    text = _UNDERSCORES.sub(r"\1", _EMPHASIS.sub(r"\2", text))
    return " ".join(_CODE.sub(r"\1", text).split())


_SENTENCE = re.compile(
    r".+?(?:(?<![ .]\w)(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)(?<!\bcf)(?<!\b[DMS]r)(?<!\bMrs)(?<!\bSt)"
    r"(?<!\betc)[.!?][\"')\]]?(?=\s|$)|$)\s*"
)


def sentences(text: str) -> list[str]:
    """Sentences of a cleaned paragraph; common abbreviations and initials end none."""
    return _SENTENCE.findall(text)


_LIST_ITEM = re.compile(r"^\s*(?:[-*+\u2022]|\(?\w{1,2}[.)])\s", re.MULTILINE)


def before_list(paragraph: str) -> str:
    """What stands before the first item of a list."""
    item = _LIST_ITEM.search(paragraph)
    return paragraph[: item.start()] if item else paragraph


def first_sentences(paragraph: str) -> str | None:
    """As many whole sentences as fit into an answer, or None when they make a poor one."""
    answer: list[str] = []
    num_words = 0
    for sentence in sentences(clean(before_list(paragraph))):
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
    if text[-1] not in ".!?" or _NO_ANSWER.match(text) or any(sign in text for sign in _MARKUP):
        return False
    letters = sum(c.isalpha() or c.isspace() for c in text)
    return letters > 0.75 * len(text) and (text[0].isalnum() or text[0] in "\"'")


def paragraphs(text: str) -> list[str]:
    """Blocks between empty lines, in order."""
    return [block for block in re.split(r"\n\s*\n", text) if block.strip()]
