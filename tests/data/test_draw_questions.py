"""The stage: corpus in, questions out, held-out ones from held-out documents only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmworks.core.errors import UserError
from lmworks.data.corpus import CorpusConfig, build_corpus
from lmworks.data.documents import write_documents
from lmworks.data.questions import QuestionsConfig, draw_questions


@pytest.fixture
def corpus(prose_folder: Path, tmp_path: Path) -> Path:
    """Plain prose: no headings, one definition pattern a file."""
    config = CorpusConfig(folder=str(prose_folder), heldout_share=0.2)
    return build_corpus(config, out=tmp_path / "corpus").path


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def draw(corpus: Path, out: Path, **config: object):
    return draw_questions(QuestionsConfig(corpus=str(corpus), **config), out=out)


def test_rows_are_conversations_and_the_split_is_the_corpus_own(corpus, tmp_path):
    made = draw(corpus, tmp_path / "questions")
    train, heldout = rows(made.path / "train.jsonl"), rows(made.path / "heldout.jsonl")
    assert len(train) == made.metrics["num_train"] > 20
    assert len(heldout) == made.metrics["num_heldout"] > 0
    assert sum(made.metrics["by_rule"].values()) == len(train) + len(heldout)
    for side, other in ((train, "heldout"), (heldout, "train")):
        groups = {row["group"] for row in rows(corpus / f"{other}.jsonl")}
        for row in side:
            assert [m["role"] for m in row["messages"]] == ["user", "assistant"]
            assert all(m["content"].strip() for m in row["messages"])
            assert row["document"] not in groups
    ids = [row["id"] for row in train + heldout]
    assert len(set(ids)) == len(ids)
    asked = [row["messages"][0]["content"].casefold() for row in train + heldout]
    assert len(set(asked)) == len(asked)


def test_every_answer_stands_in_its_document(corpus, tmp_path):
    texts = {
        row["group"]: " ".join(row["text"].split())
        for side in ("train", "heldout")
        for row in rows(corpus / f"{side}.jsonl")
    }
    made = draw(corpus, tmp_path / "questions")
    for row in rows(made.path / "train.jsonl"):
        assert row["messages"][1]["content"] in texts[row["document"]]


def test_same_corpus_same_bytes_and_fewer_when_asked(corpus, tmp_path):
    one, two = draw(corpus, tmp_path / "a"), draw(corpus, tmp_path / "b")
    for name in ("train.jsonl", "heldout.jsonl"):
        assert (one.path / name).read_bytes() == (two.path / name).read_bytes()
    few = draw(corpus, tmp_path / "c", max_questions=7)
    assert rows(few.path / "train.jsonl") == rows(one.path / "train.jsonl")[:7]
    assert few.metrics["num_heldout"] == one.metrics["num_heldout"]
    other = draw(corpus, tmp_path / "d", seed=1)
    assert rows(other.path / "train.jsonl") != rows(one.path / "train.jsonl")


def test_a_question_of_both_sides_is_asked_in_the_held_out_one(make_document, tmp_path):
    corpus = tmp_path / "corpus"
    both = "An otter is a mammal that lives along rivers.\n\n"
    own = "A heron is a bird that stands in the water.\n\n"
    write_documents(corpus / "train.jsonl", [make_document(both + own, source="a.txt")])
    write_documents(corpus / "heldout.jsonl", [make_document(both, source="b.txt")])
    made = draw(corpus, tmp_path / "questions")
    (asked,) = rows(made.path / "heldout.jsonl")
    assert "otter" in asked["messages"][0]["content"]
    trained = [row["messages"][0]["content"] for row in rows(made.path / "train.jsonl")]
    assert asked["messages"][0]["content"] not in trained
    assert len(trained) == 1


def test_prose_without_definitions_falls_back_and_says_so(prose_folder, tmp_path):
    for path in prose_folder.iterdir():
        text = path.read_text().replace(" is a small animal that lives", " sleeps by day")
        path.write_text(text.replace("\n\n", " "))
    corpus = build_corpus(CorpusConfig(folder=str(prose_folder)), out=tmp_path / "corpus").path
    made = draw(corpus, tmp_path / "questions")
    assert set(made.metrics["by_rule"]) == {"opening"}
    assert made.metrics["num_train"] >= 8


def test_where_good_rules_find_enough_the_weak_one_is_left_out(tmp_path):
    folder = tmp_path / "code"
    folder.mkdir()
    for number in range(30):
        functions = "\n".join(
            f'def f{number}_{i}(x):\n    """Give back the number {number} and {i} times x."""\n'
            for i in range(9)
        )
        (folder / f"m{number}.py").write_text(functions)
    (folder / "story.txt").write_text(
        "The otter went to the river at night. It found no fish. " * 3
    )
    corpus = build_corpus(CorpusConfig(folder=str(folder)), out=tmp_path / "corpus").path
    assert set(draw(corpus, tmp_path / "questions").metrics["by_rule"]) == {"docstring"}


def test_errors_say_what_to_do(corpus, tmp_path, prose_folder):
    with pytest.raises(UserError, match=r"is no corpus: train\.jsonl is missing"):
        draw(prose_folder, tmp_path / "a")
    with pytest.raises(UserError, match="max_questions = -1"):
        draw(corpus, tmp_path / "b", max_questions=-1)
    (corpus / "train.jsonl").write_text(
        '{"id": "1", "group": "g", "source": "s", "title": "t", "text": "one two three"}\n'
    )
    with pytest.raises(UserError, match="no question could be drawn"):
        draw(corpus, tmp_path / "c")
