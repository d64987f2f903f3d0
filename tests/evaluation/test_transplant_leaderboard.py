"""The leaderboard of transplants: passages, the order, and the stage on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.data.documents import Document, write_documents
from lmworks.evaluation.scores import Scores
from lmworks.evaluation.transplant_leaderboard import (
    TransplantLeaderboardConfig,
    measure,
    read_passages,
    transplant_leaderboard,
)
from lmworks.evaluation.transplant_ranking import BEFORE, plain, rank, sentence, table
from lmworks.models.save import save_model
from lmworks.models.transplant.base import METHODS
from lmworks.tokenizers.extend import extend

TEXTS = [text for _, text in sorted(topics.items())]


def config(**settings) -> TransplantLeaderboardConfig:
    return TransplantLeaderboardConfig(model="m", tokenizer="t", heldout="h", **settings)


def document(text: str, group: str = "g") -> Document:
    return Document(id=group, group=group, source="s", title="t", text=text)


def scores(bits: list[float]) -> Scores:
    number = len(bits)
    groups = np.array([f"g{i}" for i in range(number)])
    return Scores(bits=np.array(bits), num_bytes=np.full(number, 10), groups=groups)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab \n\té\U0001f600", max_size=900), st.integers(50, 120))
def test_passages_hold_the_text(tmp_path_factory, text: str, most: int) -> None:
    folder = tmp_path_factory.mktemp("corpus")
    write_documents(folder / "heldout.jsonl", [document(text), document("x")])
    passages = read_passages(folder, config(max_passages=0, passage_bytes=most))
    joined = "".join("".join(p.text.split()) for p in passages if p.group == "g")
    assert joined == "".join(text.split()) + "x"
    # A passage keeps white space that its last part brings along.
    assert all(len(p.text.encode()) <= most for p in passages)
    assert len({p.id for p in passages}) == len(passages) or "x" in joined


def test_a_draw_of_passages(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS[:4]))
    few = read_passages(tmp_path / "a.txt", config(max_passages=7))
    every = read_passages(tmp_path / "a.txt", config(max_passages=0))
    assert len(few) == 7 and [p for p in every if p in few] == few
    assert len({p.group for p in few}) == 7  # passages of a plain file are drawn one by one
    assert few == read_passages(tmp_path / "a.txt", config(max_passages=7))
    assert few != read_passages(tmp_path / "a.txt", config(max_passages=7, seed=1))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "holds no text to measure on"),
        (" \n ", {}, "holds no text to measure on"),
        ("x", {"passage_bytes": 3}, "passage_bytes must be at least 50"),
        ("x", {"max_passages": -1}, "max_passages 0"),
    ],
)
def test_bad_input(tmp_path: Path, text: str, options: dict, message: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_passages(tmp_path / "a.txt", config(**options))


def test_the_order_and_the_intervals(tokenizer) -> None:
    noise = np.random.default_rng(0).normal(0, 1, 40)
    found = {
        BEFORE: scores(list(20 + noise)),
        "bad": scores(list(40 + noise)),
        "good": scores(list(25 + noise)),
        "close": scores(list(25.001 + noise + np.random.default_rng(1).normal(0, 0.3, 40))),
    }
    passages = [document("two words", f"g{i}") for i in range(40)]
    entries = rank(found, passages, {}, tokenizer)
    names = [entry.name for entry in entries]
    assert names[0] == BEFORE and names[3] == "bad"
    bad = entries[3]
    assert bad.versus_before.estimate == pytest.approx(2.0)
    assert bad.versus_before.low == pytest.approx(2.0) == bad.versus_before.high  # paired
    assert entries[1].versus_best is None and entries[0].versus_before is None
    assert entries[0].perplexity_per_byte == pytest.approx(2 ** entries[0].bits_per_byte.estimate)
    words = 2 ** (found["bad"].bits.sum() / 80)
    assert bad.perplexity_per_word == pytest.approx(words)
    assert "no difference" in sentence(entries) and "bad" not in sentence(entries)
    clear = rank({k: found[k] for k in (BEFORE, "bad", "good")}, passages, {}, tokenizer)
    assert "good begins best: 2.494 bits per byte (+0.500" in sentence(
        clear
    ) and "1.500 less than bad" in sentence(clear)
    assert len(table(clear).splitlines()) == 7


def test_few_passages_give_no_interval(tokenizer) -> None:
    found = {BEFORE: scores([20, 21]), "a": scores([25, 26]), "b": scores([30, 31])}
    entries = rank(found, [document("x", f"g{i}") for i in range(2)], {}, tokenizer)
    assert "no difference to b is shown" in sentence(entries) and "too few" in table(entries)
    assert plain(entries[1])["versus_before"] == {"estimate": 0.5, "low": None, "high": None}
    assert sentence(entries[:1]) == "No method was measured."


def test_a_tokenizer_put_into_its_own_model_costs_nothing(tokenizer, make_decoder) -> None:
    model = make_decoder(vocab_size=tokenizer.vocab_size)
    passages = [document(text[:200], f"g{i}") for i, text in enumerate(TEXTS[:8])]
    found = measure(model, tokenizer, tokenizer, passages, ["mean", "random"])
    for name in ("mean", "random"):
        assert np.array_equal(found[name].bits, found[BEFORE].bits)


def test_the_stage(tokenizer, make_decoder, tmp_path: Path) -> None:
    save_model(make_decoder(tokenizer.vocab_size, context=128), tmp_path / "m", tokenizer=tokenizer)
    extend(tokenizer, TEXTS[:10], add=60).save(tmp_path / "new")
    (tmp_path / "field.txt").write_text("\n".join(TEXTS[:10]))
    (tmp_path / "heldout.txt").write_text("\n".join(TEXTS[10:14]))
    settings = TransplantLeaderboardConfig(
        model=str(tmp_path / "m"),
        tokenizer=str(tmp_path / "new"),
        text=str(tmp_path / "field.txt"),
        heldout=str(tmp_path / "heldout.txt"),
        max_passages=12,
        passage_bytes=200,
        threads=1,
    )
    made = transplant_leaderboard(settings, tmp_path / "out")
    assert set(made.metrics["bits_per_byte"]) == {BEFORE, *METHODS}
    board = json.loads((made.path / "leaderboard.json").read_text())
    assert board["passages"] == 12 and len(board["rows"]) == len(METHODS) + 1
    levels = [row["bits_per_byte"]["estimate"] for row in board["rows"][1:]]
    assert levels == sorted(levels)
    assert board["rows"][1]["bytes_per_token"] > board["rows"][0]["bytes_per_token"]
    assert "begins best" in (made.path / "leaderboard.md").read_text()
    assert "Held-out passages" in (made.path / "report.html").read_text()
    assert json.loads((made.path / "report.json").read_text())["gains"][0]["rows"]


def test_methods_that_need_text_say_so(tokenizer, make_decoder, tmp_path: Path) -> None:
    save_model(make_decoder(tokenizer.vocab_size), tmp_path / "m", tokenizer=tokenizer)
    (tmp_path / "heldout.txt").write_text(TEXTS[3])
    here = str(tmp_path / "m")
    base = {"model": here, "tokenizer": here, "heldout": str(tmp_path / "heldout.txt")}
    with pytest.raises(UserError, match="focus: tokens are compared in text"):
        transplant_leaderboard(
            TransplantLeaderboardConfig(**base, methods=["focus"]), tmp_path / "out"
        )
    with pytest.raises(UserError, match="unknown transplant_method 'means'"):
        transplant_leaderboard(
            TransplantLeaderboardConfig(**base, methods=["means"]), tmp_path / "out"
        )
