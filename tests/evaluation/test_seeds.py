"""Ways of training over seeds: what is better, what is chance, and what can't be paired."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.training import preference_setup as setup
from tests.training.tiny import tiny_model

from lmworks.core.errors import UserError
from lmworks.data.documents import Document
from lmworks.evaluation.seeds import CompareSeedsConfig, compare_seeds, compared, ways_of
from lmworks.evaluation.variants import measured_once
from lmworks.models.save import save_model


def documents(count: int = 30) -> list[Document]:
    return [
        Document(id=str(i), group=str(i), source="", title="", text=f"the cat {i} sat")
        for i in range(count)
    ]


def test_a_gain_needs_both_intervals() -> None:
    random = np.random.default_rng(0)
    base = 40 + random.normal(size=(3, 30))
    sure = base - 4 + 0.1 * random.normal(size=(3, 30))
    lucky = base + np.array([[-30.0], [20.0], [-5.0]])  # another verdict with each seed
    first, better, chance = compared(
        {"alone": base, "taught": sure, "lucky": lucky}, documents(), teacher=base.mean(0) - 8
    )
    assert first.over_seeds is None and first.verdict == ""
    assert better.verdict == "better" and better.over_documents.high < 0  # type: ignore[union-attr]
    assert better.closed is not None and abs(better.closed.estimate - 0.5) < 0.05
    assert chance.verdict == "no difference shown"
    assert chance.over_documents.excludes_zero  # type: ignore[union-attr]
    worse = compared({"taught": sure, "alone": base}, documents())[1]
    assert worse.verdict == "worse"
    assert worse.over_documents.estimate == -better.over_documents.estimate  # type: ignore[union-attr]


def test_ways_are_named_before_the_slash() -> None:
    assert ways_of({"a/0": "x", "b/0": "y", "a/1": "z", "b/1": "w"}) == {
        "a": ["a/0", "a/1"],
        "b": ["b/0", "b/1"],
    }
    assert ways_of({"runs": "x"}) == {"runs": ["runs"]}
    with pytest.raises(UserError, match="not a 2, b 1"):
        ways_of({"a/0": "x", "a/1": "x", "b/0": "x"})
    with pytest.raises(UserError, match="name one or more"):
        ways_of({})


def test_two_names_never_share_what_was_measured(tmp_path: Path) -> None:
    run: Any = SimpleNamespace(work=tmp_path)
    names = ["models.a/0", "models.a-0", "models.a%2F0"]
    for number, name in enumerate(names):
        measured_once(run, name, lambda number=number: {"bits": np.array([number])})  # type: ignore[misc]
    kept = [measured_once(run, name, dict)["bits"].item() for name in names]
    assert kept == [0, 1, 2]


def test_the_stage_writes_a_report(tmp_path: Path) -> None:
    tokenizer = setup.tiny_tokenizer()
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rows = [json.dumps(vars(d) if hasattr(d, "__dict__") else {}) for d in documents(8)]
    (corpus / "heldout.jsonl").write_text("\n".join(rows) + "\n")
    names = {}
    for number, name in enumerate(("a/0", "a/1", "b/0", "b/1")):
        folder = tmp_path / name.replace("/", "-")
        folder.mkdir()
        save_model(tiny_model(tokenizer.vocab_size, number), folder, tokenizer=tokenizer)
        names[name] = str(folder)
    config = CompareSeedsConfig(models=names, corpus=str(corpus), teacher=names["a/0"], threads=1)
    artifact = compare_seeds(config, tmp_path / "out")
    ways = json.loads((tmp_path / "out" / "ways.json").read_text())
    assert [way["name"] for way in ways] == ["a", "b"]
    assert ways[1]["over_seeds"]["low"] < ways[1]["over_seeds"]["high"]
    assert artifact.metrics["a"] == ways[0]["bits_per_byte"]["estimate"]
    assert "b against a" in (tmp_path / "out" / "report.html").read_text()
