"""The search finds a merge that is known to be best, and measures it on texts it did not see."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.config import from_mapping
from lmworks.core.errors import UserError
from lmworks.evaluation.merge_candidates import METHODS, WITH_BASE, drawn, known, varied
from lmworks.evaluation.merge_search import MergeSearchConfig, _halves, merge_search
from lmworks.models.load import load_model
from lmworks.models.merging.stage import MergeConfig, merge
from lmworks.models.save import save_model

WORDS = ["red", "green", "blue", "stone", "river", "cloud"]


def _corpus(folder: Path, count: int = 24) -> Path:
    folder.mkdir()
    rows = []
    for number in range(count):
        text = " ".join(WORDS[(number + step) % len(WORDS)] for step in range(8))
        row = {"id": str(number), "group": f"g{number}", "source": "s", "title": "t", "text": text}
        rows.append(json.dumps(row))
    (folder / "heldout.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def apart(make_decoder: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> Path:
    """Two models that are a good one plus and minus the same noise: their even mean is that one."""
    corpus = _corpus(tmp_path / "corpus")
    model = make_decoder(tokenizer.vocab_size, context=64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    lines = (corpus / "heldout.jsonl").read_text().splitlines()[: len(WORDS)]
    rows = [torch.tensor(tokenizer.encode(json.loads(line)["text"])) for line in lines]
    for _ in range(12):
        for row in rows:
            logits = model(row[None, :-1])
            loss = torch.nn.functional.cross_entropy(logits[0], row[1:])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    save_model(model, tmp_path / "good", tokenizer=tokenizer)
    random = torch.Generator().manual_seed(0)
    noise = {n: 0.1 * torch.randn(p.shape, generator=random) for n, p in model.named_parameters()}
    for name, sign in (("plus", 1), ("minus", -2)):  # the second step takes back the first
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                parameter.add_(sign * noise[key])
        save_model(model, tmp_path / name, tokenizer=tokenizer)
    return tmp_path


def test_it_finds_the_mean_and_the_recipe_makes_it(apart: Path) -> None:
    config = MergeSearchConfig(
        models=[str(apart / "plus"), str(apart / "minus")],
        corpora={"colours": str(apart / "corpus")},
        methods=["linear"],
        trials=4,
        variations=2,
    )
    made = merge_search(config, out=apart / "search")
    assert made.metrics["best"].startswith("linear weights 0.5/0.5")
    for name in ("plus", "minus"):
        difference, low, high = made.metrics[f"against {name}, colours"]
        assert low <= difference <= high < 0
    assert "against an even mean, colours" not in made.metrics  # it is the same merge
    recipe = yaml.safe_load((apart / "search" / "recipe.yaml").read_text())
    merge(from_mapping(MergeConfig, recipe), apart / "merged")
    good, merged = load_model(apart / "good"), load_model(apart / "merged")
    for mine, theirs in zip(merged.parameters(), good.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    found = json.loads((apart / "search" / "search.json").read_text())
    assert found["tried"][0]["value"] < 0.9


def test_models_in_folders_of_one_name_stay_apart(apart: Path) -> None:
    models = []
    for name in ("plus", "good"):
        (apart / "runs" / name).mkdir(parents=True)
        models.append(str((apart / name).rename(apart / "runs" / name / "model")))
    config = MergeSearchConfig(
        models=models,
        corpora={"colours": str(apart / "corpus")},
        methods=["linear"],
        trials=1,
        variations=0,
    )
    made = merge_search(config, out=apart / "search")
    worse, better = (
        made.metrics[f"against {name}, colours"][0] for name in ("model", "good/model")
    )
    assert worse < 0 < better


def test_what_makes_no_sense_is_refused(apart: Path) -> None:
    good = MergeSearchConfig(
        models=[str(apart / "plus"), str(apart / "minus")],
        corpora={"colours": str(apart / "corpus")},
    )
    few = _corpus(apart / "few", 9)
    for change, what in [
        ({"models": [str(apart / "plus")]}, "takes two models or more"),
        ({"corpora": {}}, "nothing to search on"),
        ({"methods": ["liner"]}, "did you mean 'linear'"),
        ({"methods": ["ties"]}, "most need --base"),
        ({"corpora": {"few": str(few)}}, "needs 8 in each half"),
    ]:
        with pytest.raises(UserError, match=what):
            merge_search(dataclasses.replace(good, **change), out=apart / "no")


@given(st.integers(0, 1 << 20), st.integers(2, 4))
@settings(deadline=None, max_examples=30)
def test_candidates_are_recipes_and_stay_within_their_range(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    models = [f"m{i}" for i in range(count)]
    fitting = [name for name in METHODS if count == 2 or name != "slerp"]
    for one in [*known(count, True), drawn(fitting, count, random)]:
        for tried in (one, varied(one, random, step=2.0)):
            recipe = MergeConfig(**tried.recipe(models, "base")).recipe()
            assert recipe.method == tried.method
            assert (recipe.base == "base") == (tried.method in WITH_BASE)
            if tried.weights:
                assert sum(tried.weights) == pytest.approx(1)
            assert all(0 <= v <= 1 for _, row in tried.each for v in row)


@given(st.lists(st.integers(0, 30), min_size=40, max_size=80), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_halves_share_no_group(groups: list[int], seed: int) -> None:
    rows = [{"document": f"d{group}", "id": number} for number, group in enumerate(groups)]
    try:
        first, second = _halves({"a": rows}, seed)
    except UserError:
        return
    ids = [row["id"] for row in (*first["a"], *second["a"])]
    assert sorted(ids) == list(range(len(rows)))
    assert not {r["document"] for r in first["a"]} & {r["document"] for r in second["a"]}
