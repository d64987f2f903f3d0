"""Tuned models beside their base: known scores give known changes, seeds are taken together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lmworks.core.errors import UserError
from lmworks.evaluation.scores import Scores
from lmworks.evaluation.tuning import (
    CompareTunedConfig,
    compare_tuned,
    compared,
    over_seeds,
    table,
)


def scored(bits: np.ndarray) -> Scores:
    groups = np.array([f"g{i}" for i in range(len(bits))])
    return Scores(bits=bits, num_bytes=np.full(len(bits), 100), groups=groups)


def test_changes_are_paired_with_the_base() -> None:
    random = np.random.default_rng(0)
    base = random.uniform(100, 900, 20)  # texts differ far more than models do
    scores = {
        "base": {"field": scored(base), "general": scored(base)},
        "kl/0": {"field": scored(base - 10), "general": scored(base + 1)},
        "kl/1": {"field": scored(base - 20), "general": scored(base + 3)},
    }
    changes = list(compared(scores))
    assert [(c.name, c.kind) for c in changes][:2] == [("kl/0", "field"), ("kl/0", "general")]
    first = changes[0].difference
    assert (first.estimate, first.low, first.high) == pytest.approx((-0.1, -0.1, -0.1))
    assert changes[0].share == pytest.approx(-10 / base.mean())
    field, general = over_seeds(changes)
    assert field.name == general.name == "kl"
    assert field.difference.estimate == pytest.approx(-0.15)
    assert general.difference.low < 0.01 < general.difference.high
    text = table(changes, [field, general])
    assert "| kl/1 | -0.200 [-0.200, -0.200]" in text and "Methods, over seeds" in text


def test_a_model_named_base_or_no_text_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "m"
    model.mkdir()
    config = CompareTunedConfig(base=str(model), models={"base": str(model)})
    with pytest.raises(UserError, match="nothing to measure on"):
        compare_tuned(config, out=tmp_path / "r")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "heldout.jsonl").write_text(
        json.dumps({"id": "1", "group": "a", "source": "s", "title": "t", "text": "x y z"}) + "\n"
    )
    config = CompareTunedConfig(
        base=str(model), models={"base": str(model)}, general=str(tmp_path / "c")
    )
    with pytest.raises(UserError, match="none of them 'base'"):
        compare_tuned(config, out=tmp_path / "r")
