"""Schedules, step by step against transformers', and what holds for all of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from lmworks.core.config import from_mapping
from lmworks.core.errors import UserError
from lmworks.training.schedules import SCHEDULES, build_schedule
from lmworks.training.trainer_config import LoopConfig

STEPS, WARMUP = 120, 12


def ours(schedule: str, **cooldown: Any) -> list[float]:
    values = {"schedule": schedule, "warmup_steps": WARMUP, "cooldown": cooldown}
    factor = build_schedule(from_mapping(LoopConfig, values), STEPS)
    return [factor(step) for step in range(STEPS)]


def theirs(function: str, *arguments: Any, **settings: Any) -> list[float]:
    """The rates of their schedule for steps 1 to STEPS of STEPS + 1, at a peak of 1."""
    transformers = pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = getattr(transformers, function)(optimizer, *arguments, **settings)
    rates = []
    for _ in range(STEPS):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    return rates


@pytest.mark.parametrize(
    ("schedule", "cooldown", "function", "arguments", "settings"),
    [
        ("linear", {}, "get_linear_schedule_with_warmup", (WARMUP, STEPS + 1), {}),
        ("constant", {}, "get_constant_schedule_with_warmup", (WARMUP,), {}),
        ("inverse_sqrt", {}, "get_inverse_sqrt_schedule", (WARMUP,), {}),
        (
            "cosine",
            {"min_rate": 0.0},
            "get_cosine_schedule_with_warmup",
            (WARMUP, STEPS + 1),
            {},
        ),
        (
            "cosine",
            {},
            "get_cosine_with_min_lr_schedule_with_warmup",
            (WARMUP, STEPS + 1),
            {"min_lr_rate": 0.1},
        ),
        *[
            (
                "wsd",
                {"share": 0.25, "shape": shape},
                "get_wsd_schedule",
                (WARMUP, STEPS // 4, STEPS + 1),
                {"decay_type": shape},
            )
            for shape in ("linear", "cosine", "1-sqrt")
        ],
    ],
)
def test_equal_to_transformers_at_every_step(
    schedule: str, cooldown: Any, function: str, arguments: Any, settings: Any
) -> None:
    expected = theirs(function, *arguments, **settings)
    assert ours(schedule, **cooldown) == pytest.approx(expected, abs=1e-12)


def test_wsd_down_to_a_part_of_the_peak_as_transformers_after_the_warmup() -> None:
    # Theirs also begins its warmup at the lowest rate; ours begins near zero like all others.
    expected = theirs(
        "get_wsd_schedule", WARMUP, STEPS // 4, STEPS + 1, decay_type="linear", min_lr_ratio=0.2
    )
    found = ours("wsd", share=0.25, min_rate=0.2)
    assert found[WARMUP - 1 :] == pytest.approx(expected[WARMUP - 1 :], abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 2, 5, 61])
def test_no_step_is_lost_and_none_goes_beyond_the_peak(schedule: str, num_steps: int) -> None:
    factor = build_schedule(LoopConfig(schedule=schedule), num_steps)
    rates = [factor(step) for step in range(num_steps)]
    assert all(0 < rate <= 1 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


@pytest.mark.parametrize("schedule", ["constant", "inverse_sqrt", "wsd"])
@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt", "square"])
def test_a_cooldown_ends_at_its_lowest_rate(schedule: str, shape: str) -> None:
    plain = ours(schedule, share=0.0)
    cooled = ours(schedule, share=0.5, min_rate=0.1, shape=shape)
    assert cooled[: STEPS // 2] == plain[: STEPS // 2]
    assert cooled[STEPS // 2 :] < plain[STEPS // 2 :]
    # One step before where the shape would end.
    assert cooled[-1] / plain[-1] == pytest.approx(0.1, abs=0.04)
    assert all(c >= 0.1 * p for c, p in zip(cooled, plain, strict=True))


def test_what_makes_no_sense_is_said() -> None:
    config = LoopConfig(schedule="cosin")
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        build_schedule(config, 10)
    for name, value in (("share", 1.5), ("min_rate", -0.1)):
        cooldown = dataclasses.replace(config.cooldown, **{name: value})
        with pytest.raises(UserError, match=rf"cooldown\.{name} = {value}"):
            build_schedule(LoopConfig(cooldown=cooldown), 10)
    with pytest.raises(UserError, match="comes down over the whole run"):
        build_schedule(
            LoopConfig(schedule="linear", cooldown=dataclasses.replace(config.cooldown, share=0.3)),
            10,
        )
