"""Distillation beside plain torch, stored teachers beside live ones, and the stage."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.training import preference_setup as setup

from lmworks.core.config import from_mapping
from lmworks.core.errors import UserError
from lmworks.models.load import load_model
from lmworks.models.model import Model
from lmworks.training.batches import IGNORED
from lmworks.training.distill import DistillConfig, distill, layer_pairs
from lmworks.training.distillation_rows import TokenRows
from lmworks.training.objectives.base import build_objective
from lmworks.training.objectives.distillation import Student, diverge, with_rest
from lmworks.training.preferences.batches import EncodedAnswer
from lmworks.training.strategy import Compute, OneProcess

DIVERGENCES = ("forward_kl", "reverse_kl", "js")


def rows(count: int = 5) -> list[EncodedAnswer]:
    import numpy as np

    random = np.random.default_rng(3)
    found = []
    for number in range(count):
        size = 6 + number
        ids = random.integers(4, 290, size).astype(np.int32)
        found.append(EncodedAnswer(ids=ids, counted=np.arange(size) >= 2 + number % 2))
    return found


def token_rows(count: int = 5) -> TokenRows:
    return TokenRows(rows(count), length=100, padding=0, batch_size=count, seed=0)


def student_model(hidden: int = 64) -> Model:
    config = setup.tiny_config(setup.tiny_tokenizer().vocab_size)
    one = dataclasses.replace(config, layers=config.layers[:1], hidden_size=hidden)
    model = Model(one)
    setup.fill(model, seed=4)
    return model.eval()


def objective_with(teacher: Any, **settings: Any) -> Any:
    objective: Any = build_objective("distillation", settings)
    return dataclasses.replace(objective, teacher=teacher)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_losses_are_those_of_plain_torch(kind: str, temperature: float) -> None:
    student, teacher, batch = student_model(), setup.tiny_model(), token_rows().collate(range(5))
    objective = objective_with(teacher, divergence=kind, temperature=temperature, label_weight=0.3)
    loss = objective(student, batch)
    ours, theirs = student(batch.input_ids), teacher(batch.input_ids).detach()
    counted = batch.labels != IGNORED
    nll = F.cross_entropy(ours[counted], batch.labels[counted])
    s, t = (x[counted].div(temperature).log_softmax(-1) for x in (ours, theirs))
    if kind == "forward_kl":
        divergence = F.kl_div(s, t, log_target=True, reduction="batchmean")
    elif kind == "reverse_kl":
        divergence = F.kl_div(t, s, log_target=True, reduction="batchmean")
    else:
        middle = ((s.exp() + t.exp()) / 2).log()
        parts = [F.kl_div(middle, x, log_target=True, reduction="batchmean") for x in (s, t)]
        divergence = (parts[0] + parts[1]) / 2
    expected = 0.3 * nll + 0.7 * temperature**2 * divergence
    torch.testing.assert_close(loss.value, expected, rtol=1e-5, atol=1e-6)
    assert loss.metrics["divergence"] == pytest.approx(divergence.item(), rel=1e-4)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_a_divergence_is_zero_for_the_same_and_never_below(kind: str) -> None:
    first, second = (torch.randn(50, 20).mul(3).log_softmax(-1) for _ in range(2))
    assert diverge(kind, first, first).abs().max() < 1e-6
    assert diverge(kind, first, second).min() > 0
    # Outcomes that are put together can only come nearer.
    few = [with_rest(x[:, :5]) for x in (first, second)]
    torch.testing.assert_close(few[0].exp().sum(-1), torch.ones(50))
    assert (diverge(kind, *few) <= diverge(kind, first, second) + 1e-6).all()


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_a_stored_teacher_with_all_tokens_is_the_live_one(kind: str, tmp_path: Path) -> None:
    student, teacher, data = student_model(), setup.tiny_model(), token_rows()
    objective = objective_with(teacher, divergence=kind, temperature=1.5)
    live = objective(student, data.collate([3, 1, 4]))
    data.store_top(teacher, teacher.config.vocab_size, 1.5, tmp_path / "teacher")
    batch = data.collate([3, 1, 4])
    stored = dataclasses.replace(objective, teacher=None)(student, batch)
    torch.testing.assert_close(stored.value, live.value, rtol=1e-4, atol=1e-5)
    again = token_rows()
    again.store_top(None, 3, 1.0, tmp_path / "teacher")  # read, not asked anew
    assert torch.equal(again.collate([3, 1, 4]).top_ids, batch.top_ids)  # type: ignore[union-attr]


def test_few_stored_tokens_hold_most_of_it(tmp_path: Path) -> None:
    student, data = student_model(), token_rows()
    teacher = setup.tiny_model()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(2)  # a teacher that is sure
    live = objective_with(teacher)(student, data.collate(range(5)))
    data.store_top(teacher, 32, 1.0, tmp_path / "teacher")
    stored = objective_with(None)(student, data.collate(range(5)))
    assert stored.metrics["divergence"] <= live.metrics["divergence"] + 1e-5
    assert stored.metrics["divergence"] > 0.7 * live.metrics["divergence"]


@pytest.mark.parametrize("stored", [False, True])
def test_micro_batches_give_the_same(stored: bool, tmp_path: Path) -> None:
    student, teacher, data = student_model().double(), setup.tiny_model().double(), token_rows()
    if stored:
        data.store_top(teacher, 8, 1.0, tmp_path / "teacher")
    objective = objective_with(teacher)
    found = []
    for size in (0, 2):
        student.zero_grad()
        OneProcess().gradients(
            student, objective, data.collate(range(5)), Compute(micro_batch_size=size)
        )
        found.append(torch.cat([p.grad.flatten() for p in student.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-7)


def test_states_are_learnt_through_a_map() -> None:
    student, teacher = student_model(hidden=32), setup.tiny_model()
    assert layer_pairs(student, teacher) == [(0, 1)]
    both = Student(student, teacher, layer_pairs(student, teacher))
    objective = objective_with(teacher, feature_weight=1.0)
    optimizer = torch.optim.AdamW(both.parameters(), lr=3e-3)
    batch = token_rows().collate(range(5))
    distances = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = objective(both, batch)
        loss.value.backward()
        optimizer.step()
        distances.append(loss.metrics["features"])
    assert distances[-1] < 0.7 * distances[0]
    assert all(p.grad is not None for p in both.maps.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_layers_at_equal_shares_of_the_depth() -> None:
    class Deep:
        def __init__(self, layers: int) -> None:
            self.config = type("C", (), {"num_hidden_layers": layers})

    assert layer_pairs(Deep(3), Deep(12)) == [(0, 3), (1, 7), (2, 11)]  # type: ignore[arg-type]
    assert layer_pairs(Deep(4), Deep(2)) == [(0, 0), (1, 0), (2, 1), (3, 1)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": 0.0}, "temperature = 0.0"),
        ({"label_weight": 1.5}, "label_weight = 1.5"),
        ({"divergence": "kl"}, "divergence = 'kl' is not valid"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_objective("distillation", settings)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    setup.write_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    for name, part in (("train", slice(0, 12)), ("heldout", slice(12, 16))):
        texts = [json.dumps({"messages": r["prompt"] + r["chosen"]}) for r in setup.rows(16)[part]]
        (folder / f"{name}.jsonl").write_text("\n".join(texts) + "\n")
    return folder


def config(teacher: Path, questions: Path, /, **values: Any) -> DistillConfig:
    settings: dict[str, Any] = {
        "teacher": str(teacher),
        "questions": str(questions),
        "depth": 1,
        "num_steps": 6,
        "batch_size": 4,
        "threads": 1,
        "loop": {"warmup_steps": 1, "optimizer": {"learning_rate": 3e-3}},
    }
    return from_mapping(DistillConfig, settings | values)


@pytest.mark.parametrize(
    "values",
    [{}, {"top_k": 16, "settings": {"temperature": 2.0}}, {"kind": "features"}],
    ids=["live", "stored", "features"],
)
def test_a_student_learns(
    values: dict[str, Any], teacher: Path, questions: Path, tmp_path: Path
) -> None:
    artifact = distill(config(teacher, questions, **values), tmp_path / "out")
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert history["heldout_loss"][-1] < history["heldout_loss"][0]
    assert artifact.metrics["heldout_nll"] > 0
    assert load_model(tmp_path / "out").config.num_hidden_layers == 1


def test_a_student_learns_the_teachers_answers(
    teacher: Path, questions: Path, tmp_path: Path
) -> None:
    values = config(teacher, questions, kind="sequence", max_tokens=5)
    distill(values, tmp_path / "out")
    lines = (tmp_path / "out" / "teacher_answers.jsonl").read_text().splitlines()
    said = [json.loads(line)["messages"] for line in lines]
    assert len(said) == 12
    asked = [row["prompt"] for row in setup.rows(12)]
    assert [messages[:-1] for messages in said] == asked


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"depth": 0}, "name a --student, or give the --depth"),
        ({"corpus": "x"}, "name a --corpus or --questions"),
        ({"top_k": 3, "kind": "features"}, "features needs the teacher itself"),
        ({"questions": "", "corpus": "x", "kind": "sequence"}, "the teacher answers --questions"),
    ],
)
def test_what_does_not_go_together_is_said(
    values: dict[str, Any], said: str, teacher: Path, questions: Path, tmp_path: Path
) -> None:
    (tmp_path / "x").mkdir()
    values = {k: str(tmp_path / "x") if v == "x" else v for k, v in values.items()}
    with pytest.raises(UserError, match=said):
        distill(config(teacher, questions, **values), tmp_path / "out")


def test_features_of_another_tokenizer_are_refused(
    teacher: Path, questions: Path, tmp_path: Path
) -> None:
    from lmworks.tokenizers.train import train_bpe

    student = tmp_path / "student"
    setup.write_tiny(student)
    train_bpe(["words of another kind"] * 4, vocab_size=280).save(student)
    with pytest.raises(UserError, match=r"vocabulary of .*lmworks model transplant"):
        values = {"depth": 0, "student": str(student), "kind": "features"}
        distill(config(teacher, questions, **values), tmp_path / "out")
