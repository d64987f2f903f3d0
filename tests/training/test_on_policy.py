"""On-policy distillation: whose text is read when, and what is learnt of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training import preference_setup as setup
from tests.training.test_byte_distillation import models, readers
from tests.training.test_distillation import config as stage_config
from tests.training.test_distillation import questions, student_model, teacher, token_rows  # noqa: F401

from lmworks.core.errors import UserError
from lmworks.training import on_policy
from lmworks.training.batches import IGNORED
from lmworks.training.byte_rows import ByteRows, Passage
from lmworks.training.distill import distill
from lmworks.training.objectives.base import build_objective
from lmworks.training.on_policy import STUDENT, OnPolicy, Said, continued, own_bytes, own_tokens


def test_a_share_of_the_steps_is_the_students() -> None:
    data = token_rows(6)
    asked: list[int] = []

    def own(numbers: np.ndarray, seed: int) -> Any:
        asked.append(seed)
        return dataclasses.replace(data.collate(numbers), source=STUDENT)

    for share, least, most in ((0.0, 0, 0), (1.0, 40, 40), (0.5, 8, 32)):
        asked.clear()
        mixed = OnPolicy(data, own, share=share, seed=1)
        batches: list[Any] = [mixed(step) for step in range(40)]
        assert least <= len(asked) <= most
        assert sum(b.source == STUDENT for b in batches) == len(asked)
        assert len(set(asked)) == len(asked)
    silent = OnPolicy(data, lambda numbers, seed: None, share=1.0, seed=1)
    assert silent(3).source == ""  # type: ignore[attr-defined]


def test_rows_begin_as_the_data_and_go_on_as_the_student() -> None:
    tokenizer, student, data = setup.tiny_tokenizer(), student_model(), token_rows(5)
    own = own_tokens(data, student, tokenizer, max_tokens=6, length=60)
    batch: Any = own(np.array([0, 3]), 7)
    assert batch.source == STUDENT
    for line, number in enumerate((0, 3)):
        row = data.rows[number]
        first = int(row.counted.argmax())
        assert batch.input_ids[line, :first].tolist() == row.ids[:first].tolist()
        said = batch.labels[line][batch.labels[line] != IGNORED].tolist()
        again = continued(student, tokenizer, [row.ids[:first]], max_tokens=6, seed=7 + line)
        assert said == again[0].ids and 1 <= len(said) <= 6
    same: Any = own(np.array([0, 3]), 7)
    assert torch.equal(same.labels, batch.labels)


def test_its_own_words_are_no_label() -> None:
    student, master = student_model(), setup.tiny_model()
    objective: Any = build_objective("distillation", {"label_weight": 0.5})
    objective = dataclasses.replace(objective, teacher=master)
    batch: Any = token_rows().collate(range(5))
    own = dataclasses.replace(batch, source=STUDENT)
    told, mine = objective(student, batch), objective(student, own)
    assert mine.value.item() == pytest.approx(mine.metrics["divergence"], rel=1e-5)
    both = 0.5 * told.metrics["nll"] + 0.5 * told.metrics["divergence"]
    assert told.value.item() == pytest.approx(both, rel=1e-5)


def test_a_teacher_of_another_tokenizer_reads_what_was_said(tmp_path: Path) -> None:
    student, master = models()
    both = readers()
    passages = [Passage(text="the cat sat on the mat and the dog sat in the fog")] * 3
    rows = ByteRows(passages, student=both[0], teacher=both[1], batch_size=3, seed=0)
    own = own_bytes(rows, student, master, both, max_tokens=8, top=8)
    batch: Any = None
    for seed in range(5):  # what an untrained model says is seldom a text
        batch = batch or own(np.arange(3), seed)
    assert batch is not None and batch.batch.source == STUDENT
    assert batch.counted.any() and batch.top_logprobs[batch.counted].max() <= 0


def test_a_character_that_the_student_finishes_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The beginning that it is given may end within a character."""
    student, master = models()
    both = readers()
    passages = [Passage(text="日本語のテキスト")]
    rows = ByteRows(passages, student=both[0], teacher=both[1], batch_size=1, seed=0)
    ids = rows.rows[0][0].ids.tolist()

    def goes_on(model: Any, tokenizer: Any, prompts: list[list[int]], **more: Any) -> list[Said]:
        assert "\ufffd" in tokenizer.decode(prompts[0][1:])
        return [Said(ids=ids[len(prompts[0]) :], ended=False)]

    monkeypatch.setattr(on_policy, "continued", goes_on)
    batch: Any = own_bytes(rows, student, master, both, max_tokens=8, top=8)(np.arange(1), 0)
    assert batch.batch.input_ids[0].tolist() == ids[:-1]


def test_the_stage_lets_the_student_write(
    teacher: Path,  # noqa: F811
    questions: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    values = {"on_policy": 0.5, "max_tokens": 6, "settings": {"divergence": "reverse_kl"}}
    artifact = distill(stage_config(teacher, questions, **values), tmp_path / "out")
    assert artifact.metrics["heldout_divergence"] > 0
    for wrong, said in (
        ({"on_policy": 1.5}, "on_policy = 1.5"),
        ({"on_policy": 0.5, "kind": "sequence"}, "the teacher must be asked"),
        ({"on_policy": 0.5, "settings": {"label_weight": 1}}, "the teacher must be asked"),
    ):
        with pytest.raises(UserError, match=said):
            distill(stage_config(teacher, questions, **wrong), tmp_path / "no")
