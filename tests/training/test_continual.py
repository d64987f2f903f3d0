"""Learning task after task: what is read, kept and rehearsed, and the formula of each method."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.training.sft_setup import tiny_tokenizer
from tests.training.tiny import tiny_model

from lmworks.core.errors import UserError
from lmworks.models.adapters.base import add_adapter
from lmworks.models.adapters.lora import LoRAConfig
from lmworks.models.model import Model
from lmworks.training.batches import IGNORED, Batch
from lmworks.training.continual.config import METHODS, HoldConfig, parse_method
from lmworks.training.continual.learn import Carried, learn
from lmworks.training.continual.memory import Kept, Memory
from lmworks.training.continual.online_ewc import OnlineEWC, carried_on
from lmworks.training.continual.rows import LearningRows
from lmworks.training.continual.stacks import OffTheStack, stacked
from lmworks.training.continual.tasks import Phase, read_task
from lmworks.training.optimizers.base import OptimizerConfig
from lmworks.training.retention.base import Retention, Several
from lmworks.training.retention.ewc import fisher_diagonal
from lmworks.training.trainer_config import LoopConfig


def answers(task: str, colour: str, count: int = 24) -> list[dict[str, Any]]:
    return [
        {
            "document": f"{task} {i}",
            "messages": [
                {"role": "user", "content": f"{task} {i}?"},
                {"role": "assistant", "content": f"{i} is {colour}"},
            ],
        }
        for i in range(count)
    ]


def phase(task: str, colour: str) -> Phase:
    rows = answers(task, colour)
    return Phase(kind="answers", train=rows[:16], heldout=rows[16:])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    method: str = "none"
    hold: HoldConfig = dataclasses.field(default_factory=HoldConfig)
    epochs: float = 1.0
    num_steps: int = 4
    batch_size: int = 4
    context_length: int = 64
    seed: int = 0
    loop: LoopConfig = dataclasses.field(
        default_factory=lambda: LoopConfig(
            schedule="constant",
            warmup_steps=0,
            optimizer=OptimizerConfig(name="adamw", learning_rate=3e-3, weight_decay=0.0),
        )
    )
    checkpoint_every_s: float = 600.0


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def fresh(tokenizer: Any) -> Model:
    return tiny_model(tokenizer.vocab_size, 0, layers=1, length=64)


# --- what is to be learnt ---


def write(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_task_tells_its_kind_by_its_fields(tmp_path: Path) -> None:
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    vote = {"prompt": "q", "completion": "a", "label": True}
    for name, row in (
        ("a", answers("x", "red")[0]),
        ("p", pair),
        ("v", vote),
        ("d", {"text": "t"}),
    ):
        write(tmp_path / name / "train.jsonl", [row])
    kinds = [read_task(tmp_path / name)[0].kind for name in "apvd"]
    assert kinds == ["answers", "pairs", "votes", "documents"]
    assert read_task(tmp_path / "a" / "train.jsonl")[0].heldout == []
    for name, row in (("answers", answers("x", "red")[0]), ("pairs", pair), ("votes", vote)):
        write(tmp_path / "feedback" / name / "train.jsonl", [row])
    assert [p.kind for p in read_task(tmp_path / "feedback")] == ["answers", "pairs"]
    write(tmp_path / "feedback" / "pairs" / "train.jsonl", [])
    assert [p.kind for p in read_task(tmp_path / "feedback")] == ["answers", "votes"]


@pytest.mark.parametrize(
    ("rows", "word"),
    [
        ([], "no row"),
        ([{"what": 1}], "can't tell what is to be learnt"),
        ([{"text": "t"}, {"messages": []}], "line 2: its fields are not those of documents"),
        ([{"messages": []}], "line 1: 'messages' must be"),
        ([{"prompt": "q", "chosen": "a", "rejected": "a"}], "the same"),
        ([{"prompt": "q", "completion": "a", "label": "yes"}], "'label' must be"),
    ],
)
def test_rows_that_can_not_be_learnt_are_named(tmp_path: Path, rows: list[Any], word: str) -> None:
    write(tmp_path / "train.jsonl", rows)
    with pytest.raises(UserError, match=word):
        read_task(tmp_path)


@pytest.mark.parametrize(
    ("method", "hold", "word"),
    [
        ("repaly", HoldConfig(), "did you mean 'replay'"),
        ("replay+kl", HoldConfig(), "both take the steps"),
        ("none+ewc", HoldConfig(), "none alone"),
        ("lora+ewc", HoldConfig(), "with lora"),
        ("replay", HoldConfig(memory_rows=0), "memory_rows is 0"),
    ],
)
def test_methods_that_do_not_go_are_refused(method: str, hold: HoldConfig, word: str) -> None:
    with pytest.raises(UserError, match=word):
        parse_method(method, hold)


def test_a_blank_line_counts_where_a_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "t"}\n\n{"text": 3}\n')
    with pytest.raises(UserError, match=r"train.jsonl, line 3: 'text' must be a text"):
        read_task(tmp_path)


# --- what is kept ---

TASKS = st.lists(st.integers(1, 30), min_size=1, max_size=5)


def remembered(sizes: list[int], most: int, most_heldout: int = 0) -> Memory:
    memory = Memory()
    for number, size in enumerate(sizes):
        rows = answers(f"task {number}", "red", size + 2)
        one = Phase(kind="answers", train=rows[2:], heldout=rows[:2])
        memory = memory.with_task(f"task {number}", [one], most=most, most_heldout=most_heldout)
    return memory


@settings(deadline=None)
@given(TASKS, st.integers(0, 60))
def test_the_memory_is_full_and_fair(sizes: list[int], most: int) -> None:
    memory = remembered(sizes, most)
    counts = [sum(k.task == f"task {n}" for k in memory.rehearsed) for n in range(len(sizes))]
    # Rows that gave way never come back, so a memory holds no more than it could hold throughout.
    assert sum(counts) == min(most, sum(sizes))
    for mine, size in zip(counts, sizes):
        assert mine == size or mine >= max(counts) - 1


def test_a_memory_that_shrinks_keeps_a_part_of_what_it_had() -> None:
    large, small = remembered([30, 30], 40), remembered([30, 30], 20)
    assert {str(k) for k in small.rehearsed} < {str(k) for k in large.rehearsed}


def test_the_same_rows_again_are_known_and_held_out_ones_are_never_rehearsed() -> None:
    rows = answers("x", "red")
    first = Memory().with_task(
        "x", [Phase(kind="answers", train=rows[:10], heldout=rows[10:])], most=99, most_heldout=0
    )
    again = first.with_task(
        "x", [Phase(kind="answers", train=rows, heldout=rows[10:])], most=99, most_heldout=0
    )
    assert len(again.rehearsed) == 10 and len(again.heldout) == 14


def test_what_is_measured_by_has_as_many_groups_as_can_be() -> None:
    rows = [{**row, "document": f"d{i // 8}"} for i, row in enumerate(answers("x", "red", 32))]
    one = Phase(kind="answers", train=rows[:1], heldout=rows)
    memory = Memory().with_task("x", [one], most=9, most_heldout=6)
    groups = [kept.row["document"] for kept in memory.heldout]
    assert len(groups) == 6 and len(set(groups)) == 4


def test_a_memory_comes_back_from_its_files(tmp_path: Path) -> None:
    memory = remembered([5, 3], 6)
    memory.write(tmp_path)
    assert Memory.read(tmp_path) == memory
    write(tmp_path / "memory.jsonl", [{"row": {"text": "t"}}])
    with pytest.raises(UserError, match=r"memory.jsonl, line 1"):
        Memory.read(tmp_path)


def test_documents_are_cut_into_rows_that_miss_no_token(tokenizer: Any) -> None:
    text = "What a long text this is, " * 20
    rows = LearningRows(
        [{"text": text}, answers("x", "red")[0]],
        tokenizer,
        context_length=16,
        batch_size=2,
        seed=0,
        too_long="keep-end",
    )
    learnt = [ids[1:][mask[1:]] for ids, mask in rows._rows]
    assert np.concatenate(learnt[:-1]).tolist() == tokenizer.encode(text)
    assert all(len(ids) <= 17 for ids, _ in rows._rows)


# --- methods ---


def one_batch(tokenizer: Any) -> Batch:
    rows = LearningRows(answers("x", "red"), tokenizer, context_length=64, batch_size=4, seed=0)
    return rows(0)


def test_padding_and_questions_say_nothing_of_what_matters(tokenizer: Any) -> None:
    model, batch = fresh(tokenizer), one_batch(tokenizer)
    wide = dataclasses.replace(
        batch,
        input_ids=torch.nn.functional.pad(batch.input_ids, (0, 8)),
        labels=torch.nn.functional.pad(batch.labels, (0, 8), value=IGNORED),
    )
    narrow, padded = (fisher_diagonal(model, lambda _, b=b: b, 4) for b in (batch, wide))
    for name, value in narrow.items():
        torch.testing.assert_close(padded[name], value, rtol=1e-4, atol=1e-6)


def test_online_ewc_pulls_by_the_fisher_it_is_given(tokenizer: Any) -> None:
    model = fresh(tokenizer)
    fisher = {n: torch.full_like(p, 2.0) for n, p in model.named_parameters()}
    method = OnlineEWC(model, fisher, strength=3.0)
    assert method.penalty(model).item() == 0
    with torch.no_grad():
        next(model.parameters()).add_(0.1)
    count = next(model.parameters()).numel()
    assert method.penalty(model).item() == pytest.approx(3.0 / 2 * 2.0 * count * 0.01, rel=1e-4)
    with pytest.raises(UserError, match="another model"):
        OnlineEWC(model, {"x": torch.zeros(1)}, 1.0)


def test_the_fisher_of_earlier_tasks_fades(tokenizer: Any) -> None:
    model, batch = fresh(tokenizer), one_batch(tokenizer)
    first = carried_on(None, model, lambda _: batch, rows=2, decay=0.5)
    second = carried_on(first, model, lambda _: batch, rows=2, decay=0.5)
    for name, value in first.items():
        torch.testing.assert_close(second[name], 1.5 * value)
    mean = sum(float(f.sum()) for f in first.values()) / sum(f.numel() for f in first.values())
    assert mean == pytest.approx(1, rel=1e-4)


def test_an_adapter_is_kept_off_the_directions_of_those_before(tokenizer: Any) -> None:
    model = fresh(tokenizer)
    adapter = add_adapter(model, LoRAConfig(rank=2), seed=0)
    bases = stacked({}, adapter)
    for basis in bases.values():
        torch.testing.assert_close(basis @ basis.T, torch.eye(2), rtol=1e-5, atol=1e-5)
    inside = OffTheStack(adapter, bases, strength=0.5).penalty(model)
    assert inside is not None and inside.item() == pytest.approx(0.5, rel=1e-5)
    free = {
        path: torch.linalg.qr(basis.T, mode="complete")[0].T[2:4] for path, basis in bases.items()
    }
    outside = OffTheStack(adapter, free, strength=0.5).penalty(model)
    assert outside is not None and outside.item() == pytest.approx(0, abs=1e-5)
    # The same directions again add none, and a stack never has more than there are inputs.
    again = stacked(bases, adapter)
    assert {p: b.shape for p, b in again.items()} == {p: b.shape for p, b in bases.items()}
    assert OffTheStack(adapter, {}, strength=0.5).penalty(model) is None
    with pytest.raises(UserError, match="another model"):
        OffTheStack(adapter, {"elsewhere": torch.eye(2)}, 1.0)


def test_methods_together_add_their_penalties(tokenizer: Any) -> None:
    class Fixed(Retention):
        def __init__(self, value: float) -> None:
            self.strength, self.value = value, value

        def penalty(self, model: Model) -> torch.Tensor:
            return torch.tensor(self.value)

    model = fresh(tokenizer)
    both = Several([Fixed(1.0), Fixed(2.5)])
    assert float(both.penalty(model) or 0) == 3.5 and not both.rehearses and not both.settles
    assert Several([]).penalty(model) is None and Several([]).strength == 0


def loss_on(model: Model, tokenizer: Any, rows: list[Any]) -> float:
    from lmworks.training.objectives.causal import causal

    data = LearningRows(rows, tokenizer, context_length=64, batch_size=64, seed=0)
    with torch.no_grad():
        return causal(model.eval(), data(0)).value.item()


@pytest.mark.parametrize("method", [*METHODS, "replay+ewc+interpolate"])
def test_every_method_learns_and_hands_on_what_it_needs(
    method: str, tokenizer: Any, tmp_path: Path
) -> None:
    model = fresh(tokenizer)
    config = Config(method=method, hold=HoldConfig(fisher_rows=4, rank=2))
    carried = Carried()
    before = loss_on(model, tokenizer, answers("two", "green"))
    for name, colour in (("one", "red"), ("two", "green")):
        phases = [phase(name, colour)]
        learnt = learn(model, tokenizer, phases, carried, config, work=tmp_path / name, label=name)
        memory = carried.memory.with_task(name, phases, most=20, most_heldout=9)
        carried = Carried(memory=memory, fisher=learnt.fisher, bases=learnt.bases)
        (tmp_path / f"{name}-left").mkdir()
        carried.write(tmp_path / f"{name}-left")
        carried = Carried.read(tmp_path / f"{name}-left")
    assert loss_on(model, tokenizer, answers("two", "green")) < before
    assert (carried.fisher is not None) == ("ewc" in method)
    assert bool(carried.bases) == (method == "lora")
    assert all(p.requires_grad for p in model.parameters()) and math.isfinite(before)


def test_rehearsing_keeps_what_naive_tuning_forgets(tokenizer: Any, tmp_path: Path) -> None:
    lost = {}
    for method in ("none", "replay"):
        model, config = fresh(tokenizer), Config(method=method, num_steps=30)
        carried = Carried()
        for name, colour in (("one", "red"), ("two", "green")):
            phases = [phase(name, colour)]
            learn(
                model, tokenizer, phases, carried, config, work=tmp_path / method / name, label=name
            )
            memory = carried.memory.with_task(name, phases, most=20, most_heldout=9)
            carried = Carried(memory=memory)
            if name == "one":
                after = loss_on(model, tokenizer, answers("one", "red"))
        lost[method] = loss_on(model, tokenizer, answers("one", "red")) - after
    assert lost["none"] > 0.05 and lost["replay"] < lost["none"] / 2


def test_kept_rows_of_preferences_are_rehearsed_by_the_liked_answer(tokenizer: Any) -> None:
    rows = [
        {"prompt": "q", "chosen": "good", "rejected": "poor"},
        {"prompt": "q", "completion": "fine", "label": True},
        {"prompt": "q", "completion": "bad", "label": False},
    ]
    data = LearningRows(rows, tokenizer, context_length=64, batch_size=2, seed=0)
    said = [tokenizer.decode(ids[1:][mask[1:]].tolist()) for ids, mask in data._rows]
    assert [text.split("<")[0].strip() for text in said] == ["good", "fine"]
    assert Kept(task="t", kind="pairs", row=rows[0]).row["chosen"] == "good"
