"""Earlier turns, and long attachments, as passages that can be recalled.

A short answer is one passage with its question, without which it says nothing. What is longer is a
passage of its own, and is cut between paragraphs, then between sentences.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from lmworks.inference.memory import Passage, Turn

_LONGEST_WORDS = 80
_SHORT_ANSWER_WORDS = 12


def passages_of(turns: Sequence[Turn]) -> list[Passage]:
    """All of these turns, in order, attachments included."""
    found: list[Passage] = []
    index = 0
    while index < len(turns):
        turn = turns[index]
        answer = turns[index + 1] if index + 1 < len(turns) else None
        if answer is not None and _is_short_exchange(turn, answer):
            text = f"user: {turn.content.strip()} / assistant: {answer.content.strip()}"
            found.append(Passage(text=text, turn_id=turn.id, number=turn.number))
            index += 1
        else:
            for piece in pieces(turn.content):
                text = f"{turn.role}: {piece}"
                found.append(Passage(text=text, turn_id=turn.id, number=turn.number))
        found += passages_of_attachments(turn)
        index += 1
    return found


def _is_short_exchange(turn: Turn, answer: Turn) -> bool:
    """Whether these are a question and an answer that says nothing without it."""
    if (turn.role, answer.role) != ("user", "assistant"):
        return False
    words = len(answer.content.split())
    return words <= _SHORT_ANSWER_WORDS and words + len(turn.content.split()) <= _LONGEST_WORDS


def passages_of_attachments(turn: Turn) -> list[Passage]:
    """The attachments of one turn."""
    return [
        Passage(text=piece, turn_id=turn.id, number=turn.number, source=f"{name}, passage {number}")
        for name, text in turn.attachments
        for number, piece in enumerate(pieces(text), 1)
    ]


def pieces(text: str) -> list[str]:
    """A text in pieces of at most 80 words, cut where paragraphs or sentences end if possible."""
    found: list[str] = []
    waiting: list[str] = []
    size = 0
    for unit in _units(text):
        words = len(unit.split())
        if waiting and size + words > _LONGEST_WORDS:
            found.append(" ".join(waiting))
            waiting, size = [], 0
        waiting.append(unit)
        size += words
    if waiting:
        found.append(" ".join(waiting))
    return found


def sentences(text: str) -> list[str]:
    """The sentences and lines of a text."""
    found = (part.strip() for part in re.split(r"(?<=[.!?。！？])\s+|\n| / (?=assistant: )", text))
    return [part for part in found if part]


def _units(text: str) -> list[str]:
    units: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in re.split(r"(?<=[.!?。！？])\s+|\n", paragraph):
            words = sentence.split()
            for at in range(0, len(words), _LONGEST_WORDS):
                units.append(_bounded(" ".join(words[at : at + _LONGEST_WORDS])))
    return [unit for unit in units if unit]


def _bounded(text: str) -> str:
    return text if len(text) <= 4000 else text[:4000]  # a "word" without end: data, not language
