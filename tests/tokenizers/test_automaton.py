"""Automata cut as the regular expressions do that they come from."""

from __future__ import annotations

import pytest

from lmworks.tokenizers.automaton import Unsupported, automaton
from lmworks.tokenizers.patterns import PATTERNS, spans_of
from lmworks.tokenizers.unicode_data import unassigned

EXPRESSIONS = [
    *sorted({expression for pattern in PATTERNS.values() for expression in pattern}),
    r"\w+|[^\w\s]+",
    r"(ab|a)(c|bcd)?|x{2,4}y?",
    r"a*b|a",
    r"(?:ab?)+c?|\s",
    r"[^a-z\d]+|[a-c-]|\D",
    r"\s+$|\s|\S+",
    r"a(?=b)|b|[^ab]{3,}",
    r"(?i:k's|It)|\P{L}",
]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_matches_of_regex(expression: str, hard: list[str]) -> None:
    machine = automaton(expression)
    texts = [*hard[:600], *hard[::10], "abcabcdxxyxxxxxy aabb \n ", "K's it IT ſ İt kſ"]
    for text in texts:
        if not unassigned().search(text):  # newer Unicode may know these
            found = [(start, end) for start, end in spans_of(expression, text) if end > start]
            assert list(machine.matches(text)) == found, repr(text)


@pytest.mark.parametrize(
    "expression",
    [r"(a)\1", r"(?<=a)b", r"a+?b", r"a++b", r"a*", r"\p{Han}", r"(?=ab)a", "(a", r"[[:a:]]", "b|"],
)  # fmt: skip
def test_what_is_no_automaton_is_refused(expression: str) -> None:
    with pytest.raises(Unsupported):
        automaton(expression)


def test_states_are_bounded() -> None:
    with pytest.raises(Unsupported, match="too many states"):
        automaton(r"(?:a|b)*a(?:a|b){14}c")
