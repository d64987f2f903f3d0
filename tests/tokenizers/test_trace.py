"""The trace ends with the ids of `encode`, and every step is a merge of the vocabulary."""

from __future__ import annotations

import itertools
from pydoc_data.topics import topics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.tokenizers import vocab_txt
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.trace import trace
from lmworks.tokenizers.train import train_bpe

TOKENIZER = train_bpe(list(topics.values())[:30], vocab_size=800)


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.sampled_from(["the " * 90])
)
def test_it_ends_with_the_ids(text):
    found = trace(TOKENIZER, text)
    assert [i for piece in found for i in piece.ids] == TOKENIZER.encode_readable(text)
    assert "".join(piece.piece for piece in found) == text
    ranked = TOKENIZER.vocabulary.model.ranked
    for piece in found:
        before: tuple[int, ...] = ()
        for step, symbols in piece.states():
            if step is not None:
                pair = before[step.place : step.place + 2]
                assert ranked[pair] == (step.rank, step.id)
                others = [ranked[p][0] for p in itertools.pairwise(before) if p in ranked]
                assert step.rank == min(others)
            before = symbols


def test_a_long_word_is_traced_too():
    (piece,) = trace(TOKENIZER, "statement" * 40)
    assert list(piece.ids) == TOKENIZER.encode_readable("statement" * 40)


def test_wordpiece_has_no_merges():
    with pytest.raises(UserError, match="WordPiece has no merges"):
        trace(PipelineTokenizer(vocab_txt.from_texts(["[UNK]", "a"], lowercase=True)), "a")
