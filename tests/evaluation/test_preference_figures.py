"""Figures of models that judge pairs, against what is known of planted judgements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.training import preference_setup as setup

from lmworks.core.errors import UserError
from lmworks.evaluation.preference_figures import (
    Judgement,
    calibration_error,
    compare,
    figures,
    length_bias,
)
from lmworks.evaluation.preferences import EvalPreferencesConfig, eval_preferences
from lmworks.training.reward import RewardConfig, reward


def judgement(difference: Any, longer: Any = None, **changes: Any) -> Judgement:
    difference = np.asarray(difference, dtype=float)
    count = len(difference)
    values: dict[str, Any] = {
        "kept": [str(i) for i in range(count)],
        "difference": difference,
        "longer": np.asarray(longer if longer is not None else np.ones(count)),
        "groups": [str(i % 50) for i in range(count)],
        "is_probability": True,
    }
    return Judgement(**values | changes)


def test_a_tie_is_half_right() -> None:
    found = figures(judgement([1.0, -1.0, 0.0, 2.0]), seed=0)
    assert found["accuracy"] == [0.625, None, None]  # too few groups for an interval
    assert found["margin"][0] == 0.5


@pytest.mark.parametrize(("scale", "least", "most"), [(1.0, 0.0, 0.03), (6.0, 0.1, 0.5)])
def test_calibration_of_a_judge_that_knows_how_sure_it_is(
    scale: float, least: float, most: float
) -> None:
    """Outcomes drawn with the probability that the difference says, which is then exaggerated."""
    random = np.random.default_rng(0)
    belief = random.normal(0, 1.5, 20_000)
    right = random.random(20_000) < 1 / (1 + np.exp(-np.abs(belief)))
    difference = np.where(right, 1, -1) * np.abs(belief) * scale
    assert least <= calibration_error(judgement(difference)) < most


def test_a_judge_of_length_is_told() -> None:
    random = np.random.default_rng(1)
    longer = random.choice([-5, 5, 0], 4000)
    blind = judgement(random.normal(1, 1, 4000), longer)
    fond = judgement(longer + random.normal(0, 1, 4000), longer)
    estimate, low, high = length_bias(blind, seed=0)  # type: ignore[misc]
    assert abs(estimate) < 0.03 and low < estimate < high  # type: ignore[operator]
    estimate, low, high = length_bias(fond, seed=0)  # type: ignore[misc]
    assert low > 0.9 and estimate > 0.9  # type: ignore[operator]
    assert length_bias(judgement([1.0], [3]), seed=0) is None


def test_a_gain_is_paired() -> None:
    random = np.random.default_rng(2)
    base = random.normal(0.2, 1, 500)
    better = judgement(base + 0.3)
    found = compare(better, judgement(base), seed=0)
    gain = (base + 0.3 > 0).mean() - (base > 0).mean()
    assert found["accuracy"][0] == pytest.approx(gain) and found["is_shown"]
    assert not compare(judgement(base), judgement(base), seed=0)["is_shown"]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_stage_knows_each_kind_of_model(tmp_path: Path) -> None:
    base = tmp_path / "base"
    setup.write_tiny(base)
    rows = setup.rows(20)
    for number, row in enumerate(rows):
        row |= {"helpful": 1, "harmless": -1 if number % 2 else 1}
    pairs = write(tmp_path / "pairs.jsonl", rows)
    config: dict[str, Any] = {"model": str(base), "preferences": pairs, "heldout": 0.0}
    judge = tmp_path / "judge"
    heads = ["helpful", "harmless"]
    reward(RewardConfig(**config, heads=heads, num_steps=2, threads=1), judge)

    def measure(out: str, **values: Any) -> dict[str, Any]:
        stage = EvalPreferencesConfig(preferences=pairs, threads=1, **values)
        return eval_preferences(stage, tmp_path / out).metrics

    models = {"base": str(base), "judge": str(judge)}
    both = measure("one", models=models, head="helpful")
    assert both["num_pairs"] == 20
    assert both["calibration_error"]["base"] is None
    assert 0 <= both["calibration_error"]["judge"] <= 1
    assert len(both["accuracy_gained"]["judge"]) == 3
    # A model against itself has log-ratios of zero: ties.
    own = measure("two", models={"base": str(base)}, reference=str(base))
    assert own["accuracy"]["base"][0] == 0.5
    with pytest.raises(UserError, match="judges in helpful, harmless: choose one with --head"):
        measure("three", models={"judge": str(judge)})
    with pytest.raises(UserError, match="name at least one model"):
        measure("four", models={})
