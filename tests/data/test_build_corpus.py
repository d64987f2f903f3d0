"""The stage: folder in, corpus out, with figures that add up and errors a person can mend."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmworks.core.errors import UserError
from lmworks.data.corpus import CorpusConfig, build_corpus
from lmworks.data.documents import Document, read_documents, read_dropped
from lmworks.data.filters.config import QualityConfig
from lmworks.data.why import explain

BOOK = "\n\n".join(
    f"Chapter {i} tells how the otter went to the {place} and what it found there, namely "
    f"{i * 7} stones, {i * 3} fish and a boat with {i} holes in its side."
    for i, place in enumerate(["river", "lake", "sea", "marsh", "well"] * 9)
)


def build(folder: Path, out: Path, **config: object):
    return build_corpus(CorpusConfig(folder=str(folder), **config), out=out)


def sides(out: Path) -> tuple[list[Document], list[Document]]:
    return list(read_documents(out / "train.jsonl")), list(read_documents(out / "heldout.jsonl"))


def test_a_folder_becomes_a_corpus_and_the_figures_add_up(prose_folder, tmp_path):
    (prose_folder / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (prose_folder / "copy.txt").write_bytes((prose_folder / "otter-marsh.txt").read_bytes())
    made = build(prose_folder, tmp_path / "corpus")
    train, heldout = sides(made.path)
    dropped = list(read_dropped(made.path / "dropped.jsonl"))
    assert len(train) + len(heldout) == made.metrics["num_documents"] == 72
    assert len(heldout) == made.metrics["num_heldout"] > 0
    assert made.metrics["dropped_by_rule"] == {"binary": 1, "duplicate": 1}
    assert len(dropped) == made.metrics["num_dropped"] == 2
    assert made.metrics["train_bytes"] == sum(d.num_bytes for d in train)
    assert made.metrics["heldout_bytes"] == sum(d.num_bytes for d in heldout)
    assert not {d.group for d in train} & {d.group for d in heldout}
    assert [d.source for d in train] != sorted(d.source for d in train)


def test_same_folder_same_bytes_and_another_seed_another_split(prose_folder, tmp_path):
    files = ("train.jsonl", "heldout.jsonl", "dropped.jsonl")
    one, two, other = (
        build(prose_folder, tmp_path / name, seed=seed) for name, seed in zip("abc", (0, 0, 1))
    )
    assert [(one.path / f).read_bytes() for f in files] == [
        (two.path / f).read_bytes() for f in files
    ]
    assert sides(one.path)[1] != sides(other.path)[1]


def test_a_document_that_is_added_moves_no_other(prose_folder, tmp_path):
    before = sides(build(prose_folder, tmp_path / "before").path)
    (prose_folder / "wolf.txt").write_text("The wolf is new here and knows none of the others yet.")
    after = sides(build(prose_folder, tmp_path / "after").path)
    for old, new in zip(before, after):
        assert [d for d in new if d.source != "wolf.txt"] == old


def test_an_unchanged_folder_is_not_read_again_even_with_the_corpus_inside(prose_folder):
    out = prose_folder / "runs" / "corpus"
    assert not build(prose_folder, out).cached
    assert build(prose_folder, out).cached
    (prose_folder / "film.mp4").write_bytes(b"\0")
    (prose_folder / "new.txt").write_text("Something new to read in here.")
    with pytest.raises(UserError, match="--replace"):
        build(prose_folder, out)


@pytest.mark.parametrize("seed", range(8))
def test_one_book_is_split_by_paragraphs(tmp_path, seed):
    book = tmp_path / "book.txt"
    book.write_text(BOOK)
    train, heldout = sides(build(book, tmp_path / "corpus", seed=seed).path)
    assert train
    assert heldout
    trained, held = (
        {p.strip() for d in side for p in d.text.split("\n\n") if p} for side in (train, heldout)
    )
    assert not trained & held
    assert trained | held == set(BOOK.split("\n\n"))


def test_a_refrain_is_not_held_out(tmp_path):
    refrain = "And the river sang its song to the otter again."
    book = tmp_path / "song.txt"
    book.write_text(f"\n\n{refrain}\n\n".join(BOOK.split("\n\n")))
    for seed in range(5):
        out = tmp_path / str(seed)
        train, heldout = sides(build(book, out, seed=seed).path)
        assert any(refrain in d.text for d in train)
        assert not any(refrain in d.text for d in heldout)


def test_a_limit_keeps_about_that_much_and_a_larger_one_keeps_the_same_and_more(
    prose_folder, tmp_path
):
    whole = build(prose_folder, tmp_path / "whole").metrics
    size = (whole["train_bytes"] + whole["heldout_bytes"]) / 1e6
    kept = []
    for share in (0.5, 0.8):
        made = build(prose_folder, tmp_path / str(share), max_megabytes=size * share)
        documents = [d.id for side in sides(made.path) for d in side]
        assert abs(len(documents) / 72 - share) < 0.2
        assert made.metrics["dropped_by_rule"]["over_limit"] == 72 - len(documents)
        kept.append(set(documents))
    assert kept[0] < kept[1]


def test_limits_of_quality_are_part_of_what_is_made(prose_folder, tmp_path):
    (prose_folder / "short.txt").write_text("Six words are a short text.")
    assert build(prose_folder, tmp_path / "a").metrics["num_dropped"] == 0
    strict = build(prose_folder, tmp_path / "b", quality=QualityConfig(min_words=10))
    assert strict.metrics["dropped_by_rule"] == {"too_short": 1}
    assert (
        strict.manifest["fingerprint"]
        != build(prose_folder, tmp_path / "a").manifest["fingerprint"]
    )


def test_explain_says_why_a_document_is_not_there(prose_folder, tmp_path):
    (prose_folder / "copy.txt").write_bytes((prose_folder / "otter-marsh.txt").read_bytes())
    (prose_folder / "photo.png").write_bytes(b"\x89PNG\0")
    corpus = build(prose_folder, tmp_path / "corpus").path
    (row,) = explain(corpus, "photo.png")
    assert row.rule == "binary"
    assert explain(corpus, row.id) == [row]
    assert [r.source for r in explain(corpus, "otter")] == ["otter-marsh.txt"]
    assert explain(corpus, "heron-marsh.txt") == []
    with pytest.raises(UserError, match="is no corpus"):
        explain(tmp_path, "x")
    (corpus / "dropped.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"dropped\.jsonl, line 1"):
        explain(corpus, "x")


def error(folder: Path, tmp_path: Path, **config: object) -> str:
    with pytest.raises(UserError) as caught:
        build(folder, tmp_path / "out", **config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_an_empty_folder(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    assert "empty holds no files" in error(folder, tmp_path)


def test_a_folder_of_pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}.png").write_bytes(b"\x89PNG\r\n\x1a\n\0")
    said = error(folder, tmp_path)
    assert "holds no readable text: 12 files dropped: 12 binary (00.png, for one: " in said


def test_three_bytes(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    assert "holds no readable text: 1 file dropped: 1 too short" in error(
        tmp_path / "a.txt", tmp_path
    )


def test_too_little_text(tmp_path):
    (tmp_path / "a.txt").write_text("Only these few words stand in here.")
    assert "too little text, 35 bytes: at least 2000" in error(tmp_path / "a.txt", tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    assert "neither a file or folder" in error(tmp_path / "nowhere", tmp_path)


def test_no_permission(prose_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != prose_folder)
    assert "no permission to read" in error(prose_folder, tmp_path)


def test_nothing_but_one_paragraph(tmp_path):
    (tmp_path / "a.txt").write_text("The same nine words stand here again and again.\n\n" * 9 * 9)
    assert "repeat" in error(tmp_path / "a.txt", tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("heldout_share", 0.0),
        ("heldout_share", 1.0),
        ("heldout_share", float("nan")),
        ("max_megabytes", -1.0),
        ("max_megabytes", float("inf")),
    ],
)
def test_settings_out_of_range_are_named(prose_folder, tmp_path, name, value):
    assert error(prose_folder, tmp_path, **{name: value}).startswith(f"{name} = {value}")


def test_another_pythons_documentation_can_not_be_had(tmp_path):
    with pytest.raises(UserError, match=r"python = 2\.7, but this is Python 3"):
        build_corpus(CorpusConfig(python="2.7"), out=tmp_path / "out")


def test_the_rows_are_json_with_the_columns_of_the_format(prose_folder, tmp_path):
    corpus = build(prose_folder, tmp_path / "corpus").path
    row = json.loads((corpus / "train.jsonl").read_text().splitlines()[0])
    assert list(row) == ["id", "group", "source", "title", "text"]
