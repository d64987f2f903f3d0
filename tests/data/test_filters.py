"""Quality rules: what each one drops, and what none may drop."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmworks.data.documents import Document, Dropped
from lmworks.data.filters.base import FILTERS, drop_poor
from lmworks.data.filters.config import QualityConfig

ENGLISH = "The otter lives along rivers, where it hunts fish by night and sleeps by day. " * 2
CHINESE = "水獭是一种生活在河流和湖泊沿岸的哺乳动物,主要以鱼类为食。"
THAI = "นากเป็นสัตว์เลี้ยงลูกด้วยนมที่อาศัยอยู่ริมแม่น้ำ"
CODE = "def f(x):\n    # add\n    return x + 1\n\n\nfor i in range(3):\n    print(f(i))\n"
DOCSTRING = "textwrap.dedent(text)\n\nRemove any common leading whitespace.\n"


def rule(text: str, source: str = "a.txt", quality: QualityConfig | None = None) -> str | None:
    document = Document(id="1", group="g", source=source, title="t", text=text)
    (row,) = drop_poor([document], quality or QualityConfig())
    return row.rule if isinstance(row, Dropped) else None


@pytest.mark.parametrize(
    ("text", "source"),
    [
        (ENGLISH, "a.txt"),
        (CHINESE, "a.txt"),
        (THAI, "a.txt"),
        (CODE, "a.py"),
        (DOCSTRING, "pydoc:textwrap"),
        ("# Title\n\n## One\n\n- a list of things\n", "a.md"),
        ("static int\nadd(int a, int b)\n{\n\treturn a + b;\n}\n\n" * 4, "a.c"),
        ("How lorem ipsum dolor sit amet came to stand for text. " + ENGLISH * 12, "a.txt"),
        ('PHRASES = ["lorem ipsum dolor sit amet", "enable javascript"]\n' * 2, "a.py"),
    ],
)
def test_text_stays(text, source):
    assert rule(text, source) is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "too_short"),
        ("only four words here", "too_short"),
        ("QmFzZTY0" * 10 + " " + " ".join(["VGV4dCBpbiBiYXNlIDY0" * 4] * 9), "word_length"),
        ("a b c d e f g h i j k l m n o p", "word_length"),
        ("17.0 23.1 99.5 100.2 3.14 2.71 4.2 1e9 1.5 0.001 12", "few_words"),
        ("go on ... more ... still more ... # # # # # # #", "symbols"),
        ("the same line here\n" * 12 + "another line\n", "repeated_lines"),
        (" ".join(["buy it now"] * 30), "repeated_words"),
        ("Lorem ipsum dolor sit amet, consectetur adipiscing elit.", "boilerplate"),
        ("Please enable JavaScript to view this page, thank you.", "boilerplate"),
    ],
)
def test_what_no_reader_calls_text_goes(text, wanted):
    assert rule(text) == wanted


def test_a_drawn_table_repeats_its_sides_only():
    generator = random.Random(0)
    names = [f"{generator.choice('abcdef')}{n} word{n}" for n in range(40)]
    assert rule("\n".join(f"| {name} | yes | |" for name in names)) is None


def test_limits_can_be_set():
    assert rule(DOCSTRING, quality=QualityConfig(min_words=50)) == "too_short"


@given(st.text(max_size=400))
def test_any_text_is_judged_with_evidence(text):
    document = Document(id="1", group="g", source="a.txt", title="t", text=text)
    (row,) = drop_poor([document], QualityConfig())
    if isinstance(row, Dropped):
        assert row.rule in FILTERS
        assert row.evidence
    else:
        assert row is document


def test_what_is_dropped_already_passes_through():
    row = Dropped(id="1", source="s", title="t", rule="binary", evidence="e")
    assert list(drop_poor([row], QualityConfig())) == [row]
