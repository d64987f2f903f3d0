"""Recurrent blocks in a model: any cut of a prompt, slots, memory, fresh weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.models.architectures.rwkv import rwkv_config
from lmworks.models.cache import KVCache
from lmworks.models.config import (
    AttentionConfig,
    BlockConfig,
    GatedLinearAttentionConfig,
    LayerConfig,
    Mamba2Config,
    MambaConfig,
    MLPConfig,
    ModelConfig,
    ShortConvolutionConfig,
)
from lmworks.models.context import Context
from lmworks.models.load import load_model
from lmworks.models.model import Model
from lmworks.models.save import save_model
from lmworks.training.optimizers.base import matrices_and_rest

MIXERS: dict[str, BlockConfig] = {
    "mamba": MambaConfig(intermediate_size=48, state_size=4, time_step_rank=3),
    "mamba2": Mamba2Config(num_heads=4, head_dim=12, state_size=8, num_groups=2),
    "gated_linear_attention": GatedLinearAttentionConfig(num_heads=2, key_size=16, value_size=24),
    "short_convolution": ShortConvolutionConfig(conv_kernel=4, bias=True),
}


def config_of(name: str) -> ModelConfig:
    rest = {"vocab_size": 31, "hidden_size": 24, "max_position_embeddings": 512}
    if name == "rwkv":
        return rwkv_config(num_hidden_layers=2, attention_size=32, intermediate_size=40, **rest)
    if name == "hybrid":
        mlp = MLPConfig(intermediate_size=40)
        attention = AttentionConfig(num_attention_heads=2, num_key_value_heads=1, head_dim=8)
        mixers = (MIXERS["mamba"], attention, MIXERS["gated_linear_attention"])
        layers = tuple(LayerConfig(mixer=mixer, feed_forward=mlp) for mixer in mixers)
        return ModelConfig(layers=layers, **rest)
    return ModelConfig.uniform(num_hidden_layers=2, mixer=MIXERS[name], feed_forward=None, **rest)


NAMES = [*MIXERS, "rwkv", "hybrid"]


def fresh(name: str) -> Model:
    model = Model(config_of(name))
    model.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():  # so that blocks say something beside the residual
        for parameter in model.layers.parameters():
            parameter += 0.1 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(1)
            )
    return model.eval()


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(31, shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=8)
@given(size=st.integers(1, 64))
def test_a_prompt_in_pieces_gives_the_same_logits(name: str, size: int) -> None:
    model, ids = fresh(name), tokens(2, 64)
    view = KVCache(model.config, 2, 64).view([0, 1])
    with torch.no_grad():
        pieces = [model(ids[:, i : i + size], cache=view) for i in range(0, 64, size)]
        assert torch.allclose(torch.cat(pieces, 1), model(ids), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_slots_are_apart_and_a_freed_one_forgets(name: str) -> None:
    model, ids = fresh(name), tokens(2, 20)
    cache = KVCache(model.config, 3, 32)
    with torch.no_grad():
        model(ids[:1, :15], cache=cache.view([2]))
        model(ids[1:, :9], cache=cache.view([0]))
        both = model(torch.stack([ids[1, 9:10], ids[0, 15:16]]), cache=cache.view([0, 2]))
        assert torch.allclose(both[0, 0], model(ids[1:, :10])[0, -1], atol=1e-5)
        assert torch.allclose(both[1, 0], model(ids[:1, :16])[0, -1], atol=1e-5)
        cache.free(2)
        again = model(ids[1:], cache=cache.view([2]))
        assert torch.allclose(again, model(ids[1:]), atol=1e-5)


@pytest.mark.parametrize("name", [*MIXERS, "rwkv"])
def test_memory_does_not_grow_with_the_sequence(name: str) -> None:
    config = config_of(name)
    sizes = [KVCache(config, 1, positions).num_bytes for positions in (16, 32768)]
    assert sizes[0] == sizes[1] > 0
    kept = [layer.kept(config) for layer in config.layers]
    assert not any(layer.per_position for layer in kept)


def test_decoding_to_32k_positions_keeps_its_memory() -> None:
    model = fresh("mamba")
    cache = KVCache(model.config, 1, 1 << 15)
    view, before = cache.view([0]), cache.num_bytes
    with torch.no_grad():
        for _ in range(31):
            model(tokens(1, 1024), cache=view)
        logits = model(tokens(1, 1023), cache=view, last_only=True)
        logits = model(tokens(1, 1), cache=view)
    assert cache.lengths == [1 << 15] and cache.num_bytes == before
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", NAMES)
def test_fresh_weights_train_and_are_the_same_for_a_seed(name: str, tmp_path: Path) -> None:
    models = []
    for _ in range(2):
        model = Model(config_of(name))
        model.reset_parameters(torch.Generator().manual_seed(0))
        models.append(model)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b) and torch.isfinite(a).all()
    ids = tokens(2, 33)
    logits = models[0](ids[:, :-1])
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in models[0].parameters())
    matrices, _, vectors = matrices_and_rest(models[0])
    assert all(matrix.ndim == 2 and min(matrix.shape) > 1 for matrix in matrices)
    assert len(vectors) > 0
    save_model(models[0], tmp_path)
    again = load_model(tmp_path)
    assert again.config == models[0].config
    assert torch.equal(again(ids), models[0](ids))


def test_short_convolution_equals_the_operator_of_lfm2() -> None:
    lfm2 = pytest.importorskip("transformers.models.lfm2.modeling_lfm2")
    settings_ = lfm2.Lfm2Config(
        hidden_size=24, conv_L_cache=4, conv_bias=True, num_hidden_layers=1, layer_types=["conv"]
    )
    theirs = lfm2.Lfm2ShortConv(settings_, 0)
    ours = fresh("short_convolution").layers[0].get_submodule("mixer")
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 30, 24)
    with torch.no_grad():
        assert torch.allclose(ours(x, Context()), theirs(x), atol=1e-5)
