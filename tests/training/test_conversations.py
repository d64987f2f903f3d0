"""Conversations as batches: order, padding, packing, what is left out, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmworks.core.errors import UserError
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.train import train_bpe
from lmworks.training.batches import IGNORED, Batch
from lmworks.training.conversations import (
    Conversations,
    check_messages,
    encode_answers,
    read_conversations,
)

TWO_TURNS = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "so long"},
]


@pytest.fixture(scope="module")
def tokenizer() -> PipelineTokenizer:
    return train_bpe(["hello, so long. " * 20], vocab_size=270)


def chats(*answers: str) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]}
        for answer in answers
    ]


def said(tokenizer: PipelineTokenizer, batch: Batch) -> Iterator[str]:
    """What each row of a batch asks for."""
    for labels in batch.labels:
        yield tokenizer.decode(labels[labels != IGNORED].tolist())


def test_only_answers_count(tokenizer: PipelineTokenizer) -> None:
    ids, mask = encode_answers(tokenizer, TWO_TURNS)
    assert tokenizer.decode(ids[mask].tolist()) == "hello<|im_end|>so long<|im_end|>"
    assert tokenizer.decode(ids.tolist()) == tokenizer.render_chat(
        TWO_TURNS, add_generation_prompt=False
    )


def test_batches_shift_pad_and_mask(tokenizer: PipelineTokenizer) -> None:
    data = Conversations(chats("a", "aaaaa"), tokenizer, context_length=64, batch_size=2, seed=0)
    batch = data.collate([0, 1])
    assert list(said(tokenizer, batch)) == ["a<|im_end|>", "aaaaa<|im_end|>"]
    for row in range(2):
        # What is asked at a position is the token that comes next.
        places = np.flatnonzero((batch.labels[row] != IGNORED).numpy())[:-1]
        assert batch.input_ids[row, places + 1].equal(batch.labels[row, places])


@pytest.mark.parametrize("packing", [False, True])
def test_every_row_is_seen_once_per_epoch(tokenizer: PipelineTokenizer, packing: bool) -> None:
    answers = [f"{n:03}" + "x" * (n % 11) for n in range(37)]
    data = Conversations(
        chats(*answers), tokenizer, context_length=64, batch_size=4, seed=0, packing=packing
    )
    for epoch in range(2):
        seen = []
        for step in range(data.batches_per_epoch):
            batch = data(epoch * data.batches_per_epoch + step)
            for text in said(tokenizer, batch):
                seen += text.split("<|im_end|>")[:-1]
        assert sorted(seen) == sorted(answers)
    assert data(0).input_ids.equal(data(0).input_ids)


def test_packed_rows_know_their_documents(tokenizer: PipelineTokenizer) -> None:
    data = Conversations(
        chats("a", "bb", "c" * 40), tokenizer, context_length=64, batch_size=1, seed=0, packing=True
    )
    assert data.num_rows < 3
    for step in range(data.num_rows):
        batch = data(step)
        if "documents" not in batch.inputs:
            continue
        documents = batch.inputs["documents"][0]
        for number in range(1, int(documents.max()) + 1):
            inside = documents == number
            whole = tokenizer.decode(batch.input_ids[0][inside].tolist())
            assert whole.startswith("<|im_start|>user\nq<|im_end|>") and whole.count("user") == 1
            # The last token of a conversation is asked for, and the first of the next never is.
            asked = batch.labels[0][inside]
            assert tokenizer.decode(asked[asked != IGNORED].tolist()).endswith("<|im_end|>")


def test_long_conversations_by_policy(tokenizer: PipelineTokenizer) -> None:
    rows = chats("aaaa", "b" * 400)

    def made(policy: str) -> Conversations:
        return Conversations(
            rows, tokenizer, context_length=64, batch_size=1, seed=0, too_long=policy
        )

    dropped, start, end = made("drop"), made("keep-start"), made("keep-end")
    assert (len(dropped), dropped.counts.num_too_long, dropped.counts.num_cut) == (1, 1, 0)
    assert (len(start), start.counts.num_cut) == (2, 1)
    assert next(said(tokenizer, end.collate([1]))).endswith("b<|im_end|>")
    assert not next(said(tokenizer, start.collate([1]))).endswith("<|im_end|>")
    assert max(start.collate([1]).input_ids.shape) == 64
    with pytest.raises(UserError, match=r"row 2: \d+ tokens, of which 65 fit"):
        made("refuse")
    with pytest.raises(UserError, match="known: drop, keep-start"):
        made("fold")


def test_cut_to_nothing_is_left_out(tokenizer: PipelineTokenizer) -> None:
    long = {"role": "user", "content": "x" * 400}
    row = {"messages": [long, {"role": "assistant", "content": "a"}]}
    data = Conversations(
        [row, *chats("a")],
        tokenizer,
        context_length=64,
        batch_size=1,
        seed=0,
        too_long="keep-start",
    )
    assert (len(data), data.counts.num_too_long) == (1, 1)
    assert "1 conversations longer than 64 tokens are left out" in data.remarks()


def test_rows_that_teach_nothing_are_refused_or_counted(tokenizer: PipelineTokenizer) -> None:
    bad = {"messages": [{**m, "weight": 0} for m in TWO_TURNS], "where": "chats.jsonl, line 3"}
    with pytest.raises(UserError, match=r"chats.jsonl, line 3: every answer is left out"):
        Conversations([bad], tokenizer, context_length=64, batch_size=1, seed=0)
    data = Conversations(
        [bad, *chats("a")], tokenizer, context_length=64, batch_size=1, seed=0, skip_refused=True
    )
    assert (len(data), data.counts.num_refused) == (1, 1)
    assert "line 3" in data.remarks()[0]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "'messages' must be a list"),
        ([], "'messages' must be a list"),
        (["hi"], r"messages\[0\] needs a text 'content'"),
        ([{"role": "user"}], r"messages\[0\] needs a text 'content'"),
        ([{"role": "user", "content": 3}], r"messages\[0\] needs a text 'content'"),
        ([{"role": "robot", "content": "x"}], r"messages\[0\] has role 'robot'"),
        ([{"role": "user", "content": "x"}], "no assistant message"),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "  "}],
            r"messages\[1\] is an empty answer",
        ),
    ],
)
def test_bad_messages_name_the_place(messages: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_messages(messages, "here")


def test_parts_calls_and_weights_are_messages_too() -> None:
    check_messages(
        [
            {"role": "user", "content": [{"type": "text", "text": "x"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
            {"role": "tool", "content": "y"},
            {"role": "assistant", "content": "", "weight": 0},
        ],
        "here",
    )


def test_reading_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"messages": TWO_TURNS}) + "\n\n{oops\n")
    rows = read_conversations(path)
    assert next(rows)["messages"] == TWO_TURNS
    with pytest.raises(UserError, match=r"train.jsonl, line 3: not valid JSON"):
        next(rows)
