"""A model before and after its context was extended, over lengths."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch

from lmworks.core.errors import UserError
from lmworks.evaluation.context import ContextConfig, compare, context, summary
from lmworks.models.config import RoPEConfig
from lmworks.models.context_scaling import extended
from lmworks.models.model import Model
from lmworks.models.save import save_model
from lmworks.models.skeleton import skeleton

TEXT = "\n".join(text for _, text in sorted(topics.items())[:12])


@pytest.fixture
def models(make_decoder: Any, tokenizer: Any) -> tuple[Model, Model]:
    """One with a context of 128, and the same stretched to 512."""
    plain = make_decoder(vocab_size=tokenizer.vocab_size, context=128)
    layers = tuple(
        dataclasses.replace(
            layer, mixer=dataclasses.replace(layer.mixer, rope=RoPEConfig(theta=100.0))
        )
        for layer in plain.config.layers
    )
    config = dataclasses.replace(plain.config, layers=layers)
    before, after = skeleton(config), skeleton(extended(config, factor=4.0))
    for model in (before, after):
        model.load_state_dict(plain.state_dict(), assign=True)
    return before.eval(), after.eval()


def test_both_are_the_same_up_to_the_old_context_and_read_the_same_beyond(
    models: tuple[Model, Model], tokenizer: Any, tmp_path: Path
) -> None:
    before, after = models
    (tmp_path / "text.txt").write_text(TEXT)
    config = ContextConfig(
        model="a", compare_with="b", text="", samples=2, max_sequences=3, needle="{key}: {value}."
    )
    found, losses = compare(before, after, tmp_path / "text.txt", tokenizer, config)
    assert [p.length for p in found.points] == [64, 128, 256, 512]
    assert [p.same for p in found.points] == [True, True, None, None]
    for point in found.points[:2]:
        assert point.nats_change.low == point.nats_change.high == 0
    assert losses["after"].shape == (3, 511) and not np.array_equal(*losses.values())
    assert found.points[-1].after.nats.estimate == pytest.approx(losses["after"][:, 384:].mean())
    assert "to the bit" in summary(found)
    alone, both = (
        compare(before, after, tmp_path / "text.txt", tokenizer, each)[0].nats_kept
        for each in (
            dataclasses.replace(config, lengths=lengths) for lengths in ([256], [128, 256])
        )
    )
    assert alone == both  # against the end of the old context, whether it is a length or not
    config = dataclasses.replace(config, lengths=[256])
    other = compare(after, before, tmp_path / "text.txt", tokenizer, config)[0]
    assert other.native == 512 and not other.points[-1].same


def test_the_share_found_is_that_of_the_trials(
    models: tuple[Model, Model],
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def score(model: Model, prompt: np.ndarray, answer: list[int]) -> tuple[float, bool]:
        asked.append((model, len(prompt), tuple(prompt.tolist())))
        return 0.0, model is models[1]

    monkeypatch.setattr("lmworks.evaluation.needle_trials.score", score)
    (tmp_path / "text.txt").write_text(TEXT)
    config = ContextConfig(
        model="a", compare_with="b", text="", lengths=[150, 140], samples=4, max_sequences=2
    )
    found, _ = compare(*models, tmp_path / "text.txt", tokenizer, config)
    for point in found.points:
        assert (point.before.found.estimate, point.after.found.estimate) == (0, 1)
        assert point.found_change.estimate == 1
    for model in models:  # the same prompts, four different ones, of the length that was asked for
        mine = [ids for who, length, ids in asked if who is model and length == 140]
        assert len(set(mine)) == 4
    assert {ids for who, _, ids in asked if who is models[0]} == {
        ids for who, _, ids in asked if who is models[1]
    }


def test_the_stage_writes_a_page_and_its_figures(
    models: tuple[Model, Model], tokenizer: Any, tmp_path: Path
) -> None:
    for name, model in zip(("before", "after"), models):
        save_model(model, tmp_path / name)
        tokenizer.save(tmp_path / name)
    (tmp_path / "text.txt").write_text(TEXT)
    given = ContextConfig(
        model=str(tmp_path / "after"),
        compare_with=str(tmp_path / "before"),
        text=str(tmp_path / "text.txt"),
        needle="<script>{key}</script> {value}!",
        lengths=[128, 256],
        samples=2,
        max_sequences=2,
    )
    context(given, tmp_path / "report")
    told = json.loads((tmp_path / "report/report.json").read_text())
    assert [point["same"] for point in told["points"]] == [True, None] and told["native"] == 128
    page = (tmp_path / "report/report.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "polyline" in page
    for bad in ({"samples": 1}, {"lengths": [4]}, {"needle": "no places"}):
        with pytest.raises(UserError):
            context(dataclasses.replace(given, **bad), tmp_path / "bad")
    small = Model(dataclasses.replace(models[0].config, vocab_size=40))
    small.reset_parameters(torch.Generator().manual_seed(0))
    save_model(small, tmp_path / "other")
    tokenizer.save(tmp_path / "other")
    with pytest.raises(UserError, match="another tokenizer"):
        context(dataclasses.replace(given, compare_with=str(tmp_path / "other")), tmp_path / "bad")
