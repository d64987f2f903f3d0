"""Gates, rounds in their folder, and what was forgotten: known scores give known verdicts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests.training.sft_setup import tiny_tokenizer
from tests.training.tiny import tiny_model

from lmworks.core.errors import UserError
from lmworks.evaluation.continual.compare import CompareContinualConfig, compare_continual
from lmworks.evaluation.continual.forgetting import Course, figures, markdown
from lmworks.evaluation.continual.gate_config import GateConfig
from lmworks.evaluation.continual.gates import Gate, gate, table
from lmworks.evaluation.continual.measures import measure
from lmworks.evaluation.continual.round import GENTLE, ContinualRoundConfig
from lmworks.evaluation.continual.state import ContinualState, described
from lmworks.evaluation.scores import Scores
from lmworks.models.load import load_language_model
from lmworks.models.save import save_model

FLAGS = ("--epochs", "6", "--batch-size", "4", "--context-length", "64", "--threads", "1")
QUICK = dataclasses.replace(
    GENTLE,
    warmup_steps=0,
    schedule="constant",
    optimizer=dataclasses.replace(GENTLE.optimizer, learning_rate=5e-3),
)


def scored(bits: Any, groups: int = 0) -> Scores:
    count = len(bits)
    names = [f"g{i % (groups or count)}" for i in range(count)]
    return Scores(
        bits=np.asarray(bits, dtype=float),
        num_bytes=np.full(count, 100),
        groups=np.array(names, dtype=str),
    )


BASE = np.random.default_rng(0).uniform(100, 300, 30)
NOISE = np.random.default_rng(1).normal(0, 1, 30)


@pytest.mark.parametrize(
    ("role", "change", "groups", "passed", "why"),
    [
        ("new", -5 + NOISE, 0, True, "shown better"),
        ("new", 0 + NOISE * 9, 0, False, "not shown better"),
        ("new", 5 + NOISE, 0, False, "shown worse"),
        ("new", -5 + NOISE, 5, False, "5 groups of held-out rows, 6 are needed to tell"),
        ("old", 1 + NOISE, 0, True, "no loss beyond the tolerance"),
        ("old", 9 + NOISE, 0, False, "lost more than the tolerance"),
        ("old", 4 + NOISE * 5, 0, False, "a loss beyond the tolerance can't be ruled out"),
        ("old", 0 * NOISE, 3, False, "3 groups of held-out rows, 6 are needed to tell"),
    ],
)
def test_a_gate_opens_for_what_is_shown(
    role: Any, change: Any, groups: int, passed: bool, why: str
) -> None:
    found = gate(
        "t", "answers", role, scored(BASE, groups), scored(BASE + change, groups), GateConfig()
    )
    assert (found.passed, found.why) == (passed, why)
    assert why in table([found])


def test_a_new_task_may_be_asked_for_no_loss_alone() -> None:
    config = GateConfig(new="not-worse")
    assert gate("t", "answers", "new", scored(BASE), scored(BASE), config).passed
    assert not gate("t", "answers", "new", scored(BASE), scored(BASE * 1.1), config).passed


def test_what_loses_exactly_the_tolerance_seldom_passes() -> None:
    random, config = np.random.default_rng(0), GateConfig(tolerance=0.02)
    passed = 0
    for _ in range(300):
        base = random.uniform(100, 300, 40)
        lost = 0.02 * base.sum() / 40 + random.normal(0, 3, 40)
        passed += gate("t", "answers", "old", scored(base), scored(base + lost), config).passed
    assert passed / 300 < 0.05  # 2.5 % by design: one end of a 95 % interval


def test_bad_limits_are_refused() -> None:
    for wrong in ({"tolerance": 1.0}, {"confidence": 0.2}):
        with pytest.raises(UserError):
            GateConfig(**wrong)


# --- rounds ---


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base; tasks `one` and `two`, `noise` that can't be learnt, `open` without held-out rows."""
    folder = tmp_path_factory.mktemp("rounds")
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer.vocab_size, 0, layers=1, length=64)
    save_model(model, folder / "base", tokenizer=tokenizer)
    random = np.random.default_rng(0)
    for name in ("one", "two", "noise", "open"):
        rows = []
        for i in range(32):
            word = "".join(chr(0x430 + c) for c in random.integers(0, 26, 12))
            said = word if name == "noise" and i >= 20 else f"{i} is {name}"
            rows.append(
                {
                    "document": str(i),
                    "messages": [
                        {"role": "user", "content": f"{name} {i}?"},
                        {"role": "assistant", "content": said},
                    ],
                }
            )
        (folder / name).mkdir()
        parts = {"train": rows[:20], "heldout": [] if name == "open" else rows[20:]}
        for part, found in parts.items():
            text = "".join(json.dumps(row) + "\n" for row in found)
            (folder / name / f"{part}.jsonl").write_text(text)
    return folder


