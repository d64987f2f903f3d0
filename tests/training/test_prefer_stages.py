"""The stages `prefer` and `reward`, from files to a model that was taught something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training import preference_setup as setup

from lmworks.core.config import from_mapping
from lmworks.core.errors import UserError
from lmworks.models.load import load_model
from lmworks.tokenizers.load import load_tokenizer
from lmworks.training.prefer import PreferConfig, prefer
from lmworks.training.reward import RewardConfig, reward

FAST = {"warmup_steps": 2, "optimizer": {"learning_rate": 2e-3}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    setup.write_tiny(folder)
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prefer_config(base: Path, preferences: str, **values: Any) -> PreferConfig:
    settings = {"batch_size": 4, "num_steps": 12, "loop": FAST, "heldout": 0.25, "threads": 1}
    return from_mapping(
        PreferConfig, {"model": str(base), "preferences": preferences} | settings | values
    )


@pytest.mark.parametrize("objective", ["dpo", "ipo", "simpo", "orpo", "kto"])
def test_a_model_learns_to_prefer(objective: str, base: Path, tmp_path: Path) -> None:
    rows = setup.rows(24)
    config = prefer_config(base, write(tmp_path / "pairs.jsonl", rows), objective=objective)
    artifact = prefer(config, tmp_path / "out")
    metrics = artifact.metrics
    assert metrics["num_heldout"] > 0 and metrics["num_too_long"] == 0
    assert metrics["heldout_loss"] < metrics["heldout_loss_before"]
    assert metrics["heldout_margin"] > metrics["heldout_margin_before"]
    assert metrics["heldout_accuracy"] > 0.8
    assert f"with {objective.upper()}" in (tmp_path / "out" / "README.md").read_text()
    load_model(tmp_path / "out")
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    assert len(history["metrics"]["accuracy"]) == 12


def test_how_the_reference_is_kept_changes_nothing(base: Path, tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.jsonl", setup.rows(24))
    losses = []
    for keep in ("stored", "frozen"):
        config = prefer_config(base, pairs, keep_reference=keep)
        prefer(config, tmp_path / keep)
        losses.append(json.loads((tmp_path / keep / "history.json").read_text())["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_the_base_under_an_adapter_is_the_reference(base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    pairs = write(tmp_path / "pairs.jsonl", setup.rows(24))
    lora = {"kind": "lora", "rank": 4}
    losses = []
    for keep in ("stored", "base"):
        config = prefer_config(base, pairs, adapter=lora, keep_reference=keep)
        metrics = prefer(config, tmp_path / keep).metrics
        assert metrics["adapter"] == "lora" and metrics["heldout_accuracy"] > 0.5
        losses.append(json.loads((tmp_path / keep / "history.json").read_text())["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert load_file(tmp_path / "base" / "adapter_model.safetensors")
    load_model(tmp_path / "base")
    with pytest.raises(UserError, match="needs an adapter"):
        prefer(prefer_config(base, pairs, keep_reference="base"), tmp_path / "none")


def test_another_reference_must_have_the_same_tokenizer(base: Path, tmp_path: Path) -> None:
    from lmworks.tokenizers.train import train_bpe

    pairs = write(tmp_path / "pairs.jsonl", setup.rows(8))
    same, other = tmp_path / "same", tmp_path / "other"
    setup.write_tiny(same)
    artifact = prefer(prefer_config(base, pairs, reference=str(same)), tmp_path / "out")
    assert "the reference being same" in (artifact.path / "README.md").read_text()
    setup.write_tiny(other)
    train_bpe(["quite another text, another text"] * 3, vocab_size=300).save(other)
    with pytest.raises(UserError, match=r"the reference .*other has .*take one of the same"):
        prefer(prefer_config(base, pairs, reference=str(other)), tmp_path / "refused")


def test_a_kill_changes_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmworks.training.trainer import Trainer

    pairs = write(tmp_path / "pairs.jsonl", setup.rows(24))
    config = prefer_config(base, pairs, objective="kto", checkpoint_every_s=0.0)
    whole = prefer(config, tmp_path / "whole").path
    plain = Trainer.take_step

    def die(self: Trainer, step: int) -> int:
        if step == 7:
            raise KeyboardInterrupt
        return plain(self, step)

    monkeypatch.setattr(Trainer, "take_step", die)
    with pytest.raises(KeyboardInterrupt):
        prefer(config, tmp_path / "killed")
    monkeypatch.setattr(Trainer, "take_step", plain)
    killed = prefer(config, tmp_path / "killed").path
    for name in ("history.json", "model.safetensors"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()


def test_labels_of_one_kind_are_refused(base: Path, tmp_path: Path) -> None:
    rows = [row | {"label": False} for row in setup.judged_rows(8)]
    with pytest.raises(UserError, match="every 'label' is false"):
        config = prefer_config(base, write(tmp_path / "x.jsonl", rows), objective="kto")
        prefer(config, tmp_path / "out")


def reward_config(base: Path, preferences: str, **values: Any) -> RewardConfig:
    settings = {"batch_size": 4, "num_steps": 30, "loop": FAST, "heldout": 0.25, "threads": 1}
    return from_mapping(
        RewardConfig, {"model": str(base), "preferences": preferences} | settings | values
    )


def test_a_reward_model_agrees_and_loads_in_transformers(base: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    rows = setup.rows(32)
    out = tmp_path / "judge"
    artifact = reward(reward_config(base, write(tmp_path / "p.jsonl", rows)), out)
    assert artifact.metrics["heldout_accuracy"] > 0.8
    tokenizer = load_tokenizer(out)
    ids = torch.tensor([tokenizer.encode_chat(rows[3]["prompt"] + rows[3]["chosen"])])
    ours = load_model(out)(ids)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out).eval()
    assert theirs.config.id2label == {0: "reward"}
    torch.testing.assert_close(theirs(ids).logits[:, 0], ours, rtol=1e-4, atol=1e-5)


def test_heads_learn_their_own(base: Path, tmp_path: Path) -> None:
    """What one head prefers the other dislikes."""
    rows = setup.rows(32)
    for row in rows:
        row |= {"helpful": 1, "harmless": -2}
    pairs = write(tmp_path / "p.jsonl", rows)
    config = reward_config(base, pairs, heads=["helpful", "harmless"], centring=0.01, margin=True)
    metrics = reward(config, tmp_path / "judge").metrics
    assert metrics["heldout_accuracy_helpful"] > 0.8
    assert metrics["heldout_accuracy_harmless"] > 0.8
    written = json.loads((tmp_path / "judge" / "config.json").read_text())
    assert written["id2label"] == {"0": "helpful", "1": "harmless"}
    assert load_model(tmp_path / "judge")(torch.tensor([[1, 2, 3]])).shape == (1, 2)
