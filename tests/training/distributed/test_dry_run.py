"""Dry runs: shares cover the model, formulas are what processes count, forecasts add up."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lmworks.core.config import from_mapping
from lmworks.core.errors import UserError
from lmworks.models.config import ModelConfig
from lmworks.models.config.patterns import Sizes, decoder_config
from lmworks.models.skeleton import skeleton
from lmworks.training.distributed.dry_run import DryRunConfig, dry_run, rehearsed_plan
from lmworks.training.distributed.forecast import Line, target_of
from lmworks.training.distributed.narrow import narrowed
from lmworks.training.distributed.plan import ParallelConfig
from lmworks.training.distributed.shares import shares
from lmworks.training.optimizers.base import OptimizerConfig, state_bytes


def model(tied: bool = False, **sizes: Any) -> ModelConfig:
    widths = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    return decoder_config("attention", depth=4, vocab_size=1001, sizes=Sizes(**{**widths, **sizes}))


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adafactor"])
@pytest.mark.parametrize(
    "plan",
    [
        {"shard": 3, "zero": 3},
        {"shard": 2, "zero": 1},
        {"tensor": 4},
        {"pipeline": 3},
        {"shard": 2, "tensor": 2},
        {"pipeline": 2, "tensor": 2},
    ],
)
def test_the_shares_of_all_processes_are_the_model(plan: dict[str, int], optimizer: str) -> None:
    config = model()
    settings = OptimizerConfig(name=optimizer)
    everyone = shares(config, ParallelConfig(data=1, **plan), settings)  # type: ignore[arg-type]
    whole = {name: p.numel() for name, p in skeleton(config).named_parameters()}
    covered: dict[str, set[Any]] = {}
    for share in everyone:
        for name, piece in share.pieces.items():
            covered.setdefault(name, set()).add(piece)
    for name, pieces in covered.items():
        assert sum(piece.numel for piece in pieces) == whole[name], name
    assert covered.keys() == whole.keys()
    if optimizer != "adamw":  # every parameter has one owner, who keeps all that is kept for it
        assert sum(s.state_bytes for s in everyone) == state_bytes(skeleton(config), settings)


def test_a_narrow_model_keeps_heads_and_shrinks_widths() -> None:
    config = model(intermediate_size=512)
    small = narrowed(config, 8)
    assert (small.hidden_size, small.layers[0].feed_forward.intermediate_size) == (32, 64)  # type: ignore[union-attr]
    assert small.layers[0].mixer.num_attention_heads == 4  # type: ignore[attr-defined]
    assert small.num_hidden_layers == 4 and narrowed(config, 8, 2).num_hidden_layers == 2
    with pytest.raises(UserError, match="layer of mamba"):
        mixed = decoder_config(
            "attention,mamba", depth=2, vocab_size=64, sizes=Sizes(hidden_size=64)
        )
        narrowed(mixed, 8)


def test_lines_and_plans_and_targets() -> None:
    assert Line.through([(4, 104.0), (8, 184.0)]).at(64) == 24 + 20 * 64
    plan = ParallelConfig(data=8, shard=4, tensor=2)
    assert str(rehearsed_plan(plan, 8)) == "data 2 x shard 2 x tensor 2 (ZeRO-3)"
    with pytest.raises(UserError, match="--max-processes 16"):
        rehearsed_plan(ParallelConfig(data=1, tensor=16), 8)
    assert target_of("8xh100", {"memory_gib": 40.0}).memory_gib == 40
    with pytest.raises(UserError, match="did you mean '8xh100'"):
        target_of("8xh10", {})
    with pytest.raises(UserError, match="above 0"):
        target_of("8xh100", {"memory_gib": -1.0})


def test_a_rehearsal_counts_what_the_formulas_say(tmp_path: Path) -> None:
    config = from_mapping(
        DryRunConfig,
        {
            "depth": 3,
            "vocab_size": 1000,
            "shape": {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2},
            "context_length": 128,
            "batch_size": 4,
            "devices": 2,
            "figures": {"memory_gib": 0.001},
            "loop": {
                "parallel": {"shard": 2, "zero": 3},
                "precision": "bfloat16",
                "micro_batch_size": 1,
            },
        },
    )
    artifact = dry_run(config, tmp_path / "report")
    report = json.loads((artifact.path / "report.json").read_text())
    assert artifact.metrics["loss_difference"] < 1e-9
    assert artifact.metrics["counts_equal"], report["counts"]
    assert artifact.metrics["activation_error"] < 0.01
    assert {"sharded states", "optimizer exchange"} <= report["sent_bytes"].keys()
    assert report["memory_bytes"]["copies in lower precision"] > 0
    assert not artifact.metrics["fits"] and "--set loop." in artifact.metrics["change"]
    assert math.isclose(
        sum(report["seconds"].values()), artifact.metrics["seconds"]["step"], abs_tol=1e-4
    )
    page = (artifact.path / "report.md").read_text()
    assert "It does not fit" in page and "| total |" in page
