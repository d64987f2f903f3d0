"""Exact duplicates: spaces and case apart, the first one stays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lmworks.data.deduplicate import drop_duplicates
from lmworks.data.documents import Document, Dropped


def test_later_copies_go_and_name_the_first(make_document):
    rows = [
        make_document("One text\nof two lines.", source="a.txt"),
        make_document("Another text.", source="b.txt"),
        make_document("  ONE text of\n\n two lines. ", source="c.txt"),
    ]
    *kept, copy = drop_duplicates(rows)
    assert kept == rows[:2]
    assert isinstance(copy, Dropped)
    assert copy.rule == "duplicate"
    assert "a.txt" in copy.evidence


@given(st.lists(st.text(alphabet="aB \n", max_size=4), max_size=30))
def test_kept_texts_differ_and_nothing_is_lost(texts):
    rows = [
        Document(id=str(i), group="g", source="s", title="t", text=t) for i, t in enumerate(texts)
    ]
    found = list(drop_duplicates(rows))
    kept = [row for row in found if isinstance(row, Document)]
    normal = [" ".join(row.text.split()).casefold() for row in kept]
    assert len(set(normal)) == len(normal)
    assert [row.id for row in found] == [row.id for row in rows]
    assert set(normal) == {" ".join(text.split()).casefold() for text in texts}
