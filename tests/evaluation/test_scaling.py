"""The series: which runs it makes, that none is made twice, and that the verdict is honest."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from lmworks.core.errors import UserError
from lmworks.data.documents import Document, write_documents
from lmworks.evaluation import scaling as module
from lmworks.evaluation.scaling import Measured, Plan, read_runs, scaling
from lmworks.evaluation.scaling_config import ScalingConfig
from lmworks.evaluation.scaling_law import ScalingLaw
from lmworks.tokenizers.train import train_bpe

TEXT = "the cat sat on the mat and the dog sat on the cat while it rained in the town. "
LAW = ScalingLaw(E=1.2, A=50.0, B=90.0, alpha=0.33, beta=0.31)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, count in (("train", 60), ("heldout", 8)):
        rows = [
            Document(id=f"{name}{i}", group=f"g{i}", source="", title="", text=TEXT * 6)
            for i in range(count)
        ]
        write_documents(corpus / f"{name}.jsonl", rows)
    train_bpe([TEXT], vocab_size=270).save(tmp_path / "tokenizer")
    return {
        "corpus": str(corpus),
        "tokenizer": str(tmp_path / "tokenizer"),
        "flops": 6e8,
        "widths": [16, 32, 48],
        "context_length": 32,
        "batch_size": 2,
        "min_steps": 1,
        "target": 3.0,
        "num_resamples": 40,
    }


def by_law(factor: float, asked: list[Plan]) -> Any:
    """Runs nearly on a law; the last one, which was foretold, lies off by a factor."""

    def measured(self: Any, plan: Plan) -> Measured:
        asked.append(plan)
        off = factor if len(asked) == 10 else 1 + 0.004 * math.sin(2.4 * len(asked))
        loss = LAW.loss(plan.parameters, plan.tokens) * off
        return Measured(
            parameters=plan.parameters, tokens=plan.tokens, loss=loss, budget=plan.budget
        )

    return measured


@pytest.mark.parametrize(("factor", "inside"), [(1.0, True), (1.2, False)])
def test_the_larger_run_is_foretold_made_and_judged(
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    factor: float,
    inside: bool,
) -> None:
    asked: list[Plan] = []
    monkeypatch.setattr(module._Trainer, "measured", by_law(factor, asked))
    metrics = scaling(ScalingConfig(**settings), tmp_path / "out").metrics
    *series, larger = asked
    assert len(series) == 9
    for plan in series:  # whole steps near the budget
        assert abs(plan.flops - plan.budget) <= 0.5 * plan.flops / plan.num_steps
    assert [p.flops for p in series] == sorted(p.flops for p in series)
    assert larger.flops == pytest.approx(3 * 6e8, rel=0.05)
    best = LAW.optimum(3 * 6e8)[0]
    assert 0.5 < larger.parameters / best < 2
    assert metrics["inside"] is inside
    assert ("inside" if inside else "OUTSIDE") in metrics["summary"]
    kept = json.loads((tmp_path / "out" / "scaling.json").read_text())
    assert len(kept["runs"]) == 10
    assert "OUTSIDE" in (tmp_path / "out" / "report.html").read_text() or inside
    # What was written can be read and fitted again, without a run.
    again = read_runs(tmp_path / "out" / "runs.csv")
    assert [r.loss for r in again] == pytest.approx([r["loss"] for r in kept["runs"]], abs=1e-6)
    config = ScalingConfig(runs=str(tmp_path / "out" / "runs.csv"), num_resamples=20)
    foretold = scaling(config, tmp_path / "again").metrics
    assert "measured" not in foretold
    assert foretold["num_runs"] == 10


def test_runs_are_trained_and_kept(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmworks.evaluation import variants

    trained: list[str] = []
    real = variants.train

    def counted(*given: Any, name: str, **settings: Any) -> Any:
        trained.append(name)
        if len(trained) == 4:
            raise KeyboardInterrupt
        return real(*given, name=name, **settings)

    monkeypatch.setattr(variants, "train", counted)
    settings |= {"flops": 6e7, "target": 0.0}
    config = ScalingConfig(**settings)
    with pytest.raises(KeyboardInterrupt):
        scaling(config, tmp_path / "out")
    metrics = scaling(config, tmp_path / "out").metrics
    assert metrics["num_runs"] == 9
    assert len(trained) == len(set(trained)) + 1  # the one that was stopped
    runs = read_runs(tmp_path / "out" / "runs.csv")
    assert all(1 < run.loss < 12 for run in runs)  # bits per byte


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": [16, 24]}, "widths: 24 is no multiple of 16"),
        ({"widths": [16]}, "3 runs over 1 sizes and 3 numbers of tokens are too few"),
        ({"num_budgets": 1, "widths": [16, 32]}, "2 runs over 2 sizes"),
        ({"flops": 1e13}, "times, and repeated text follows another law"),
        ({"min_steps": 100000}, "0 runs over 0 sizes"),
        ({"num_resamples": 5}, "at least 20 resamples"),
        ({"corpus": ""}, "give --corpus and --tokenizer to train a series, or --runs"),
        ({"flops": 0.0}, "flops must be above 0"),
    ],
)
def test_what_makes_no_sense_is_said(
    settings: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        scaling(ScalingConfig(**settings | changes), tmp_path / "out")


def test_a_table_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("parameters,tokens,loss\n1e6,1e7,3.1\n1e6,ten,3.0\n")
    with pytest.raises(UserError, match="line 3: needs the columns parameters, tokens, loss"):
        read_runs(path)
    path.write_text("size,tokens\n1,2\n")
    with pytest.raises(UserError, match="line 2: needs the columns"):
        read_runs(path)
    config = dataclasses.replace(ScalingConfig(), runs=str(path), corpus="c", tokenizer="t")
    with pytest.raises(UserError):
        scaling(config, tmp_path / "out")
