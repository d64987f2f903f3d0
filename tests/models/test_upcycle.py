"""Experts made of a dense model: the same answers at first, in a folder that others read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.models.parity import assert_written

from lmworks.core.errors import UserError
from lmworks.models.config import MLPConfig, ModelConfig, MoEConfig
from lmworks.models.model import Model
from lmworks.models.upcycle import upcycle


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("every", [1, 2])
def test_the_same_logits(
    tiny_config: ModelConfig, token_ids: torch.Tensor, gated: bool, every: int
) -> None:
    config = tiny_config.with_layers(feed_forward=MLPConfig(intermediate_size=80, gated=gated))
    dense = Model(config)
    dense.reset_parameters(torch.Generator().manual_seed(0))
    made = upcycle(dense.eval(), num_experts=4, num_experts_per_tok=2, every=every)
    kinds = [isinstance(layer.feed_forward, MoEConfig) for layer in made.config.layers]
    assert kinds == ([True, True] if every == 1 else [False, True])
    with torch.no_grad():
        torch.testing.assert_close(made(token_ids), dense(token_ids), rtol=1e-4, atol=1e-5)
    again = upcycle(dense, num_experts=4, num_experts_per_tok=2, every=every)
    for mine, other in zip(made.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_transformers_reads_it_as_mixtral(
    tiny_model: Model, tmp_path: Path, token_ids: torch.Tensor
) -> None:
    pytest.importorskip("transformers")
    made = upcycle(tiny_model, num_experts=3, num_experts_per_tok=2)
    assert_written(made, tmp_path, token_ids, "mixtral")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok 3 is above"),
        ({"num_experts": 0, "num_experts_per_tok": 1}, "num_experts must be a whole number"),
        ({"num_experts": 2, "num_experts_per_tok": 1, "every": 0}, "every = 0"),
    ],
)
def test_numbers_that_fit_no_model(tiny_model: Model, settings: dict[str, int], told: str) -> None:
    with pytest.raises(UserError, match=told):
        upcycle(tiny_model, **settings)


def test_biases_and_experts_are_left_alone(tiny_config: ModelConfig) -> None:
    biased = tiny_config.with_layers(feed_forward=MLPConfig(intermediate_size=8, bias=True))
    with pytest.raises(UserError, match="no dense feed-forward without biases"):
        upcycle(Model(biased), num_experts=2, num_experts_per_tok=1)
