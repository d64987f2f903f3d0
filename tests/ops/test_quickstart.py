"""The quickstart, end to end on a small folder: what it makes is what others can load."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch

from lmworks.core.errors import UserError
from lmworks.core.stages import Artifact
from lmworks.models.load import load_model
from lmworks.ops import quickstart as module
from lmworks.ops.budget import Plan
from lmworks.ops.quickstart import QuickstartConfig, run_quickstart, told_next
from lmworks.ops.quickstart_report import budget_to_overtake
from lmworks.tokenizers.load import load_tokenizer

# What a measurement would have given; a fixed one keeps the test quick and the same everywhere.
PLAN = Plan(
    depth=1,
    context_length=64,
    batch_size=4,
    pretrain_steps=120,
    sft_steps=30,
    tokens_per_s=1.0,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[QuickstartConfig, Artifact]:
    root = tmp_path_factory.mktemp("quickstart")
    folder = root / "texts"
    folder.mkdir()
    for name, text in sorted(topics.items()):
        for number, part in enumerate(text.split("\n\n\n")):
            (folder / f"{name}-{number}.md").write_text(f"# {name} {number}\n\n{part}")
    config = QuickstartConfig(folder=str(folder), out=str(root / "out"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_plan", lambda *_: PLAN)
        return config, run_quickstart(config)


def test_the_report_compares_every_stage_with_intervals(
    made: tuple[QuickstartConfig, Artifact],
) -> None:
    report = json.loads((made[1].path / "report.json").read_text())
    documents, answers = report["gains"]
    assert [row["name"] for row in documents["rows"]] == [
        *("Best n-gram", "Untrained", "Pre-trained", "Tuned", "8-bit")
    ]
    bits = {row["name"]: row["bits_per_byte"]["estimate"] for row in documents["rows"]}
    assert bits["Pre-trained"] < bits["Untrained"] - 0.5
    assert abs(bits["8-bit"] - bits["Tuned"]) < 0.05
    for row in documents["rows"][2:]:
        assert row["versus_previous"]["low"] <= row["versus_previous"]["estimate"]
    assert {row["name"] for row in answers["rows"]} >= {"Pre-trained", "Tuned"}
    assert all(len(sample["texts"]) == 4 for sample in report["samples"])
    assert all(cost["peak_memory_bytes"] > 0 for cost in report["costs"])
    page = (made[1].path / "report.html").read_text()
    assert "<script" not in page and report["summary"][:40] in page
    assert len(told_next(made[1])) == 4


def test_transformers_loads_the_model_and_tokenizer(
    made: tuple[QuickstartConfig, Artifact],
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in ("base", "chat"):
        folder = Path(made[0].out) / name
        theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        text = "The with statement is used to 🙂 wrap\n\n    def f(x): return x"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == load_tokenizer(folder).encode(text)
        batch = torch.tensor([ids])
        with torch.no_grad():
            difference = theirs(batch).logits - load_model(folder)(batch)
        assert difference.abs().max() < 1e-4


def test_a_second_run_makes_nothing_anew(made: tuple[QuickstartConfig, Artifact]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_plan", lambda *_: PLAN)
        again = run_quickstart(made[0])
    assert again.cached and again.manifest == made[1].manifest


@pytest.mark.parametrize("budget", ["", "5", "m5", "30s", "-5m"])
def test_a_bad_budget_is_named(budget: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="budget"):
        run_quickstart(QuickstartConfig(budget=budget, out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_the_budget_that_would_overtake() -> None:
    falling = {"heldout_step": [0, 50, 100], "heldout_loss": [7.0, 4.4, 4.0]}
    # The last doubling gained 10 % of 4.0 nats, so 0.2 of 2.0 bits: one more makes up for 0.2.
    assert budget_to_overtake(falling, 0.2, 2.0) == pytest.approx(2.0)
    assert budget_to_overtake(falling, 0.4, 2.0) == pytest.approx(4.0)
    assert budget_to_overtake(falling, -0.1, 2.0) == 1.0
    flat = {"heldout_step": [0, 50, 100], "heldout_loss": [7.0, 4.0, 4.0]}
    assert budget_to_overtake(flat, 0.2, 2.0) is None
    assert budget_to_overtake({"heldout_step": [0], "heldout_loss": [7.0]}, 0.2, 2.0) is None
