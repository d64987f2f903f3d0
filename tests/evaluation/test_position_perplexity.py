"""Loss by position: spans that cover all, the model's own losses, and who is helped by context."""

from __future__ import annotations

import json
import math
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.evaluation.position_perplexity import (
    PositionPerplexityConfig,
    cut,
    position_perplexity,
    reading,
    spans_of,
    summary,
)
from lmworks.models.load import load_model
from lmworks.models.save import save_model

TEXT = "\n".join(text for _, text in sorted(topics.items())[:5])


@given(st.integers(1, 40_000))
def test_spans_cover_every_position_once(num_positions: int) -> None:
    spans = spans_of(num_positions)
    covered = [p for first, last in spans for p in range(first, last + 1)]
    assert covered == list(range(1, num_positions + 1))
    assert all(last - first + 1 >= (first - 1) / 2 for first, last in spans)


def test_a_loss_that_falls_is_said_to_fall() -> None:
    noise = np.random.default_rng(0).normal(scale=0.1, size=(8, 128))
    falls = reading("m", 3 - 0.01 * np.arange(128) + noise)
    assert [span.last for span in falls.spans] == [16, 32, 64, 128]
    assert falls.second_half is not None and falls.second_half.high < 0
    assert "lower than" in summary(falls)
    assert falls.spans[-1].perplexity.estimate == pytest.approx(
        math.exp(falls.spans[-1].nats.estimate)
    )
    assert "higher than" in summary(reading("m", 1 + 0.01 * np.arange(128) + noise))
    assert "no difference" in summary(reading("m", 1 + noise))


def config(**given: Any) -> PositionPerplexityConfig:
    return PositionPerplexityConfig(model="m", text="t", **given)


def test_a_draw_of_sequences() -> None:
    stream = np.arange(1000)
    whole = cut(stream, 90, config(max_sequences=0))
    assert whole.shape == (11, 90)
    few = cut(stream, 90, config(max_sequences=4))
    assert few.shape == (4, 90) and all(row in whole.tolist() for row in few.tolist())
    assert (np.diff(few[:, 0]) > 0).all()
    assert (few == cut(stream, 90, config(max_sequences=4))).all()
    with pytest.raises(UserError, match="too few for two sequences"):
        cut(stream, 501, config())
    with pytest.raises(UserError, match="at least 2"):
        cut(stream, 90, config(max_sequences=1))


def test_the_stage_tells_the_models_own_losses(
    tmp_path: Path, make_decoder: Any, tokenizer: Any
) -> None:
    folders = [tmp_path / "<b>one", tmp_path / "two"]
    for seed, folder in enumerate(folders):
        save_model(make_decoder(vocab_size=tokenizer.vocab_size, context=64, seed=seed), folder)
        tokenizer.save(folder)
    (tmp_path / "text.txt").write_text(TEXT)
    given = PositionPerplexityConfig(
        model=str(folders[0]),
        compare_with=str(folders[1]),
        text=str(tmp_path / "text.txt"),
        max_sequences=5,
        length=65,
    )
    position_perplexity(given, tmp_path / "report")
    models = json.loads((tmp_path / "report/report.json").read_text())["models"]
    assert [model["name"] for model in models] == ["<b>one", "two"]
    from lmworks.evaluation.position_perplexity import token_stream_of

    sequences = cut(token_stream_of(tmp_path / "text.txt", tokenizer), 65, given)
    model = load_model(folders[1])
    with torch.no_grad():
        ids = torch.from_numpy(sequences.astype(np.int64))
        loss = F.cross_entropy(model(ids[:, :-1]).mT, ids[:, 1:], reduction="none").mean(0)
    for span in models[1]["spans"]:
        expected = loss[span["first"] - 1 : span["last"]].mean().item()
        assert span["nats"]["estimate"] == pytest.approx(expected, rel=1e-4)
    page = (tmp_path / "report/report.html").read_text()
    assert "<b>" not in page.replace("<b>one", "") or "&lt;b&gt;one" in page
    assert "<b>one" not in page and "polyline" in page


@pytest.mark.parametrize("given", [{"length": 1}, {"length": -3}, {"max_sequences": -1}])
def test_settings_out_of_range_are_one_line(given: dict[str, int], tmp_path: Path) -> None:
    (tmp_path / "t").write_text("x")
    values = {"model": str(tmp_path / "t"), "text": str(tmp_path / "t")} | given
    with pytest.raises(UserError, match="length must be"):
        position_perplexity(PositionPerplexityConfig(**values), tmp_path / "report")
