"""Curricula side by side: equal tokens, equal beginnings, kept when stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmworks.core.errors import UserError
from lmworks.data.documents import Document, write_documents
from lmworks.evaluation import curricula
from lmworks.evaluation.curricula import CompareCurriculaConfig, compare_curricula, plans_of
from lmworks.tokenizers.train import train_bpe
from lmworks.training.pretrain import Shape

TEXT = "the cat sat on the mat and the dog sat on the cat while it rained in the town. "


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, count in (("train", 30), ("heldout", 8)):
        write_documents(
            corpus / f"{name}.jsonl",
            [
                Document(
                    id=f"{name}{i}",
                    group=f"g{i}",
                    source=f"{'ab'[i % 2]}/{i}",
                    title="",
                    text=TEXT * (1 + i % 4),
                )
                for i in range(count)
            ],
        )
    train_bpe([TEXT], vocab_size=270).save(tmp_path / "tokenizer")
    return {
        "corpus": str(corpus),
        "tokenizer": str(tmp_path / "tokenizer"),
        "curricula": ["uniform", "length"],
        "variants": {
            "a last": {
                "curriculum": "mixture",
                "mixture": {"weights": {"a": 1, "b": 1}, "final_weights": {"a": 1}},
            }
        },
        "depth": 1,
        "context_length": 32,
        "num_steps": 3,
        "batch_size": 2,
        "seeds": 2,
        "shape": Shape(hidden_size=32),
    }


def test_they_are_compared_at_equal_tokens(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Any] = []
    real = curricula._measured

    def counted(*given: Any) -> Any:
        if len(measured) == 4:
            measured.append(None)
            raise KeyboardInterrupt
        found = real(*given)
        measured.append(found)
        return found

    monkeypatch.setattr(curricula, "_measured", counted)
    config = CompareCurriculaConfig(**settings)
    with pytest.raises(KeyboardInterrupt):
        compare_curricula(config, tmp_path / "out")
    artifact = compare_curricula(config, tmp_path / "out")
    assert len(measured) == 7  # four, the stop, and the two that were missing
    models = [m for m in measured if m]
    assert {int(m["num_targets"]) for m in models} == {3 * 2 * 32}
    # The first three are of one seed: they begin alike and part.
    assert len({float(m["loss"][0]) for m in models[:3]}) == 1
    assert len({float(m["bits"].sum()) for m in models[:3]}) == 3
    assert models[0]["loss"][0] != models[3]["loss"][0]
    names = [row["curriculum"] for row in artifact.metrics["rows"]]
    assert names == ["uniform", "length", "a last"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    curves = report["curves"][0]["curves"]
    assert [curve["name"] for curve in curves] == names
    row = artifact.metrics["rows"][1]
    ratios = [models[s * 3 + 1]["bits"].sum() / models[s * 3]["bits"].sum() for s in (0, 1)]
    found = row["relative_difference_over_seeds"]["estimate"]
    assert found == pytest.approx(np.mean(ratios) - 1, abs=1e-12)
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"curricula": ["uniform", "uniform"]}, "curricula: name each once"),
        ({"curricula": ["uniform", "lenght"]}, "curriculum lenght.*not valid"),
        ({"variants": {"x": {"depth": 3}}}, "x sets 'depth'; only curriculum, pacing, mixture"),
        ({"variants": {"x": {"pacing": {"strat": 1}}}}, "did you mean 'pacing.start'"),
        ({"variants": {"length": {}}}, "curricula: name each once"),
        ({"seeds": 0}, "at least one model of each"),
    ],
)
def test_what_makes_no_sense_is_said(
    settings: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plans_of(CompareCurriculaConfig(**settings | changes))
