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


def _other(config: ModelConfig, seed: int) -> Model:
    model = Model(config)
    model.reset_parameters(torch.Generator().manual_seed(seed))
    return model.eval()


def test_experts_of_other_models(tiny_config: ModelConfig, token_ids: torch.Tensor) -> None:
    """With one kind of text for each, a router that was read off sends it to its own expert."""
    base = _other(tiny_config, 0)
    tuned = [_other(tiny_config, seed) for seed in (1, 2)]
    rows = [[list(range(low, low + 40))] * 2 for low in (2, 50)]
    made = upcycle(
        base,
        num_experts=2,
        num_experts_per_tok=1,
        experts=[lambda model=model: model for model in tuned],  # type: ignore[misc]
        rows=rows,
    )
    for number, model in enumerate(tuned):
        layer, dense = made.layers[1].feed_forward, model.layers[1].feed_forward
        up = torch.cat([dense.gate_proj.weight, dense.up_proj.weight]).mT
        assert torch.equal(layer.experts.gate_up_proj[number], up)
        assert torch.equal(layer.experts.down_proj[number], dense.down_proj.weight.mT)
        # The whole model on that kind of text: mixers and norms of the base, this one's experts.
        seen: list[torch.Tensor] = []
        hook = made.layers[0].feed_forward.router.register_forward_hook(
            lambda module, inputs, logits, seen=seen: seen.append(logits.argmax(-1))
        )
        with torch.no_grad():
            made(torch.tensor([rows[number][0]]))
        hook.remove()
        assert float((seen[0] == number).float().mean()) > 0.8
    assert torch.equal(made.layers[0].mixer.q_proj.weight, base.layers[0].mixer.q_proj.weight)


def test_experts_that_do_not_fit_are_refused(tiny_config: ModelConfig) -> None:
    wide = tiny_config.with_layers(feed_forward=MLPConfig(intermediate_size=96))
    with pytest.raises(UserError, match=r"expert 1 is another kind of model: layers\.0"):
        upcycle(
            _other(tiny_config, 0),
            num_experts=2,
            num_experts_per_tok=1,
            experts=[lambda: _other(wide, 1)] * 2,
        )
