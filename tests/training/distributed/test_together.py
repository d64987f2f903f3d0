"""Several processes on one stage: who writes, who is named, and how a run ends and goes on."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from tests.training import preference_setup as setup

from lmworks.cli.main import main
from lmworks.core import processes
from lmworks.core.errors import Preempted, UserError
from lmworks.core.files import write_text
from lmworks.training.callbacks.base import Callback
from lmworks.training.distributed.plan import ParallelConfig
from lmworks.training.objectives.causal import causal
from lmworks.training.strategy import strategy_for
from lmworks.training.trainer import Trainer
from lmworks.training.trainer_config import LoopConfig

_spec = importlib.util.spec_from_file_location(
    "distributed_worker", Path(__file__).with_name("worker.py")
)
assert _spec and _spec.loader
worker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(worker)


def test_a_process_with_other_facts_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = {"input corpus (sha256)": "a" * 64, "version of lmworks": "1"}
    monkeypatch.setattr(processes, "exchange", lambda value: [value, value])
    processes.same_everywhere(mine)
    other = {**mine, "input corpus (sha256)": "b" * 64}
    monkeypatch.setattr(processes, "exchange", lambda value: [value, value, other])
    with pytest.raises(UserError) as caught:
        processes.same_everywhere(mine)
    assert "process 2 of 3 has another input corpus" in str(caught.value)
    assert "bbbbbbbbbbbb, not aaaaaaaaaaaa" in str(caught.value)


def test_the_others_hear_of_an_error_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(processes, "exchange", lambda value: [told.append(value)])
    with pytest.raises(UserError), processes.announcing():
        raise UserError("the folder is taken")
    with pytest.raises(ValueError), processes.announcing() as tell:
        tell("work")
        raise ValueError("too late to be told: the connection ends")
    assert told == ["error: the folder is taken", "work"]


def test_the_others_leave_when_the_training_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    processes.leave_if_following()  # outside of a stage nobody leaves
    after: list[int] = []
    with processes.following():
        processes.leave_if_following()
        after.append(1)
    assert not after


def test_a_plan_of_several_in_one_process_is_refused() -> None:
    with pytest.raises(UserError, match="--launch torchrun --nproc 2"):
        strategy_for(ParallelConfig(tensor=2))


def test_the_system_s_signal_saves_and_asks_for_a_new_start(tmp_path: Path) -> None:
    class Ended(Callback):
        def after_step(self, trainer: Trainer, step: int) -> None:
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    def trainer(work: Path, *callbacks: Callback) -> Trainer:
        work.mkdir(exist_ok=True)
        return Trainer(
            worker.model_of({}),
            causal,
            worker.batches_of({}),
            LoopConfig(),
            num_steps=5,
            work=work,
            callbacks=callbacks or [Callback()],
        )

    wanted = trainer(tmp_path / "whole").fit()
    with pytest.raises(Preempted, match="after step 3, which is saved") as caught:
        trainer(tmp_path / "ended", Ended()).fit()
    assert caught.value.exit_code == 75
    assert trainer(tmp_path / "ended").fit().loss == wanted.loss


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_on_two_processes_makes_what_one_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "texts"
    for name, text in sorted(topics.items())[:40]:
        write_text(folder / f"{name}.txt", text)
    monkeypatch.chdir(tmp_path)
    assert main(["--quiet", "data", "build", "--folder", str(folder), "--out", "corpus"]) == 0
    train = ["--quiet", "tokenizer", "train", "--corpus", "corpus", "--vocab-size", "400"]
    assert main([*train, "--out", "tokenizer"]) == 0
    command = ["--quiet", "train", "pretrain", "--corpus", "corpus", "--tokenizer", "tokenizer"]
    command += ["--depth", "2", "--context-length", "32", "--num-steps", "6", "--threads", "1"]
    command += ["--set", "shape.num_attention_heads=2", "--set", "shape.hidden_size=32"]
    assert main([*command, "--out", "one"]) == 0
    plan = ["--set", "loop.parallel.shard=2", "--launch", "torchrun", "--nproc", "2"]
    assert main([*command, *plan, "--out", "two"]) == 0
    found: list[dict[str, Any]] = [
        json.loads((tmp_path / name / "history.json").read_text()) for name in ("one", "two")
    ]
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], abs=1e-4)
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == sorted(
        p.name for p in (tmp_path / "one").iterdir()
    )
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*.lock"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", ["prefer", "reward", "embed", "distill"])
def test_stages_that_tune_make_on_two_processes_what_one_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    setup.write_tiny(tmp_path / "base")
    pairs = setup.rows(22, as_text=True)
    rows = {
        "prefer": pairs,
        "reward": pairs,
        "embed": [{"anchor": r["prompt"], "positive": r["chosen"]} for r in pairs],
        "distill": [
            {"messages": [
                {"role": "user", "content": r["prompt"]},
                {"role": "assistant", "content": r["chosen"]},
            ]}
            for r in pairs
        ],
    }[stage]  # fmt: skip
    (tmp_path / "data").mkdir()
    for part in ("train", "heldout"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_text(tmp_path / "data" / f"{part}.jsonl", lines)
    monkeypatch.chdir(tmp_path)
    given = {
        "prefer": ["--model", "base", "--preferences", "data", "--objective", "kto"],
        "reward": ["--model", "base", "--preferences", "data"],
        "embed": ["--model", "base", "--pairs", "data"],
        "distill": ["--teacher", "base", "--depth", "1", "--questions", "data",
                    "--kind", "sequence", "--max-tokens", "8"],
    }[stage]  # fmt: skip
    command = ["--quiet", "train", stage, *given, "--num-steps", "6", "--batch-size", "6"]
    command += ["--threads", "1", "--set", "loop.warmup_steps=2"]
    assert main([*command, "--out", "one"]) == 0
    launch = ["--launch", "torchrun", "--nproc", "2"]
    assert main([*command, *launch, "--out", "two"]) == 0
    found: list[dict[str, Any]] = [
        json.loads((tmp_path / name / "history.json").read_text()) for name in ("one", "two")
    ]
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], abs=1e-4)
    assert found[1]["heldout_loss"] == pytest.approx(found[0]["heldout_loss"], abs=1e-4)
    figures = [
        json.loads((tmp_path / name / "lmworks.json").read_text())["metrics"]
        for name in ("one", "two")
    ]
    assert figures[0].keys() == figures[1].keys() and figures[1]["tokens_per_s"] > 0
