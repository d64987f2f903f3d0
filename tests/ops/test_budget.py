"""Budgets: durations are read strictly, and a plan once made is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.core.files import read_json, write_json
from lmworks.ops import budget
from lmworks.ops.budget import Plan, load_or_make_plan, parse_duration
from lmworks.training.pretrain import PretrainConfig

PLAN = Plan(
    depth=4,
    context_length=256,
    batch_size=8,
    pretrain_steps=100,
    sft_steps=20,
    tokens_per_s=1234.5,
)
BASE = PretrainConfig(corpus="c", tokenizer="t")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("5m", 300),
        ("1h", 3600),
        ("1h30m", 5400),
        ("1h30m15s", 5415),
        ("1m0s", 60),
        (" 2M ", 120),
        ("120s", 120),
        ("1h5s", 3605),
    ],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "5",
        "m",
        "5 m",
        "1.5h",
        "-5m",
        "5m1h",
        "1h1h",
        "5min",
        "1d",
        "5m;",
        "5m\n3s",
        "0x5m",
    ],
)
def test_what_is_no_duration_is_said(text: str) -> None:
    with pytest.raises(UserError, match="write it as 90s, 5m or 1h30m"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["59s", "0m", "0h0m0s"])
def test_too_little_time_is_said(text: str) -> None:
    with pytest.raises(UserError, match="at least 60s"):
        parse_duration(text)


@given(st.integers(0, 99), st.integers(0, 99), st.integers(60, 999))
def test_parts_add_up(hours: int, minutes: int, seconds: int) -> None:
    expected = hours * 3600 + minutes * 60 + seconds
    assert parse_duration(f"{hours}h{minutes}m{seconds}s") == expected


@given(st.text(alphabet="0123456789hms .-", max_size=12))
def test_no_text_is_a_traceback(text: str) -> None:
    try:
        assert parse_duration(text) >= 60
    except UserError as error:
        assert "\n" not in str(error)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The plans that were measured anew, by the time they were given."""
    asked: list[float] = []

    def make(base: PretrainConfig, seconds_left: float) -> Plan:
        asked.append(seconds_left)
        return dataclasses.replace(PLAN, pretrain_steps=100 + len(asked))

    monkeypatch.setattr(budget, "_make_plan", make)
    return asked


def test_a_plan_is_read_back_for_the_same_key(tmp_path: Path, made: list[float]) -> None:
    path = tmp_path / "plan.json"
    first = load_or_make_plan(path, "key", BASE, 300.0)
    assert load_or_make_plan(path, "key", BASE, 10.0) == first
    assert made == [300.0]
    assert read_json(path) == {"key": "key", "plan": dataclasses.asdict(first)}


def test_another_key_makes_another_plan(tmp_path: Path, made: list[float]) -> None:
    path = tmp_path / "plan.json"
    first = load_or_make_plan(path, "key", BASE, 300.0)
    second = load_or_make_plan(path, "other", BASE, 200.0)
    assert second != first and made == [300.0, 200.0]
    assert load_or_make_plan(path, "other", BASE, 1.0) == second


def test_a_plan_that_does_not_hold_what_it_should_is_said(
    tmp_path: Path, made: list[float]
) -> None:
    path = tmp_path / "plan.json"
    for plan in ({"depth": 4}, dataclasses.asdict(PLAN) | {"depht": 1}):
        write_json(path, {"key": "key", "plan": plan})
        with pytest.raises(UserError, match=r"plan\.json"):
            load_or_make_plan(path, "key", BASE, 300.0)
    assert made == []


def test_more_time_buys_a_deeper_model_within_limits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Tokenizer:
        vocab_size = 512

    monkeypatch.setattr("lmworks.tokenizers.load.load_tokenizer", lambda ref: Tokenizer())
    monkeypatch.setattr(budget, "_count_tokens", lambda base: 1_000_000)
    monkeypatch.setattr(
        budget, "tokens_per_s", lambda config, vocab_size: 4000.0 * 4 / config.depth
    )
    plans = [
        load_or_make_plan(tmp_path / f"{seconds}", "key", BASE, seconds)
        for seconds in (60.0, 300.0, 3600.0, 36000.0)
    ]
    depths = [plan.depth for plan in plans]
    assert depths == sorted(depths) and depths[0] < depths[-1] and depths[0] >= 2
    for plan, seconds in zip(plans, (60, 300, 3600, 36000), strict=True):
        tokens = plan.pretrain_steps * plan.batch_size * plan.context_length
        assert tokens <= 8 * 1_000_000 and tokens / plan.tokens_per_s <= seconds
        assert plan.sft_steps >= 10 and plan.context_length == 256


def test_speed_is_measured_on_real_steps() -> None:
    config = dataclasses.replace(BASE, depth=1, context_length=16, batch_size=2)
    assert budget.tokens_per_s(config, 300) > 0