def asked(place: Path, task: str, **changes: Any) -> ContinualRoundConfig:
    settings: dict[str, Any] = {
        "task": str(place / task),
        "model": str(place / "base"),
        "epochs": 6.0,
        "batch_size": 4,
        "context_length": 64,
        "loop": QUICK,
        "threads": 1,
    }
    return ContinualRoundConfig(**settings | changes)


def test_rounds_follow_each_other_and_only_good_ones_are_served(
    place: Path, tmp_path: Path
) -> None:
    state = ContinualState(tmp_path / "state")
    with pytest.raises(UserError, match="has no model yet"):
        state.learn(asked(place, "one", model=""))
    first = state.learn(asked(place, "one"))
    assert first.promoted and first.served
    assert state.current.resolve() == (tmp_path / "state/rounds/0001/model").resolve()
    again = state.learn(asked(place, "one"))
    assert again.number == 1 and len(state.rounds()) == 1
    # Naive tuning on another task forgets the first: the candidate stays outside.
    bad = state.learn(asked(place, "two", method="none"))
    assert not bad.promoted and not bad.served and bad.number == 2
    assert any("one: lost more than the tolerance" in why for why in bad.artifact.metrics["shut"])
    assert state.current.resolve().parent.name == "0001"
    assert state.learn(asked(place, "two", method="none")).number == 2
    good = state.learn(asked(place, "two", method="replay"))
    assert good.promoted and state.current.resolve().parent.name == "0003"
    assert good.artifact.manifest["config"]["previous"].endswith("0001")
    assert [entry["served"] for entry in described(state.rounds())] == [False, False, True]
    load_language_model(state.current)
    state.serve(1)
    assert state.current.resolve().parent.name == "0001"
    with pytest.raises(UserError, match="did not pass its gates"):
        state.serve(2)
    with pytest.raises(UserError, match="no round 9; there are: 1, 2, 3"):
        state.serve(9)


def test_a_round_that_is_stopped_goes_on_to_the_same_end(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmworks.evaluation.continual import round as rounds

    whole = ContinualState(tmp_path / "whole").learn(asked(place, "one"))
    state, gates = ContinualState(tmp_path / "stopped"), rounds._gates

    def stopped(*_: Any) -> list[Gate]:
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "_gates", stopped)
    with pytest.raises(KeyboardInterrupt):
        state.learn(asked(place, "one"))
    assert not state.rounds() and not state.current.exists()
    monkeypatch.setattr(rounds, "_gates", gates)
    done = state.learn(asked(place, "one"))
    model = (Path(p) / "model/model.safetensors" for p in (whole.artifact.path, done.artifact.path))
    assert next(model).read_bytes() == next(model).read_bytes()


def test_what_can_not_be_a_round_is_refused(place: Path, tmp_path: Path) -> None:
    state = ContinualState(tmp_path / "state")
    with pytest.raises(UserError, match="holds nothing out"):
        state.learn(asked(place, "open"))
    with pytest.raises(UserError, match="name --model for a first round"):
        from lmworks.evaluation.continual.round import continual_round

        continual_round(asked(place, "one", model=""), out=tmp_path / "r")
    (tmp_path / "state").mkdir(exist_ok=True)
    (tmp_path / "state" / "current").write_text("mine")
    with pytest.raises(UserError, match="was not made by `train continue`"):
        state.learn(asked(place, "one"))


def test_what_can_not_be_learnt_is_not_promoted(place: Path, tmp_path: Path) -> None:
    state = ContinualState(tmp_path / "state")
    done = state.learn(asked(place, "noise", general=str(place / "one"), epochs=1.0))
    assert not done.promoted and not (tmp_path / "state" / "current").exists()
    gates = json.loads((done.artifact.path / "gates.json").read_text())
    assert [g["task"] for g in gates["gates"]] == ["noise", "general"]
    # As long as nothing is served, another beginning is another round, the same one is not.
    again = state.learn(asked(place, "noise", general=str(place / "one"), epochs=1.0))
    other = state.learn(asked(place, "noise", epochs=1.0))
    assert (again.number, other.number) == (1, 2)
    assert state.learn(asked(place, "noise", epochs=1.0)).number == 2


