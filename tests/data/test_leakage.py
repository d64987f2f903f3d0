"""What training shows is not held out."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lmworks.data.documents import Document, Dropped
from lmworks.data.leakage import Leakage, paragraphs_with_gaps

SHARED = "This paragraph stands in both of the documents.\n\n"
OWN = "This one is the held-out document's alone, and it is a good deal longer than the other.\n\n"


def leaked(train: str, heldout: str) -> Document | Dropped:
    make = [
        Document(id=text[:9], group="g", source="s", title="t", text=text)
        for text in (train, heldout)
    ]
    leakage = Leakage(make[1:])
    assert list(leakage.watch(make[:1])) == make[:1]
    return leakage.without(make[1])


def test_a_shared_paragraph_is_taken_out_whatever_its_spaces_and_case():
    row = leaked("Before.\n\n" + SHARED.upper().replace(" ", "\n"), OWN + SHARED)
    assert isinstance(row, Document)
    assert row.text.strip() == OWN.strip()


def test_a_document_that_is_mostly_shared_is_dropped_with_the_share():
    row = leaked(SHARED * 2 + "More.", SHARED * 3 + "A little of its own.")
    assert isinstance(row, Dropped)
    assert row.rule == "in_training"
    assert "%" in row.evidence


def test_phrases_of_a_few_words_may_be_on_both_sides():
    row = leaked("Return None.\n\n" + SHARED, OWN + "Return None.\n\n")
    assert isinstance(row, Document)
    assert row.text == OWN + "Return None.\n\n"


@given(st.text(alphabet="ab \n\t", max_size=200))
def test_paragraphs_put_together_are_the_text(text):
    assert "".join(paragraphs_with_gaps(text)) == text
