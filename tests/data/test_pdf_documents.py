"""PDF files written by hand: text, title, and each reason why one gives nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lmworks.core.errors import MissingExtra
from lmworks.data.readers.base import Unreadable
from lmworks.data.readers.pdf import read_pdf

PAGES = [["1. The otter", "The otter is a mammal that lives", "along rivers."], ["Second page."]]


@pytest.fixture
def pdfium():
    return pytest.importorskip("pypdfium2")


def test_text_of_all_pages_and_the_title(pdfium, pdf):
    found = read_pdf(Path("a.pdf"), pdf(PAGES, title="On otters"))
    assert found.title == "On otters"
    assert "The otter is a mammal that lives\nalong rivers." in found.text
    assert "\n\nSecond page." in found.text
    assert "\r" not in found.text


def test_without_a_title_the_file_name_stands(pdfium, pdf):
    assert read_pdf(Path("a.pdf"), pdf(PAGES)).title == "a.pdf"


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda pdf: pdf(PAGES, encrypted=True), "locked"),
        (lambda pdf: pdf(PAGES)[:200], "broken"),
        (lambda pdf: b"%PDF-1.4\nnothing", "broken"),
        (lambda pdf: b"", "broken"),
        (lambda pdf: pdf([[]]), "no_text_layer"),
    ],
    ids=["encrypted", "cut", "nothing", "empty", "scan"],
)
def test_why_a_file_gives_nothing(pdfium, pdf, make, rule):
    with pytest.raises(Unreadable) as caught:
        read_pdf(Path("a.pdf"), make(pdf))
    assert caught.value.rule == rule


def test_a_missing_package_is_named(monkeypatch, pdf):
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(MissingExtra, match=r'a\.pdf.*pypdfium2: pip install "lmworks\[data\]"'):
        read_pdf(Path("a.pdf"), pdf(PAGES))
