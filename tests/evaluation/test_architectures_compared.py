"""Patterns of layers trained side by side: the same compute, paired, and kept when stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lmworks.core.errors import UserError
from lmworks.data.documents import Document, write_documents
from lmworks.evaluation import architectures
from lmworks.evaluation.architectures import CompareArchitecturesConfig, compare_architectures
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
                Document(id=f"{name}{i}", group=f"g{i}", source="", title="", text=TEXT * 4)
                for i in range(count)
            ],
        )
    train_bpe([TEXT], vocab_size=270).save(tmp_path / "tokenizer")
    return {
        "corpus": str(corpus),
        "tokenizer": str(tmp_path / "tokenizer"),
        "patterns": ["attention", "attention+none"],
        "depth": 2,
        "context_length": 32,
        "num_steps": 3,
        "batch_size": 2,
        "seeds": 2,
        "shape": Shape(hidden_size=64),
    }


def test_patterns_are_trained_at_the_same_compute(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CompareArchitecturesConfig(**settings)
    trained: list[str] = []
    real = architectures._decode_ms

    def stop_at_the_third(model: Any) -> float:
        trained.append("x")
        if len(trained) == 3:
            raise KeyboardInterrupt
        return real(model)

    monkeypatch.setattr(architectures, "_decode_ms", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        compare_architectures(config, tmp_path / "out")
    metrics = compare_architectures(config, tmp_path / "out").metrics
    assert len(trained) == 5  # two of the four were kept
    first, second = metrics["rows"]
    assert first["layers"] == 2
    assert second["layers"] > 2  # without a feed-forward there is room for more
    assert 0.8 < second["flops_ratio"] < 1.25
    assert first["verdict"] == "baseline"
    assert second["difference"]["low"] <= second["difference"]["estimate"]
    written = json.loads((tmp_path / "out" / "architectures.json").read_text())
    assert [row["pattern"] for row in written["rows"]] == settings["patterns"]
    assert "attention+none" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"patterns": ["attention", "attention"]}, "patterns: name each once"),
        ({"patterns": []}, "patterns: name each once"),
        ({"patterns": ["mambo"]}, "unknown layer in the pattern"),
        ({"seeds": 0}, "at least one model"),
    ],
)
def test_faults_are_told_before_anything_is_trained(
    settings: dict[str, Any], tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        compare_architectures(CompareArchitecturesConfig(**settings | change), tmp_path / "out")
