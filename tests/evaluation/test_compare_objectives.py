"""Objectives side by side: fair questions, every model asked as it learned, counted operations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.test_learning import TEXT, corpus  # noqa: F401

from lmworks.core.errors import UserError
from lmworks.data.documents import read_documents
from lmworks.evaluation.cloze import Questions, answer, draw_questions
from lmworks.evaluation.compare_objectives import (
    CompareObjectivesConfig,
    compare_objectives,
    step_flops,
)
from lmworks.tokenizers.load import load_tokenizer
from lmworks.training.learning import PRETRAINING, prepare
from lmworks.training.objectives.text import facts_of
from lmworks.training.pretrain import PretrainConfig, Shape, cached_stream, fit, new_model
from lmworks.training.tokens import PackedWindows
from lmworks.training.trainer_config import LoopConfig


def settings(corpus: Path, objective: str, **changes: Any) -> PretrainConfig:  # noqa: F811
    plain: dict[str, Any] = {"depth": 1, "context_length": 32, "batch_size": 8}
    return PretrainConfig(
        corpus=str(corpus),
        tokenizer=str(corpus / "tokenizer"),
        objective=objective,
        shape=Shape(hidden_size=64),
        loop=LoopConfig(eval_every=1000, warmup_steps=5),
        **plain | changes,
    )


def questions(corpus: Path, tokenizer: Any, count: int = 60) -> Questions:  # noqa: F811
    facts = facts_of(tokenizer)
    tokens = np.concatenate([np.array(tokenizer.encode(TEXT))] * 3)
    return draw_questions(
        list(read_documents(corpus / "train.jsonl")),
        tokenizer,
        facts,
        np.bincount(tokens, minlength=tokenizer.vocab_size) + 1.0,
        length=32,
        count=count,
        num_choices=4,
    )


def test_questions_hold_the_right_token_once(corpus: Path) -> None:  # noqa: F811
    tokenizer = load_tokenizer(corpus / "tokenizer")
    asked = questions(corpus, tokenizer)
    rows = np.arange(len(asked.ids))
    assert (asked.ids[rows, asked.places] == asked.choices[:, 0]).all()
    assert all(len(set(row)) == 4 for row in asked.choices.tolist())
    special = list(tokenizer.special_tokens.values())
    assert not np.isin(asked.choices, special).any()
    assert (asked.places >= 8).all()
    assert (asked.places < 28).all()
    again = questions(corpus, tokenizer)
    assert np.array_equal(again.choices, asked.choices)
    with pytest.raises(UserError, match="no held-out document has 5000 tokens"):
        draw_questions(
            list(read_documents(corpus / "train.jsonl")),
            tokenizer,
            facts_of(tokenizer),
            np.ones(tokenizer.vocab_size),
            length=5000,
            count=5,
            num_choices=2,
        )


@pytest.mark.parametrize("name", PRETRAINING)
def test_a_model_that_knows_the_text_finds_its_tokens(
    corpus: Path,  # noqa: F811
    tmp_path: Path,
    name: str,
) -> None:
    """One sentence again and again: whoever is asked the right way knows most of its tokens."""
    config = settings(corpus, name)
    learning = prepare(config, load_tokenizer(corpus / "tokenizer"))
    tokens = cached_stream(corpus / "train.jsonl", learning.tokenizer, tmp_path)
    torch.manual_seed(0)
    model = new_model(config, learning.tokenizer.vocab_size)
    windows = PackedWindows(tokens, context_length=32, batch_size=8, seed=0)
    fit(
        model,
        learning.batches(windows, 0),
        [],
        config,
        objective=learning.objective,
        num_steps=150,
        work=tmp_path,
        label=name,
    )
    asked = questions(corpus, learning.tokenizer)
    right = answer(model, learning.objective, learning.architecture, learning.facts, asked)
    assert right.mean() > 0.6
    fresh = new_model(config, learning.tokenizer.vocab_size)
    chance = answer(fresh, learning.objective, learning.architecture, learning.facts, asked)
    assert chance.mean() < 0.5


def test_operations_are_those_of_the_products(corpus: Path) -> None:  # noqa: F811
    tokenizer = load_tokenizer(corpus / "tokenizer")
    config = settings(corpus, "causal")
    model = new_model(config, tokenizer.vocab_size)
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)  # each is used once
    tokens = config.batch_size * config.context_length
    found = step_flops(config, tokenizer)
    assert found == pytest.approx(6 * matrices * tokens, rel=0.1)
    assert step_flops(settings(corpus, "masked"), tokenizer) < found


def test_the_comparison(corpus: Path, tmp_path: Path) -> None:  # noqa: F811
    config = CompareObjectivesConfig(
        corpus=str(corpus),
        tokenizer=str(corpus / "tokenizer"),
        objectives=["causal", "replaced_token"],
        depth=1,
        context_length=24,
        num_steps=4,
        batch_size=2,
        seeds=2,
        num_questions=10,
        num_choices=3,
        max_documents=3,
        shape=Shape(hidden_size=32),
        threads=1,
    )
    made = compare_objectives(config, tmp_path / "report")
    found = json.loads((made.path / "objectives.json").read_text())
    first, second = found["rows"]
    assert first["difference"] is None
    assert second["num_steps"] == round(4 / second["step_flops_ratio"])
    assert second["bits_per_byte"] is None
    assert first["bits_per_byte"]["estimate"] > 0
    page = (made.path / "report.html").read_text()
    assert "replaced_token" in page
    assert "causal finds" in made.metrics["summary"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"objectives": []}, "give each objective once"),
        ({"objectives": ["masked", "masked"]}, "give each objective once"),
        ({"objectives": ["causal", "cloze"]}, "unknown objective 'cloze'"),
        ({"num_choices": 1}, "at least two"),
        ({"objectives": ["masked"], "layers": "mamba"}, "mamba can't"),
    ],
)
def test_comparisons_that_make_no_sense(
    corpus: Path,  # noqa: F811
    tmp_path: Path,
    changes: dict[str, Any],
    told: str,
) -> None:
    config = CompareObjectivesConfig(
        corpus=str(corpus), tokenizer=str(corpus / "tokenizer"), **changes
    )
    with pytest.raises(UserError, match=told):
        compare_objectives(config, tmp_path / "report")
