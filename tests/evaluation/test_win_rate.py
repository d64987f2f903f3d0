"""Win rates of models whose answers are known, and of tiny ones through the stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.training import preference_setup as setup

from lmworks.core.errors import UserError
from lmworks.evaluation.preferences import EvalPreferencesConfig, eval_preferences
from lmworks.evaluation.win_rate import agreement, rule_judge, win_rate, wins, word_f1
from lmworks.training.preferences.rows import Pair, as_pair
from lmworks.training.reward import RewardConfig, reward


def pairs(count: int) -> list[Pair]:
    return [
        as_pair(
            f"row {i}", {"prompt": f"Q{i}?", "chosen": " right one", "rejected": " wrong it is"}
        )
        for i in range(count)
    ]


def test_words_are_compared_as_squad_does() -> None:
    assert word_f1("The cat, sat.", "the cat sat") == 1.0
    assert word_f1("a b", "b c d") == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert word_f1("a a", "a") == pytest.approx(2 / 3)  # a word counts as often as it stands
    assert word_f1("", "a") == word_f1("x", "y") == 0.0


@pytest.mark.parametrize(
    ("rule", "better", "worse"),
    [
        ("shorter", "one", "one two"),
        ("longer", "one two", "one"),
        ("chosen", "the right one", "it is wrong"),
        ("regex:^Yes", "Yes.", "Well, Yes."),
        ("not:sorry", "Of course", "I am sorry"),
    ],
)
def test_a_rule_says_which_is_better(rule: str, better: str, worse: str) -> None:
    judge, rows = rule_judge(rule), pairs(1)
    assert wins(judge, rows, [better], [worse]) == [1.0]
    assert wins(judge, rows, [worse], [better]) == [0.0]
    assert wins(judge, rows, [better], [better]) == [0.5]
    assert wins(judge, rows, [""], [worse]) == [0.0]  # silence wins by no rule
    assert wins(judge, rows, [""], [""]) == [0.5]


@given(st.lists(st.tuples(st.text("ab ", max_size=6), st.text("ab ", max_size=6)), min_size=1))
def test_what_one_wins_the_other_loses(both: list[tuple[str, str]]) -> None:
    mine, other = zip(*((a.strip(), b.strip()) for a, b in both))
    judge, rows = rule_judge("shorter"), pairs(len(both))
    forth, back = wins(judge, rows, mine, other), wins(judge, rows, other, mine)
    np.testing.assert_array_equal(forth + back, 1.0)


def test_a_rate_has_an_interval_over_groups_and_tells_of_length() -> None:
    rows = pairs(40)
    mine = ["yes"] * 30 + ["no no no"] * 10
    found = win_rate(rule_judge("shorter"), rows, mine, ["well then"] * 40, seed=0)
    estimate, low, high = found["win_rate"]
    assert estimate == 0.75 and 0.5 < low < 0.75 < high < 1 and found["is_shown"]
    assert (found["won"], found["tied"], found["lost"]) == (30, 0, 10)
    assert found["mean_words"] == [1.5, 2.0] and found["win_rate_where_it_is_not_longer"] == 1.0
    few = win_rate(rule_judge("shorter"), rows[:3], mine[:3], ["well then"] * 3, seed=0)
    assert few["win_rate"] == [1.0, None, None] and not few["is_shown"]
    assert agreement(rule_judge("shorter"), rows, seed=0)[0] == 1.0
    assert agreement(rule_judge("longer"), rows, seed=0)[0] == 0.0


@pytest.mark.parametrize(
    ("rule", "told"),
    [("shrter", "shorter"), ("regex:(", "no regular expression"), ("", "unknown rule")],
)
def test_a_rule_that_is_none_is_refused(rule: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        rule_judge(rule)


def test_the_stage_has_models_answer_and_a_judge_judge(tmp_path: Path) -> None:
    base, judge, path = tmp_path / "base", tmp_path / "judge", tmp_path / "pairs.jsonl"
    setup.write_tiny(base)
    rows = setup.rows(16)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared: dict[str, Any] = {"model": str(base), "preferences": str(path), "heldout": 0.0}
    reward(RewardConfig(**shared, num_steps=2, threads=1), judge)

    def measure(out: str, models: dict[str, str], **values: Any) -> dict[str, Any]:
        settings: dict[str, Any] = {"preferences": str(path), "threads": 1, "max_tokens": 6}
        config = EvalPreferencesConfig(**settings | values, models=models)
        return eval_preferences(config, tmp_path / out).metrics

    both = {"base": str(base), "again": str(base)}
    found = measure("judged", both, judge=str(judge))
    assert found["win_rate"] == {"again": [0.5, 0.5, 0.5]}  # the same answers: ties
    assert found["judged_by"] == "the reward model judge"
    lines = (tmp_path / "judged" / "answers.jsonl").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    assert len(answers) == 16 and all(row["base"] == row["again"] for row in answers)
    assert any(row["base"] for row in answers)
    ruled = measure("ruled", both, rule="longer")
    assert ruled["judged_by"] == "the rule longer"
    for values, told in (
        ({"judge": str(judge), "rule": "longer"}, "not both"),
        ({"judge": str(base)}, "gives no reward"),
        ({"rule": "longer", "max_tokens": 0}, "at least one"),
    ):
        with pytest.raises(UserError, match=told):
            measure("refused", both, **values)
    with pytest.raises(UserError, match="two or more"):
        measure("refused", {"base": str(base)}, rule="longer")
