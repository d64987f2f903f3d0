"""Inputs of linear modules, held against hooks on one plain forward of each row alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lmworks.compression.layer_inputs import LayerWalk, linear_paths
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig, RoPEConfig
from lmworks.models.model import Model


@pytest.fixture(scope="module")
def model() -> Model:
    config = ModelConfig.uniform(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        mixer=AttentionConfig(
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, rope=RoPEConfig(theta=1e4)
        ),
        feed_forward=MLPConfig(intermediate_size=48),
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    made = Model(config)
    made.reset_parameters(torch.Generator().manual_seed(0))
    return made.eval()


def rows() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 50, size) for size in (5, 17, 9, 30, 1)]


def seen(model: Model, paths: list[str]) -> dict[str, torch.Tensor]:
    """(N, n) by path: what the modules get when each row runs alone."""
    found: dict[str, list[torch.Tensor]] = {path: [] for path in paths}

    def watch(path: str) -> Any:
        return lambda _, arguments: found[path].append(arguments[0][0])

    handles = [model.get_submodule(p).register_forward_pre_hook(watch(p)) for p in paths]
    with torch.inference_mode():
        for row in rows():
            model(torch.from_numpy(row)[None])
    for handle in handles:
        handle.remove()
    return {path: torch.cat(parts) for path, parts in found.items()}


@pytest.mark.parametrize("batch_tokens", [20, 2048])
def test_padding_and_batches_change_nothing(model: Model, batch_tokens: int) -> None:
    walk = LayerWalk(model, rows(), batch_tokens=batch_tokens)
    for index, layer in enumerate(model.layers):
        paths = linear_paths(layer, f"layers.{index}")
        assert len(paths) == 7
        expected, inputs = seen(model, paths), walk.inputs(index, paths)
        for path in paths:
            x, found = expected[path], inputs[path]
            assert found.count == len(x) == 62 and found.moment is not None
            torch.testing.assert_close(torch.from_numpy(found.moment), x.T @ x / len(x))
            assert np.array_equal(found.mean_square, np.diag(found.moment))
            torch.testing.assert_close(torch.from_numpy(found.largest), x.abs().amax(0))
        light = walk.inputs(index, paths, moments=False)
        for path in paths:
            assert light[path].moment is None
            np.testing.assert_allclose(
                light[path].mean_square, inputs[path].mean_square, rtol=1e-4, atol=1e-9
            )
        q, k, gate, up = (paths[i] for i in (0, 1, 4, 5))
        assert inputs[q].moment is inputs[k].moment and inputs[gate].moment is inputs[up].moment
        walk.advance(index)
    with torch.inference_mode():
        states = torch.cat([model.hidden_states(torch.from_numpy(r)[None])[0] for r in rows()])
    final = walk.final()
    assert final.moment is not None
    torch.testing.assert_close(torch.from_numpy(final.moment), states.T @ states / len(states))


def test_a_changed_layer_is_what_the_next_one_sees(model: Model) -> None:
    walk, other = LayerWalk(model, rows()), LayerWalk(model, rows())
    walk.advance(0)
    weight = model.get_submodule("layers.0.feed_forward.down_proj").weight
    kept = weight.data
    weight.data = kept * 2
    other.advance(0)
    weight.data = kept
    path = ["layers.1.mixer.q_proj"]
    a, b = (w.inputs(1, path)[path[0]].mean_square for w in (walk, other))
    assert not np.allclose(a, b, rtol=1e-4)
