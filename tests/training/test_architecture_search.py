"""The search for a pattern: the supernet's paths are models, the breeding keeps to the budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmworks.core.errors import UserError
from lmworks.data.documents import Document, write_documents
from lmworks.models.config.patterns import Sizes, decoder_config
from lmworks.models.model import Model
from lmworks.tokenizers.train import train_bpe
from lmworks.training.architecture_search import (
    SearchArchitectureConfig,
    breed,
    budget,
    search_architecture,
)
from lmworks.training.layer_times import LayerTimes
from lmworks.training.pretrain import Shape
from lmworks.training.supernet import Supernet

SIZES = Sizes(hidden_size=64, context_length=32)
TEXT = "the cat sat on the mat and the dog sat on the cat while it rained in the town. "


def config(**changes: Any) -> SearchArchitectureConfig:
    values: dict[str, Any] = {"corpus": "-", "tokenizer": "-", "words": ["attention", "window"]}
    return SearchArchitectureConfig(**values | {"context_length": 32} | changes)


def test_a_path_is_the_model_of_its_pattern() -> None:
    supernet = Supernet(["attention", "convolution"], depth=3, vocab_size=50, sizes=SIZES, seed=0)
    alone = Model(
        decoder_config("attention,convolution,attention", depth=3, vocab_size=50, sizes=SIZES)
    )
    for layer, places in zip(alone.layers, supernet.model.layers, strict=True):
        chosen = places.candidates[0 if "q_proj" in str(layer) else 1]  # type: ignore[index,union-attr]
        layer.load_state_dict(chosen.state_dict())
    alone.embed_tokens.load_state_dict(supernet.model.embed_tokens.state_dict())
    ids = torch.randint(50, (2, 20), generator=torch.Generator().manual_seed(1))
    supernet.take((0, 1, 0))
    assert torch.equal(supernet.model(ids), alone(ids))
    supernet.take((1, 1, 0))
    assert not torch.allclose(supernet.model(ids), alone(ids))


def test_every_word_is_drawn_as_often_at_each_place() -> None:
    supernet = Supernet(["attention", "window", "nope"], depth=2, vocab_size=9, sizes=SIZES, seed=0)
    drawn = np.array([supernet.drawn(step, seed=0) for step in range(3000)])
    for place in range(2):
        assert np.bincount(drawn[:, place]).min() > 900
    assert supernet.drawn(5, seed=0) == supernet.drawn(5, seed=0)


def test_breeding_finds_the_best_pattern_without_judging_all() -> None:
    best = (2, 0, 1, 2, 1, 0, 2, 2)

    def judge(path: tuple[int, ...]) -> float:
        return float(sum(a != b for a, b in zip(path, best)))

    found = breed(3, 8, lambda path: path.count(0) <= 3, judge, config(generations=25))
    assert found[0] == (best, 0.0)
    assert len(found) < 700 < 3**8
    assert all(path.count(0) <= 3 for path, _ in found)


def test_the_budget_holds_for_time_and_memory() -> None:
    times = LayerTimes(task="prefill", outside=1.0, by_word={"attention": 2.0, "window": 1.0})
    fits = budget(times, config(depth=2, most_time=0.8), 50, SIZES)
    assert not fits((0, 0))  # 5 ms of 4
    assert fits((0, 1))
    fits = budget(times, config(depth=2, most_memory=0.7), 50, SIZES)
    assert fits((1, 0))  # a window of 8 of the 32 positions
    assert not fits((0, 0))
    with pytest.raises(UserError, match="no pattern of one word keeps to the budget"):
        budget(times, config(depth=2, most_time=0.1), 50, SIZES)


def test_a_search_from_text_to_patterns(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("train", "heldout"):
        write_documents(
            corpus / f"{name}.jsonl",
            [
                Document(id=f"{name}{i}", group=f"g{i}", source="", title="", text=TEXT * 6)
                for i in range(8)
            ],
        )
    train_bpe([TEXT], vocab_size=270).save(tmp_path / "tokenizer")
    settings = config(
        corpus=str(corpus),
        tokenizer=str(tmp_path / "tokenizer"),
        words=["attention", "convolution"],
        depth=2,
        num_steps=3,
        batch_size=2,
        most_time=50.0,
        keep=1,
        shape=Shape(hidden_size=64),
    )
    metrics = search_architecture(settings, tmp_path / "out").metrics
    written = json.loads((tmp_path / "out" / "search.json").read_text())
    assert written["judged"] == 4
    losses = [written[kind][0]["supernet_loss"] for kind in ("best", "random")]
    assert losses[0] <= min(losses[1], written["baseline"]["supernet_loss"])
    assert metrics["best"] == [written["best"][0]["pattern"]]
    assert metrics["time_error"] >= 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"words": ["attention"]}, "two kinds of layers at least"),
        ({"words": ["attention", "window*2"]}, "pattern of several layers"),
        ({"words": ["attention", "mambo"]}, "unknown layer"),
        ({"most_time": 0.0}, "most_time = 0.0: it must be above 0"),
    ],
)
def test_faults_are_told_first(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    for name in ("corpus", "tokenizer"):
        (tmp_path / name).mkdir()
    here = {"corpus": str(tmp_path / "corpus"), "tokenizer": str(tmp_path / "tokenizer")}
    with pytest.raises(UserError, match=told):
        search_architecture(config(**here | changes), tmp_path / "out")
