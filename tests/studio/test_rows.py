"""Rows: no character lost, none too wide, breaks where a reader would break."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.studio.rows import Rows, _width

TEXT = st.text(
    st.one_of(st.sampled_from(" \n\tab́あ🙂م"), st.characters(exclude_categories=["Cs"])),
    max_size=300,
)


@settings(max_examples=300, deadline=None)
@given(text=TEXT, columns=st.integers(1, 40))
def test_rows_hold_every_character_once_and_fit(text, columns):
    rows = Rows(text, columns)
    spans = rows.spans(0, len(rows))
    assert "".join(text[a:b] for a, b in spans) == text
    for number, (start, end) in enumerate(spans):
        row = text[start:end]
        assert row and "\n" not in row[:-1]
        assert sum(map(_width, map(ord, row.rstrip("\n")))) <= max(columns, 3)
        assert rows.row_of(start) == rows.row_of(end - 1) == number


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("", []),
        ("\n", ["\n"]),
        ("a\n\nb", ["a\n", "\n", "b"]),
        ("one two three", ["one two ", "three"]),
        ("abcdefghijklmno", ["abcdefghij", "klmno"]),
        ("日本語日本語", ["日本語日本", "語"]),
        ("0123456789\nx", ["0123456789\n", "x"]),
    ],
)
def test_breaks(text, rows):
    found = Rows(text, 10)
    assert [text[a:b] for a, b in found.spans(0, 99)] == rows
    assert found.spans(len(rows), 5) == []


def test_marks_without_end_do_end():
    text = "a" + "\u0301" * 10_000
    rows = Rows(text, 20)
    assert max(b - a for a, b in rows.spans(0, len(rows))) <= 80
    assert unicodedata.combining(text[1])


def test_megabytes_take_a_moment():
    import time

    for text in ("x" * 5_000_000, "word " * 1_000_000, "日本語 text\n" * 500_000):
        started = time.perf_counter()
        assert len(Rows(text, 80)) > 60_000
        assert time.perf_counter() - started < 5
