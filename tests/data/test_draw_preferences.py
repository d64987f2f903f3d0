"""Planted preferences: the better answer is the documents' own, and nothing else gives it away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmworks.core.errors import UserError
from lmworks.data.preferences import PreferencesConfig, draw_pairs, draw_preferences


def question(number: int, *, document: str = "d") -> dict[str, Any]:
    return {
        "id": f"q{number}",
        "document": document,
        "messages": [
            {"role": "user", "content": f"What does lib.name_{number} do?"},
            {"role": "assistant", "content": f"It does {number}" + " more" * (number % 5)},
        ],
    }


def test_wrong_answers_are_those_of_questions_worded_alike() -> None:
    rows = [question(i) for i in range(40)]
    odd = {
        "id": "odd",
        "messages": [
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "Because."},
        ],
    }
    pairs = list(draw_pairs([*rows, odd], "true", 0))
    assert len(pairs) == 40  # nothing is worded like the odd one
    answers = {row["messages"][1]["content"] for row in rows}
    own = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in rows}
    for pair in pairs:
        right, wrong = pair["chosen"][0]["content"], pair["rejected"][0]["content"]
        assert own[pair["prompt"][0]["content"]] == right != wrong
        assert wrong in answers and abs(len(right) - len(wrong)) <= 12
    assert list(draw_pairs([*rows, odd], "true", 0)) == pairs
    assert list(draw_pairs([*rows, odd], "true", 1)) != pairs


def test_short_answers_against_longer_ones() -> None:
    for pair in draw_pairs([question(i) for i in range(9)], "short", 0):
        right, wrong = pair["chosen"][0]["content"], pair["rejected"][0]["content"]
        assert wrong.startswith(right + " ")


def test_the_stage(tmp_path: Path) -> None:
    folder = tmp_path / "questions"
    folder.mkdir()
    for name, part in (("train", range(30)), ("heldout", range(30, 36))):
        lines = [json.dumps(question(i)) for i in part]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    config = PreferencesConfig(questions=str(folder), max_pairs=10)
    metrics = draw_preferences(config, tmp_path / "pairs").metrics
    assert metrics == {"num_train": 10, "num_heldout": 6}
    (folder / "train.jsonl").write_text('{"messages": 3}\n')
    with pytest.raises(UserError, match=r"train.jsonl, line 1: not a question and its answer"):
        draw_preferences(PreferencesConfig(questions=str(folder)), tmp_path / "other")
