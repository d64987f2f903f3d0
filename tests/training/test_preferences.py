"""Preference rows: what is read, what is refused and how, and which tokens count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.training import preference_setup as setup

from lmworks.core.errors import UserError
from lmworks.training.batches import IGNORED
from lmworks.training.preferences.batches import (
    Fit,
    JudgedAnswers,
    Pairs,
    encode_answer,
    encode_pair,
)
from lmworks.training.preferences.rows import (
    BadRow,
    as_chat,
    as_judged,
    as_pair,
    check_both_labels,
    read_rows,
)
from lmworks.training.row_files import read_split
from lmworks.training.row_order import RowOrder


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASK = message("user", "hi")
PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "chosen": "a"}, "'rejected' is missing"),
        (PAIR | {"chosen": "  "}, "'chosen' is empty"),
        (PAIR | {"rejected": "a"}, "are the same"),
        (PAIR | {"chosen": 3}, "'chosen' must be a text or a list of messages"),
        (PAIR | {"chosen": []}, "'chosen' must be a text or a list of messages"),
        (PAIR | {"chosen": [message("assistant", "x")]}, "must both be text"),
        (PAIR | {"prompt": [{"role": "robot", "content": "x"}]}, r"prompt\[0\] has role 'robot'"),
        (PAIR | {"prompt": [{"role": "user"}]}, r"prompt\[0\] needs a text 'content'"),
        (PAIR | {"prompt": [ASK], "chosen": ""}, "'chosen' is empty"),
        (
            {
                "prompt": "p",
                "chosen": [message("assistant", "x")],
                "rejected": [message("assistant", "y")],
            },
            "'prompt' is a text and 'chosen' a list",
        ),
        (
            {
                "prompt": [ASK],
                "chosen": [message("assistant", " ")],
                "rejected": [message("assistant", "y")],
            },
            "'chosen' has no assistant message with text",
        ),
        ({"chosen": "abc", "rejected": "xyz"}, "do not begin alike"),
        (PAIR | {"margin": "much"}, "'margin' must be a number"),
        (PAIR | {"margin": float("nan")}, "'margin' must be a number"),
    ],
)
def test_a_bad_pair_names_place_and_field(row: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRow, match=f"pairs.jsonl, line 7: .*{said}"):
        as_pair("pairs.jsonl, line 7", row, ("margin",))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "completion": "c"}, "'label' must be true or false"),
        ({"prompt": "p", "completion": "c", "label": "yes"}, "'label' must be true or false"),
        ({"prompt": "p", "completion": "", "label": True}, "'completion' is empty"),
        ({"completion": "c", "label": True}, "'prompt' is missing"),
    ],
)
def test_a_bad_judgement_names_place_and_field(row: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRow, match=f"here: .*{said}"):
        as_judged("here", row)


def test_labels_of_one_kind_teach_nothing() -> None:
    rows = as_judged("x", {"prompt": "p", "completion": "c", "label": True})
    with pytest.raises(UserError, match="every 'label' is true"):
        check_both_labels(rows, "thumbs.jsonl")


def test_an_implicit_prompt_is_what_both_begin_with() -> None:
    pair = as_pair("x", {"chosen": "The sky is blue.", "rejected": "The sky is green."})
    assert (pair.prompt, pair.chosen, pair.rejected) == ("The sky is", " blue.", " green.")
    talk = [ASK, message("assistant", "good"), message("user", "more")]
    pair = as_pair(
        "x",
        {
            "prompt": "hi",  # as UltraFeedback has it: a text beside whole conversations
            "chosen": [*talk, message("assistant", "yes")],
            "rejected": [*talk, message("assistant", "no")],
        },
    )
    assert pair.prompt == tuple(talk)
    assert pair.chosen == (message("assistant", "yes"),)


def test_implicit_prompts_are_those_of_trl() -> None:
    data_utils = pytest.importorskip("trl.data_utils")
    for chosen, rejected in (
        ("The sky is blue.", "The sky is green."),
        ("a b", "a c d"),
        ("same start", "same stop"),
        ("x  y", "x  z"),
    ):
        theirs = data_utils.extract_prompt({"chosen": chosen, "rejected": rejected})
        ours = as_pair("x", {"chosen": chosen, "rejected": rejected})
        assert {name: getattr(ours, name) for name in theirs} == theirs


def test_a_pair_is_two_judgements() -> None:
    rows = as_judged("x", PAIR)
    assert [(row.completion, row.label) for row in rows] == [("a", True), ("b", False)]


def test_text_as_chat() -> None:
    pair = as_chat(as_pair("x", PAIR))
    assert pair.prompt == (message("user", "p"),)
    assert pair.rejected == (message("assistant", "b"),)


def test_only_the_answer_counts() -> None:
    tokenizer = setup.tiny_tokenizer()
    talk = (ASK, message("assistant", "one"), message("user", "two"))
    found = encode_answer(tokenizer, talk, (message("assistant", "three"),), "x")
    assert tokenizer.decode(found.ids[found.counted].tolist()) == "three<|im_end|>"
    # Of several messages after the prompt, what the assistant says.
    more = (message("assistant", "three"), ASK, message("assistant", "four"))
    found = encode_answer(tokenizer, talk, more, "x")
    said = tokenizer.decode(found.ids[found.counted].tolist())
    assert said == "three<|im_end|>four<|im_end|>"
    # As in TRL: all that stands behind the prompt.
    found = encode_answer(tokenizer, talk, more, "x", "all")
    said = tokenizer.decode(found.ids[found.counted].tolist())
    assert said.startswith("three<|im_end|>\n<|im_start|>user\nhi")


def test_a_text_answer_begins_where_tokens_part() -> None:
    tokenizer = setup.tiny_tokenizer()
    pair = as_pair("x", {"prompt": "What is ", "chosen": "it?", "rejected": "is?"})
    for answer in encode_pair(tokenizer, pair):
        assert answer.ids[0] == tokenizer.bos_token_id
        assert answer.ids[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(answer.ids[answer.counted].tolist())
        assert text.removesuffix("<|endoftext|>").lstrip() in ("it?", "is?")
    chosen, rejected = encode_pair(tokenizer, pair)
    assert chosen.begin == rejected.begin


def _pairs(count: int) -> list[Any]:
    return [as_pair(f"row {i}", row) for i, row in enumerate(setup.rows(count))]


def test_batches_hold_every_pair_once_and_mask_exactly() -> None:
    tokenizer = setup.tiny_tokenizer()
    data = Pairs(_pairs(23), tokenizer, Fit(length=127), batch_size=4, seed=3)
    seen = []
    for step in range(data.order.batches_per_epoch):
        batch = data(step)
        for labels in batch.rejected.labels:
            seen.append(tokenizer.decode(labels[labels != IGNORED].tolist()))
        tokens = int((batch.chosen.labels != IGNORED).sum())
        assert float(batch.answer_share[0]) == pytest.approx(batch.num_rows / tokens)
    ends = [row["rejected"][0]["content"] + "<|im_end|>" for row in setup.rows(23)]
    assert sorted(seen) == sorted(ends)


@pytest.mark.parametrize(
    ("truncation", "dropped", "cut"), [("drop", 6, 0), ("keep_start", 6, 0), ("keep_end", 0, 6)]
)
def test_long_rows_are_counted(truncation: Any, dropped: int, cut: int) -> None:
    tokenizer = setup.tiny_tokenizer()
    pairs = [as_pair("x", PAIR | {"prompt": "long " * (200 if i < 6 else 2)}) for i in range(10)]
    fit = Fit(length=64, truncation=truncation)
    data = Pairs(pairs, tokenizer, fit, batch_size=4, seed=0)
    assert (len(data), fit.num_dropped, fit.num_cut) == (10 - dropped, dropped, cut)
    assert data.collate(range(len(data))).chosen.input_ids.shape[1] <= 64


def test_answers_are_cut_at_their_end() -> None:
    tokenizer = setup.tiny_tokenizer()
    pairs = [as_pair("x", PAIR | {"chosen": "yes " * 200})]
    fit = Fit(length=64, truncation="keep_start")
    batch = Pairs(pairs, tokenizer, fit, batch_size=1, seed=0).collate([0])
    assert fit.num_cut == 1 and batch.chosen.input_ids.shape[1] == 64


def test_nothing_that_fits_is_said() -> None:
    pairs = [as_pair("x", PAIR | {"prompt": "long " * 200})]
    with pytest.raises(UserError, match=r"none of the 1 rows fits into 64 tokens.*keep_end"):
        Pairs(pairs, setup.tiny_tokenizer(), Fit(length=64), batch_size=1, seed=0)


def test_mismatched_answers_are_those_of_the_row_before() -> None:
    tokenizer = setup.tiny_tokenizer()
    rows = [r for row in setup.judged_rows(6) for r in as_judged("x", row)]
    data = JudgedAnswers(rows, tokenizer, Fit(length=127), batch_size=3, seed=0)
    batch = data.collate([0, 1, 2])

    def said(labels: Any) -> list[str]:
        return [tokenizer.decode(row[row != IGNORED].tolist()) for row in labels]

    answers = said(batch.answers.labels)
    assert said(batch.mismatched.labels) == [answers[2], answers[0], answers[1]]
    assert batch.liked.tolist() == [False, True, True]


def test_kto_needs_two_rows() -> None:
    rows = as_judged("x", PAIR)
    with pytest.raises(UserError, match="at least 2"):
        JudgedAnswers(rows, setup.tiny_tokenizer(), Fit(length=64), batch_size=1, seed=0)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(("count", "size"), [(37, 4), (33, 4), (5, 8), (1, 2), (64, 16)])
def test_order_is_whole_and_a_function_of_the_step(count: int, size: int, fixed: bool) -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 50, count)
    order = RowOrder(lengths, batch_size=size, seed=5, fixed=fixed)
    steps = [order(step).tolist() for step in range(2 * order.batches_per_epoch)]
    for epoch in (0, 1):
        part = steps[epoch * order.batches_per_epoch : (epoch + 1) * order.batches_per_epoch]
        assert sorted(i for rows in part for i in rows) == list(range(count))
    again = RowOrder(lengths, batch_size=size, seed=5, fixed=fixed)
    assert [again(step).tolist() for step in reversed(range(len(steps)))] == steps[::-1]
    if fixed:
        half = len(steps) // 2
        assert sorted(steps[:half]) == sorted(steps[half:])
        assert count == 1 or min(map(len, steps)) > 1


def _write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _split(place: Path, **settings: Any) -> Any:
    defaults: dict[str, Any] = {"heldout": 0.2, "seed": 0, "skip_bad": False}
    return read_split(place, lambda where, row: [as_pair(where, row)], **defaults | settings)


def test_groups_are_not_parted(tmp_path: Path) -> None:
    rows = [PAIR | {"prompt": f"p{i // 3}", "chosen": f"a{i}"} for i in range(90)]
    split = _split(_write(tmp_path / "pairs.jsonl", rows))
    groups = [{row.group for row in part} for part in (split.train, split.heldout)]
    assert len(split.train) + len(split.heldout) == 90
    assert groups[0].isdisjoint(groups[1]) and 1 < len(groups[1]) < 15


def test_a_bad_row_ends_or_is_counted(tmp_path: Path) -> None:
    path = _write(tmp_path / "pairs.jsonl", [PAIR, PAIR | {"chosen": "b"}, PAIR | {"prompt": "q"}])
    with pytest.raises(UserError, match=r"pairs.jsonl, line 2: .*same.*--skip-bad"):
        _split(path)
    split = _split(path, skip_bad=True, heldout=0.0)
    assert (len(split.train), split.num_bad) == (2, 1)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.jsonl is missing"):
        _split(tmp_path)
    (tmp_path / "x.jsonl").write_text('{"prompt"\n')
    with pytest.raises(UserError, match=r"x.jsonl, line 1: not valid JSON"):
        list(read_rows(tmp_path / "x.jsonl"))
    (tmp_path / "x.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match="must be an object"):
        list(read_rows(tmp_path / "x.jsonl"))
    (tmp_path / "x.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no row to train on"):
        _split(tmp_path / "x.jsonl")
