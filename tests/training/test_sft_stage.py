"""The stages `sft` and `adapt` on files: what they make, hold, refuse and tell."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from tests.training import sft_setup as setup

from lmworks.core import progress
from lmworks.core.errors import UserError
from lmworks.data.documents import Document, write_documents
from lmworks.evaluation.tuning import CompareTunedConfig, compare_tuned
from lmworks.models.load import load_language_model
from lmworks.models.save import save_model
from lmworks.tokenizers.load import load_tokenizer
from lmworks.training.adapt import AdaptConfig, adapt
from lmworks.training.retention.config import RetentionConfig
from lmworks.training.sft import SFTConfig, sft

LOOK = RetentionConfig(look_every=2, look_windows=4, fisher_windows=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with a template, conversations, a corpus."""
    folder = tmp_path_factory.mktemp("sft")
    tokenizer = setup.tiny_tokenizer()
    save_model(
        setup.tiny_model(tokenizer.vocab_size), folder / "base", tokenizer=tokenizer, card=""
    )
    rows = [{"messages": row} for row in setup.conversations(12)]
    write_rows(folder / "chats.jsonl", rows)
    (folder / "corpus").mkdir()
    texts = [text for _, text in sorted(topics.items())]
    for part, chosen in (("train", texts[:12]), ("heldout", texts[12:20])):
        write_documents(
            folder / "corpus" / f"{part}.jsonl",
            [
                Document(id=str(i), group=str(i), source="", title="", text=text[:1500])
                for i, text in enumerate(chosen)
            ],
        )
    return folder


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(folder: Path, **settings: Any) -> SFTConfig:
    defaults = {
        "model": str(folder / "base"),
        "questions": str(folder / "chats.jsonl"),
        "num_steps": 6,
        "batch_size": 4,
        "threads": 1,
        "forgetting": LOOK,
    }
    return SFTConfig(**(defaults | settings))


def test_a_file_packed_under_a_budget(folder: Path, tmp_path: Path) -> None:
    made = sft(
        config(
            folder,
            packing=True,
            context_length=512,
            corpus=str(folder / "corpus"),
            retention="kl",
            forgetting_budget="0.5%",
        ),
        out=tmp_path / "chat",
    )
    metrics = made.metrics
    assert metrics["num_conversations"] == 12 and metrics["num_targets"] > 0
    assert metrics["forgotten"] <= 0.005
    assert metrics["general_loss"] <= 1.005 * metrics["general_loss_before"] + 1e-9
    history = json.loads((made.path / "history.json").read_text())
    assert [step for step, _ in history["general"]] == [0, 2, 4, 6, 6]
    load_language_model(made.path)
    assert load_tokenizer(made.path).chat_template == setup.UNTAGGED


@pytest.mark.parametrize("method", ["ewc", "l2", "interpolate", "none"])
def test_adapting_under_a_budget(folder: Path, tmp_path: Path, method: str) -> None:
    made = adapt(
        AdaptConfig(
            model=str(folder / "base"),
            corpus=str(folder / "corpus"),
            general=str(folder / "corpus"),
            retention=method,
            forgetting_budget="1%",
            num_steps=4,
            batch_size=2,
            context_length=64,
            threads=1,
            forgetting=LOOK,
        ),
        out=tmp_path / "law",
    )
    assert made.metrics["forgotten"] <= 0.01
    assert made.metrics["corpus_tokens"] > 1000


def test_too_long_rows_are_left_out_and_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(progress, "say", said.append)
    long = [{"role": "user", "content": "x " * 3000}, {"role": "assistant", "content": "y"}]
    rows = [{"messages": row} for row in [*setup.conversations(8), long]]
    write_rows(tmp_path / "chats.jsonl", rows)
    made = sft(config(folder, questions=str(tmp_path / "chats.jsonl")), out=tmp_path / "chat")
    assert made.metrics["num_too_long"] == 1
    assert any("1 conversations longer than 1024 tokens are left out" in line for line in said)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([{"role": "robot", "content": "x"}], "line 1: messages.0. has role 'robot'"),
        ([{"role": "user", "content": "x"}], "line 1: no assistant message"),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}],
            "line 1: messages.1. is an empty answer",
        ),
        (
            [{"role": "user", "content": "x " * 3000}, {"role": "assistant", "content": "y"}],
            "no conversation is left to train on: 1 conversations longer than 1024 tokens",
        ),
    ],
)
def test_bad_rows_are_one_line(
    folder: Path, tmp_path: Path, row: list[dict[str, str]], message: str
) -> None:
    write_rows(tmp_path / "chats.jsonl", [{"messages": row}])
    with pytest.raises(UserError, match=message) as caught:
        sft(config(folder, questions=str(tmp_path / "chats.jsonl")), out=tmp_path / "chat")
    assert "\n" not in str(caught.value)


def test_settings_out_of_range_are_one_line(folder: Path, tmp_path: Path) -> None:
    for settings, message in (
        ({"replay": 1.0, "corpus": str(folder / "corpus")}, "a share of steps"),
        ({"forgetting_budget": "1%"}, "needs text to measure by"),
        ({"context_length": 4096}, "the model reads 1 to 1024 tokens"),
        ({"retention": "klee", "corpus": str(folder / "corpus")}, "'kl'"),
        ({"questions": str(folder)}, "train.jsonl is missing"),
    ):
        with pytest.raises(UserError, match=message):
            sft(config(folder, **settings), out=tmp_path / "chat")


def test_a_model_without_a_template_is_refused(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder / "base")
    bare = type(tokenizer)(dataclasses.replace(tokenizer.vocabulary, chat_template=None))
    save_model(load_language_model(folder / "base"), tmp_path / "base", tokenizer=bare, card="")
    with pytest.raises(UserError, match=r"chats.jsonl, line 1: the tokenizer has no chat template"):
        sft(config(folder, model=str(tmp_path / "base")), out=tmp_path / "chat")


def test_data_that_changed_since_a_run_was_stopped_are_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "chats.jsonl"
    rows = [{"messages": row} for row in setup.conversations(8)]
    write_rows(path, rows)
    wanted = config(folder, questions=str(path), checkpoint_every_s=0.0, num_steps=8)
    import lmworks.training.trainer as trainer_module

    step = trainer_module.Trainer.take_step

    def dies(self: Any, number: int) -> int:
        if number == 4:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(trainer_module.Trainer, "take_step", dies)
    with pytest.raises(KeyboardInterrupt):
        sft(wanted, out=tmp_path / "chat")
    monkeypatch.setattr(trainer_module.Trainer, "take_step", step)
    write_rows(path, rows[1:])
    said: list[str] = []
    monkeypatch.setattr(progress, "say", said.append)
    sft(wanted, out=tmp_path / "chat")
    assert "  starting anew: questions changed since the run that was stopped" in said


def test_the_report_compares_with_the_base(folder: Path, tmp_path: Path) -> None:
    made = sft(config(folder), out=tmp_path / "chat")
    report = compare_tuned(
        CompareTunedConfig(
            base=str(folder / "base"),
            models={"chat": str(made.path), "same": str(folder / "base")},
            questions=str(folder / "chats.jsonl"),
            general=str(folder / "corpus"),
            max_documents=8,
            threads=1,
        ),
        out=tmp_path / "report",
    )
    assert report.metrics["chat: answers"] < 0 == report.metrics["same: answers"]
    assert "| chat | -" in (report.path / "tuning.md").read_text()
    assert (report.path / "report.html").is_file()
