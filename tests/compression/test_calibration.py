"""Calibration rows: from all kinds of sources, as the model reads them, and enough of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmworks.compression.calibration import calibration_rows
from lmworks.core.errors import UserError
from lmworks.tokenizers.train import train_bpe

WORDS = "the cat sat on the mat and the dog sat on the cat\n"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_bpe([WORDS] * 20, vocab_size=288)


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_come_from_all_over_a_long_text(tmp_path: Path, tokenizer: Any) -> None:
    text = tmp_path / "book.txt"
    text.write_text("".join(f"page {page} {WORDS * 20}" for page in range(200)))
    rows = calibration_rows(text, tokenizer, max_tokens=2000, length=64)
    assert sum(map(len, rows)) == 2000
    assert {len(row) for row in rows[:-1]} == {64}
    assert all(row[0] in (tokenizer.bos_token_id, tokenizer.eos_token_id) for row in rows)
    again = calibration_rows([text], tokenizer, max_tokens=2000, length=64)
    assert all((a == b).all() for a, b in zip(rows, again, strict=True))
    other = calibration_rows(text, tokenizer, max_tokens=2000, length=64, seed=1)
    assert any(len(a) != len(b) or (a != b).any() for a, b in zip(rows, other, strict=False))
    shown = "".join(tokenizer.decode(row.tolist()) for row in rows)
    pages = [page for page in range(200) if f"page {page} " in shown]
    assert pages and max(pages) > 20  # not the beginning alone


def test_conversations_are_put_into_the_template(tmp_path: Path, tokenizer: Any) -> None:
    talk = [{"role": "user", "content": WORDS}, {"role": "assistant", "content": WORDS * 5}]
    folder = tmp_path / "dataset"
    folder.mkdir()
    lines(folder / "train.jsonl", [{"messages": talk}] * 20)
    rows = calibration_rows(folder, tokenizer, max_tokens=600, length=512)
    expected = tokenizer.encode_chat(talk, add_generation_prompt=False)
    assert rows[0].tolist() == expected[: len(rows[0])]
    assert sum(map(len, rows)) == 600


def test_folders_files_and_python_are_sources(tmp_path: Path, tokenizer: Any) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.md").write_text(WORDS * 50)
    corpus = lines(tmp_path / "corpus.jsonl", [{"text": WORDS * 50}] * 5)
    rows = calibration_rows([folder, corpus], tokenizer, max_tokens=10**6)
    assert sum(map(len, rows)) > 1500
    assert sum(map(len, calibration_rows(None, tokenizer, max_tokens=400))) == 400


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "too short"}], r"gives \d+ tokens .* at least 256"),
        ([], "gives 0 tokens"),
        ([{"question": "?"}], "line 1 has neither a `text` nor `messages`"),
        ([{"text": WORDS * 99}, {"messages": ["hello"]}], "line 2: a message needs a role"),
        ([3], "line 1 has neither"),
    ],
)
def test_what_is_no_calibration_text_is_said(
    tmp_path: Path, tokenizer: Any, rows: list[Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        calibration_rows(lines(tmp_path / "rows.jsonl", rows), tokenizer)


def test_broken_files_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": ')
    with pytest.raises(UserError, match="line 1 is not valid JSON"):
        calibration_rows(tmp_path / "bad.jsonl", tokenizer)
    (tmp_path / "bad.txt").write_bytes(bytes(range(256)) * 20)
    with pytest.raises(UserError, match="gives no calibration text"):
        calibration_rows(tmp_path / "bad.txt", tokenizer)
    with pytest.raises(UserError, match="neither a folder nor a file"):
        calibration_rows(tmp_path / "nothing.txt", tokenizer)
    with pytest.raises(UserError, match="at least 256"):
        calibration_rows(None, tokenizer, max_tokens=10)