def test_the_command_says_what_became_of_it(place: Path, tmp_path: Path) -> None:
    from lmworks.cli.main import cli

    state = str(tmp_path / "state")
    rate = ["--set", "loop.optimizer.learning_rate=5e-3", "--set", "loop.warmup_steps=0"]
    command = ["train", "continue", "--state", state, *FLAGS, *rate]
    run = CliRunner()
    first = [*command, "--model", str(place / "base"), "--task", str(place / "one")]
    told = run.invoke(cli, first)
    assert told.exit_code == 0 and "promoted: " in told.output, told.output
    told = run.invoke(cli, first)
    assert "round 1 learnt this already" in told.output
    told = run.invoke(cli, [*command, "--task", str(place / "two"), "--method", "none"])
    assert told.exit_code == 0 and "not promoted, the model stays as it was: one:" in told.output
    told = run.invoke(cli, ["train", "continue", "--state", state, "--show"])
    assert told.output.startswith("*    1") and "rejected: one:" in told.output
    told = run.invoke(cli, [*first, "--served-as", "assistant"])
    assert "give --server too" in str(told.exception) and "round 1" not in told.output
    told = run.invoke(cli, ["train", "continue", "--state", state, "--serve-round", "1"])
    assert "is the model of round 1" in told.output


# --- figures ---


def test_pairs_and_votes_are_scored_by_the_answer_alone(place: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = load_language_model(place / "base")
    ask = [{"role": "user", "content": "q"}]
    said = {w: [{"role": "assistant", "content": w}] for w in ("red", "green")}
    pair = {"prompt": ask, "chosen": said["red"], "rejected": said["green"]}
    mirrored = {"prompt": ask, "chosen": said["green"], "rejected": said["red"]}
    scores = measure(model, tokenizer, "pairs", [pair, mirrored])
    assert scores.bits[0] == pytest.approx(-scores.bits[1])
    votes = [{"prompt": ask, "completion": said["red"], "label": label} for label in (True, False)]
    liked, disliked = measure(model, tokenizer, "votes", votes).bits
    assert liked == pytest.approx(-disliked) and liked > 0
    # The question and an earlier answer are read and not scored.
    longer = [*ask, {"role": "assistant", "content": "what?"}, *ask]
    (one,) = measure(model, tokenizer, "votes", [{**votes[0], "prompt": longer}]).bits
    answer = [{"messages": [*ask, *said["red"]], "id": "1"}]
    assert measure(model, tokenizer, "answers", answer).bits_per_byte == pytest.approx(liked)
    assert one != pytest.approx(liked) and 0 < one < 3 * liked


def course(forgets: float) -> Course:
    """Two tasks of 8 rows of 100 bytes: learnt to 200 bits, then `forgets` bits are lost."""
    noise = np.random.default_rng(0).normal(0, 0.1, (3, 8))
    first = np.stack([400 + noise, 200 + noise, 200 + forgets + 2 * noise], axis=1)
    second = np.stack([400 + noise, 390 + noise, 210 + noise], axis=1)
    return Course(
        tasks=("a", "b"),
        bits={"a": first, "b": second},
        num_bytes={"a": np.full(8, 100), "b": np.full(8, 100)},
        groups={name: np.array([f"g{i}" for i in range(8)]) for name in "ab"},
    )


def test_forgetting_is_what_the_end_has_more_than_the_state_after_the_task() -> None:
    courses = {"none": course(50.0), "replay": course(5.0)}
    naive, held = figures(courses, "forgotten")
    assert naive.value.estimate == pytest.approx(0.5, abs=0.01) and naive.by_rows is None
    assert held.value.estimate == pytest.approx(0.05, abs=0.01)
    assert held.by_rows is not None and held.by_rows.high < -0.44
    assert held.by_seeds is not None and held.by_seeds.high < -0.44 and held.verdict == "better"
    learnt = figures(courses, "learnt")[0]
    assert learnt.value.estimate == pytest.approx(2.05, abs=0.01)
    assert figures(courses, "at_end")[0].value.estimate == pytest.approx(2.3, abs=0.01)
    assert courses["none"].matrix()[2] == pytest.approx([2.5, 2.1], abs=0.01)
    text = markdown(courses)
    assert "| after" not in text and "| b | 2.5" in text and "Forgotten of earlier tasks" in text


def test_methods_are_compared_on_the_same_tasks(place: Path, tmp_path: Path) -> None:
    config = CompareContinualConfig(
        model=str(place / "base"),
        tasks={"one": str(place / "one"), "two": str(place / "two")},
        methods=["none", "replay"],
        seeds=2,
        epochs=4.0,
        batch_size=4,
        context_length=64,
        loop=QUICK,
        threads=1,
    )
    made = compare_continual(config, out=tmp_path / "report")
    forgotten = made.metrics["forgotten"]
    assert forgotten["replay"] < forgotten["none"] and "replay forgot" in made.metrics["summary"]
    assert {p.name for p in made.path.iterdir()} >= {"forgetting.md", "report.html"}
    with pytest.raises(UserError, match="name two or more"):
        compare_continual(
            dataclasses.replace(config, tasks={"one": str(place / "one")}), out=tmp_path / "x"
        )
    with pytest.raises(UserError, match="holds nothing out"):
        compare_continual(
            dataclasses.replace(
                config, tasks={"one": str(place / "one"), "open": str(place / "open")}
            ),
            out=tmp_path / "x",
        )
