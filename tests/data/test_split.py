"""Held-out text: never a group or paragraph on both sides, and never moved by what is added."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from lmworks.data.documents import Document
from lmworks.data.split import cut, heldout_groups, shuffled, split_by_paragraphs

names = st.text(alphabet="abcdefghij", min_size=1, max_size=4)
groups = st.dictionaries(names, st.integers(1, 10_000), min_size=2, max_size=60)
seeds = st.integers(0, 99)


@given(sizes=groups, share=st.floats(0.01, 0.99), seed=seeds)
def test_some_are_held_out_and_some_are_not(sizes, share, seed):
    chosen = heldout_groups(sizes, share=share, seed=seed)
    assert chosen < set(sizes)
    assert chosen


@given(sizes=groups, share=st.floats(0.01, 0.5), seed=seeds)
def test_the_order_of_the_groups_does_not_matter(sizes, share, seed):
    backwards = dict(reversed(list(sizes.items())))
    assert heldout_groups(sizes, share=share, seed=seed) == heldout_groups(
        backwards, share=share, seed=seed
    )


@given(known=st.sets(names, min_size=30, max_size=60), added=names, seed=seeds)
def test_a_group_that_is_added_moves_no_other(known, added, seed):
    assume(added not in known)
    before = heldout_groups(dict.fromkeys(known, 100), share=0.2, seed=seed)
    assume(len(before) > 1)  # one alone may be there only because there must be one
    after = heldout_groups(dict.fromkeys([*known, added], 100), share=0.2, seed=seed)
    assert after - {added} == before


def test_a_giant_is_not_held_out_while_there_are_others():
    sizes = {f"g{i}": 10 for i in range(30)} | {"giant": 10_000}
    for seed in range(50):
        assert "giant" not in heldout_groups(sizes, share=0.5, seed=seed)


def test_the_share_is_met_on_average():
    sizes = {f"g{i}": 100 for i in range(5000)}
    assert abs(len(heldout_groups(sizes, share=0.06, seed=0)) / 5000 - 0.06) < 0.01


paragraphs = st.lists(
    st.text(alphabet="abc .\n", min_size=1, max_size=300).filter(str.strip), min_size=1, max_size=40
)


@given(paragraphs)
def test_pieces_put_together_are_the_document(parts):
    whole = Document(id="1", group="g", source="s", title="t", text="\n\n".join(parts))
    pieces = cut(whole)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert len({piece.group for piece in pieces}) == len(pieces)
    assert len({piece.id for piece in pieces}) == len(pieces)


def test_a_text_without_paragraphs_is_cut_too(make_document):
    for text in ("One sentence follows another. " * 400, "x" * 9000, "水獭生活在河边。" * 500):
        pieces = cut(make_document(text))
        assert len(pieces) > 5
        assert "".join(piece.text for piece in pieces) == text


@given(parts=paragraphs, seed=seeds)
def test_both_sides_of_one_document_make_up_the_whole(parts, seed):
    whole = Document(id="1", group="g", source="s", title="t", text="\n\n".join(parts))
    train, heldout = split_by_paragraphs([whole], share=0.2, seed=seed)
    assert sum(len(d.text) for d in [*train, *heldout]) == len(whole.text)
    assert not {d.group for d in train} & {d.group for d in heldout}
    assert len({d.id for d in [*train, *heldout]}) == len(train) + len(heldout)


def test_neighbours_on_the_same_side_are_joined(make_document):
    text = "\n\n".join(f"Paragraph {i} " + "speaks of something. " * 20 for i in range(60))
    train, heldout = split_by_paragraphs([make_document(text)], share=0.06, seed=0)
    assert heldout
    assert len(train) <= len(heldout) + 1
    assert all(document.text in text for document in [*train, *heldout])


def test_the_order_depends_on_ids_and_seed_alone(make_document):
    rows = [make_document("x", source=str(i)) for i in range(50)]
    assert shuffled(rows, seed=1) == shuffled(rows[::-1], seed=1)
    assert shuffled(rows, seed=1) != shuffled(rows, seed=2)
    assert shuffled(rows, seed=1) != rows


def test_however_large_the_share_something_is_left_to_learn_from():
    sizes = {f"g{i}": 100 for i in range(5)}
    for seed in range(20):
        assert 1 <= len(heldout_groups(sizes, share=0.99, seed=seed)) < 5


def test_a_small_corpus_holds_out_enough_groups_for_an_interval() -> None:
    sizes = {f"file-{number}": 1000 for number in range(60)}
    counts = [len(heldout_groups(sizes, share=0.02, seed=seed)) for seed in range(40)]
    assert 6.5 < sum(counts) / len(counts) < 9.5, "8 of 60 are meant, not 2 in 100"
    large = {f"file-{number}": 1000 for number in range(4000)}
    held = heldout_groups(large, share=0.02, seed=0)
    assert 50 < len(held) < 120, "a large corpus keeps the share that was asked for"
