"""The search finds what trying everything would, for less; pretrain takes its recipe."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from lmworks.core.config import from_mapping
from lmworks.core.errors import UserError
from lmworks.training.pretrain import PretrainConfig
from lmworks.training.tune import Search, Setting, TuneConfig, tune


class Machine:
    """A made-up machine: fixed costs of a micro-batch, a cache that large ones leave, noise."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.fixed, self.cache = random.uniform(0.05, 2), int(2 ** random.integers(0, 6))
        self.beyond, self.second = random.uniform(1, 1.6), random.uniform(0.5, 1.1)
        self.random, self.rows = random, 0

    def true(self, setting: Setting) -> float:
        """Seconds per row without noise."""
        size = setting.micro_batch_size
        each = 1.0 if size <= self.cache else self.beyond
        again = 1.33 if setting.activation_checkpointing else 1.0
        threads = self.second if setting.threads == 2 else 1.0
        return (each + self.fixed / size) * again * threads

    def timed(self, setting: Setting) -> float:
        self.rows += 2 * setting.micro_batch_size  # one to warm up
        return self.true(setting) * float(self.random.lognormal(0, 0.02))


@pytest.mark.parametrize("seed", range(20))
def test_the_search_is_near_the_best_at_a_fraction_of_the_cost(seed: int) -> None:
    machine = Machine(seed)
    search = Search(seconds_per_row=machine.timed, fits=lambda setting: True)
    found = search.run(32, [2, 1])
    every = [
        Setting(micro_batch_size=size, threads=threads, activation_checkpointing=again)
        for size in (32, 16, 8, 4, 2, 1)
        for threads in (1, 2)
        for again in (False, True)
    ]
    assert machine.true(found) <= 1.05 * min(machine.true(s) for s in every)
    exhaustive = 5 * 32 * len(every)  # five whole steps of each
    assert machine.rows <= 0.2 * exhaustive


def test_layers_are_computed_again_only_where_they_must() -> None:
    def fits(setting: Setting) -> bool:
        return setting.micro_batch_size * (1 if setting.activation_checkpointing else 4) <= 8

    search = Search(seconds_per_row=lambda s: 1 / s.micro_batch_size, fits=fits)
    assert search.run(16, [1]) == Setting(
        micro_batch_size=8, threads=1, activation_checkpointing=True
    )
    assert {s.micro_batch_size for s in search.times if not s.activation_checkpointing} == {1, 2}


def test_odd_batches_are_cut_evenly() -> None:
    search = Search(seconds_per_row=lambda s: 1.0, fits=lambda s: True)
    search.run(15, [1])
    assert {s.micro_batch_size for s in search.times} == {15, 5, 1}


def test_a_budget_that_nothing_meets_is_refused() -> None:
    search = Search(seconds_per_row=lambda s: 1.0, fits=lambda s: False)
    with pytest.raises(UserError, match="no setting fits the memory"):
        search.run(8, [1])


def test_a_compiler_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler"):
        tune(TuneConfig(try_compile=True), tmp_path / "tuning")


def test_pretrain_takes_the_recipe(tmp_path: Path) -> None:
    config = TuneConfig(depth=1, batch_size=4, context_length=32, vocab_size=64)
    found = tune(config, tmp_path / "tuning")
    recipe = yaml.safe_load((found.path / "recipe.yaml").read_text())
    made = from_mapping(PretrainConfig, {"corpus": "c", "tokenizer": "t", **recipe})
    assert made.loop.micro_batch_size == found.metrics["micro_batch_size"]
    assert made.batch_size == 4 and made.threads == found.metrics["threads"]
    assert found.metrics["tokens_per_s"] > 0
