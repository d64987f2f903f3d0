"""Masks: exactly the answers count, and a template that hides the border is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from lmworks.core.errors import UserError
from lmworks.training.batches import IGNORED
from lmworks.training.conversations import (
    Conversations,
    check_messages,
    encode_answers,
    read_conversations,
)


class ByteChat:
    """ChatML over bytes: enough of a tokenizer for the masks."""

    pad_token_id = 0
    shift = ""

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        text = "".join(f"<{m['role']}>{m['content']}</>" for m in messages)
        text += "<assistant>" if add_generation_prompt else self.shift
        return list(text.encode())


class Forgetful(ByteChat):
    """A template that drops earlier answers once a later one is there."""

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> list[int]:
        kept = [m for m in messages[:-1] if m["role"] != "assistant"] + list(messages[-1:])
        return super().encode_chat(kept, add_generation_prompt=add_generation_prompt)


TWO_TURNS = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "so long"},
]


def test_only_answers_count() -> None:
    ids, mask = encode_answers(ByteChat(), TWO_TURNS)  # type: ignore[arg-type]
    text = bytes(ids.tolist())
    assert text == b"<user>hi</><assistant>hello</><user>bye</><assistant>so long</>"
    assert bytes(ids[mask].tolist()) == b"hello</>so long</>"


def test_a_template_that_rewrites_the_past_is_refused() -> None:
    with pytest.raises(UserError, match=r"row 7: the chat template rewrites earlier text"):
        encode_answers(Forgetful(), TWO_TURNS, "row 7")  # type: ignore[arg-type]


def test_batches_shift_pad_and_mask() -> None:
    rows = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a" * n}]}
        for n in (1, 5)
    ]
    data = Conversations(rows, ByteChat(), context_length=64, batch_size=2, seed=0)  # type: ignore[arg-type]
    batch = data.collate([0, 1])
    for row, answer in enumerate((b"a</>", b"aaaaa</>")):
        counted = batch.labels[row] != IGNORED
        assert bytes(batch.labels[row][counted].tolist()) == answer
        # What is asked at a position is the token that comes next.
        positions = np.flatnonzero(counted.numpy())[:-1]
        assert batch.input_ids[row, positions + 1].equal(batch.labels[row, positions])


def test_every_row_is_seen_once_per_epoch() -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": f"{n:03}"},
            ]
        }
        for n in range(37)
    ]
    data = Conversations(rows, ByteChat(), context_length=64, batch_size=4, seed=0)  # type: ignore[arg-type]
    seen = []
    for step in range(data.batches_per_epoch):
        for labels in data(step).labels:
            seen.append(bytes(labels[labels != IGNORED].tolist()))
    assert sorted(seen) == [b"%03d</>" % n for n in range(37)]


def test_long_conversations_are_counted() -> None:
    def row(size: int) -> dict[str, object]:
        answer = {"role": "assistant", "content": "a" * size}
        return {"messages": [{"role": "user", "content": "q"}, answer]}

    rows = [row(4), row(400)]
    data = Conversations(rows, ByteChat(), context_length=64, batch_size=1, seed=0)  # type: ignore[arg-type]
    assert (len(data), data.num_too_long) == (1, 1)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "'messages' must be a list"),
        ([], "'messages' must be a list"),
        ([{"role": "user"}], r"messages\[0\] needs a text 'content'"),
        ([{"role": "robot", "content": "x"}], r"messages\[0\] has role 'robot'"),
        ([{"role": "user", "content": "x"}], "no assistant message"),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": "  "}],
            "no assistant message with text",
        ),
    ],
)
def test_bad_messages_name_the_place(messages: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_messages(messages, "here")


def test_reading_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"messages": TWO_TURNS}) + "\n{oops\n")
    rows = read_conversations(path)
    assert next(rows)["messages"] == TWO_TURNS
    with pytest.raises(UserError, match=r"train.jsonl, line 2: not valid JSON"):
        next(rows)
