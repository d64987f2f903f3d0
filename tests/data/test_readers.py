"""Text, Markdown, reStructuredText and source code, in the encodings and states of real files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmworks.core.tables import load_target
from lmworks.data.readers.base import READERS, Read, Unreadable, is_code, reader_for
from lmworks.data.readers.markdown import read_markdown, without_comments
from lmworks.data.readers.rest import read_rest
from lmworks.data.readers.source import read_source
from lmworks.data.readers.text import decode, looks_binary

FRENCH = "Le garçon a mangé une pêche près de la forêt, où l'été s'achève déjà."


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1))
def test_utf_8_and_utf_16_with_a_mark_come_back(text):
    assert decode(b"\xef\xbb\xbf" + text.encode()) == text
    assert decode(text.encode("utf-16")) == text
    if not text.startswith("\ufeff"):
        assert decode(text.encode()) == text


def test_western_single_bytes_are_read():
    assert decode(FRENCH.encode("cp1252")) == FRENCH


def test_line_ends_become_newlines_in_every_encoding():
    for encoding in ("utf-8", "utf-16"):
        assert decode("a\r\nb\rc\n".encode(encoding)) == "a\nb\nc\n"


@pytest.mark.parametrize(
    ("data", "rule", "said"),
    [
        ("Это обычный русский текст, не по-западному.".encode("koi8-r"), "encoding", "byte 0"),
        (
            "plain then 日本語の文章です。".encode("shift_jis"),
            "encoding",
            "not UTF-8 text (byte 11)",
        ),
        (b"Some words, then signs: \xa6\xb1\xb7\xa6", "encoding", "not UTF-8 text (byte 24)"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "binary", "NUL"),
        (b"\xff\xfe" + b"a\0" * 9 + b"a", "encoding", "utf-16"),
        (bytes(range(1, 32)) * 9, "binary", "control characters"),
    ],
)
def test_what_is_no_text_says_why(data, rule, said):
    with pytest.raises(Unreadable) as caught:
        decode(data)
    assert caught.value.rule == rule
    assert said in str(caught.value)


@given(st.binary(max_size=2000))
def test_any_bytes_are_text_or_unreadable(data):
    for target in set(READERS.values()):
        try:
            found = load_target(target)(Path("x"), data)
        except Unreadable as error:
            assert error.rule
            assert str(error)
        else:
            assert isinstance(found, Read)
            found.text.encode("utf-8", "replace")


def test_a_halved_character_at_the_end_of_a_sample_is_text_still():
    assert not looks_binary("é".encode()[:1])
    assert looks_binary(b"GIF89a\0")
    assert looks_binary(b"\xff\xd8\xff\xe1Exif")


def test_every_ending_has_a_reader_and_code_is_known_by_it():
    assert all(callable(reader_for(Path("x" + ending))) for ending in READERS)
    assert reader_for(Path("photo.JPG")) is None
    assert reader_for(Path("NOTES.TXT")) is not None
    assert is_code("src/a.py")
    assert not is_code("pydoc:textwrap")
    assert not is_code("a.md")


def test_markdown_keeps_its_marks_and_loses_front_matter_and_comments():
    page = "---\ntitle: x\n---\n<!-- hidden\n# no -->\n# The *title* ##\n\nText.\n"
    found = read_markdown(Path("a.md"), page.encode())
    assert found.title == "The *title*"
    assert found.text.strip() == "# The *title* ##\n\nText."
    assert read_markdown(Path("a.md"), b"no heading").title == "a.md"


def test_an_open_comment_costs_no_time_and_stays():
    assert without_comments("a<!--b-->c<!--d") == "ac<!--d"
    assert without_comments("<!--" * 200_000) == "<!--" * 200_000


def test_rest_loses_roles_and_comments_and_finds_its_title():
    page = (
        ".. a comment\n   of two lines\n\nWrapping\n========\n\n"
        "Use :func:`wrap <textwrap.wrap>` or :class:`~textwrap.TextWrapper`, see `PyPI "
        "<https://pypi.org>`_::\n\n    ``kept`` as code\n\n.. note::\n   Stays.\n"
    )
    found = read_rest(Path("a.rst"), page.encode())
    assert found.title == "Wrapping"
    assert "Use `wrap` or `textwrap.TextWrapper`, see PyPI:" in found.text
    assert "comment" not in found.text
    assert ".. note::\n   Stays." in found.text


def test_source_is_read_whole_and_minified_code_is_not():
    code = b"def f(x):\n\treturn x\n"
    assert read_source(Path("a.py"), code).text == code.decode()
    with pytest.raises(Unreadable, match="on average"):
        read_source(Path("a.min.js"), b"var a=1;" * 5000)
