"""Web pages: main text with and without trafilatura, declared encodings, hostile markup."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import pytest

from lmworks.data.readers.base import Unreadable
from lmworks.data.readers.html import read_html

PAGE = """<!doctype html><html><head><title>Otters &amp; rivers</title>
<style>p { color: red }</style><script>var hidden = "<p>in a script</p>";</script></head>
<body><nav><a href="/">Home</a> <a href="/all">All animals</a></nav>
<article><h1>The otter</h1>
<p>The otter is a mammal that lives along rivers and on the shores of lakes and seas.</p>
<!-- a note to nobody -->
<h2>Food</h2>
<p>It eats mostly fish, and now and then a crab or a frog, which it catches at night.</p>
<ul><li>fish of every size</li><li>crabs and frogs</li></ul>
<p>An otter eats about a seventh of its weight each day, more in a cold winter.</p></article>
<footer>Copyright nobody</footer></body></html>"""


@pytest.fixture(params=["trafilatura", "plain"])
def extractor(request, monkeypatch):
    """Both ways to read a page; None in sys.modules makes an import fail."""
    if request.param == "plain":
        monkeypatch.setitem(sys.modules, "trafilatura", None)
    else:
        pytest.importorskip("trafilatura")
    return request.param


def test_main_text_stays_and_the_frame_goes(extractor):
    found = read_html(Path("otter.html"), PAGE.encode())
    assert found.title == "Otters & rivers"
    assert "# The otter" in found.text
    assert "## Food" in found.text
    assert "catches at night" in found.text
    assert "crabs and frogs" in found.text
    for gone in ("script", "color: red", "All animals", "Copyright", "note to nobody", "<"):
        assert gone not in found.text


def test_paragraphs_are_parted_by_empty_lines(extractor):
    text = read_html(Path("otter.html"), PAGE.encode()).text
    assert "shores of lakes and seas.\n\n" in text


def test_a_declared_encoding_is_used_and_a_wrong_one_is_not(extractor):
    head = '<html><head><meta charset="{}"></head><body><p>{}</p></body></html>'
    japanese = "カワウソは川や湖の岸に住み、魚を食べる動物である。夜に狩りをする。"
    page = head.format("Shift_JIS", japanese)
    assert japanese in read_html(Path("a.html"), page.encode("shift_jis")).text
    assert japanese in read_html(Path("a.html"), page.encode()).text


def test_a_page_without_text_says_so(extractor):
    page = b"<html><head><title>App</title></head><body><script>run()</script></body></html>"
    with pytest.raises(Unreadable) as caught:
        read_html(Path("app.html"), page)
    assert caught.value.rule == "no_text"


@pytest.mark.parametrize(
    "page",
    ["<!--" * 50_000, "<a b='" * 20_000, "<" * 100_000, "<![foo[" * 9, "<div>" * 20_000, "<!" * 9],
    ids=["comments", "quotes", "angles", "declaration", "deep", "marked"],
)
@pytest.mark.parametrize("end", ["", "x>"])
def test_hostile_markup_ends_soon(extractor, page, end):
    started = time.monotonic()
    with contextlib.suppress(Unreadable):
        read_html(Path("x.html"), f"<p>Some words to find.</p>{page}{end}".encode())
    assert time.monotonic() - started < 5


def test_unclosed_navigation_hides_no_more_than_its_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    page = b"<body><div><nav><ul><li>Menu</nav></div><p>After the menu.</p>"
    assert read_html(Path("x.html"), page).text == "After the menu."


def test_an_open_comment_hides_the_rest(extractor):
    page = b"<body><p>These words are shown to all.</p><!-- these are for nobody"
    assert read_html(Path("x.html"), page).text == "These words are shown to all."
