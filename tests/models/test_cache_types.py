"""Caches of float16 and of 8-bit blocks: what they hold, what comes out, what it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.models.cache import KVCache
from lmworks.models.cache_types import CACHE_TYPES, decode, encode, row_layout
from lmworks.models.config import (
    AttentionConfig,
    LatentAttentionConfig,
    MLPConfig,
    ModelConfig,
    SlidingWindow,
)
from lmworks.models.model import Model

CODED = ("f16", "q8_0")


def made(mixer: object = None) -> Model:
    mixer = mixer or AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=32)
    config = ModelConfig.uniform(
        vocab_size=60, hidden_size=64, num_hidden_layers=2, mixer=mixer,
        feed_forward=MLPConfig(intermediate_size=96), max_position_embeddings=128,
    )  # fmt: skip
    model = Model(config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model.eval()


IDS = torch.randint(0, 60, (1, 90), generator=torch.Generator().manual_seed(1))


def read(model: Model, kind: str, cuts: list[int]) -> torch.Tensor:
    """Logits of IDS, read in pieces that end at `cuts`."""
    cache = KVCache(model.config, 2, 96, cache_type=kind)
    found, start = [], 0
    with torch.inference_mode():
        for end in [*cuts, IDS.shape[1]]:
            found.append(model(IDS[:, start:end], cache=cache.view([1])))
            start = end
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("kind", CODED)
def test_blocks_are_those_of_ggml(kind: str) -> None:
    from lmworks.core.gguf import GGUFTensor, dequantize
    from lmworks.core.quantizers import quantize

    values = torch.randn(5, 3, 64, generator=torch.Generator().manual_seed(0)) * 3
    values[0, 0, :32] = 0
    rows = encode(values, row_layout(kind, 64)[0])
    assert rows.shape[-1] == row_layout(kind, 64)[1]
    if kind == "f16":
        assert torch.equal(decode(rows), values.half().float())
        return
    data = quantize(values.reshape(15, 64).numpy(), "Q8_0")
    assert np.array_equal(rows.reshape(15, -1).numpy(), data)
    tensor = GGUFTensor(name="x", shape=(15, 64), type="Q8_0", data=data.reshape(-1))
    assert np.array_equal(decode(rows).reshape(15, 64).numpy(), dequantize(tensor))


@pytest.mark.parametrize("kind", CODED)
def test_a_cut_changes_little(kind: str) -> None:
    """The kernel and the matrix products attend to the same rounded keys and values."""
    model = made()
    whole = read(model, kind, [])
    by_one = read(model, kind, list(range(40, 90)))
    mixed = read(model, kind, [3, 17, 40, 64, 65, 66])
    torch.testing.assert_close(by_one, whole, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(mixed, whole, rtol=1e-3, atol=1e-4)
    plain = read(model, "f32", [40])
    off = float((whole - plain).std() / plain.std())
    assert 0 < off < {"f16": 2e-3, "q8_0": 3e-2}[kind]


@pytest.mark.parametrize("kind", CODED)
def test_a_row_does_not_depend_on_its_neighbours(kind: str) -> None:
    model = made()
    cache = KVCache(model.config, 2, 96, cache_type=kind)
    alone = read(model, kind, [50, 51, 52])[:, 50:52]
    with torch.inference_mode():
        model(IDS[:, :50], cache=cache.view([0]))
        model(IDS[:, 7:20], cache=cache.view([1]))
        both = [
            model(torch.stack([IDS[0, 50 + i], IDS[0, 20 + i]])[:, None], cache=cache.view([0, 1]))
            for i in range(2)
        ]
    torch.testing.assert_close(torch.cat(both, dim=1)[:1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", CODED)
def test_pages_are_shared_and_copied(kind: str) -> None:
    model = made()
    cache = KVCache(model.config, 2, 96, cache_type=kind)
    with torch.inference_mode():
        model(IDS[:, :40], cache=cache.view([0]))
        cache.continue_from([0, 1], [0, 0])
        first = model(IDS[:, 40:41], cache=cache.view([0]))
        second = model(IDS[:, 40:41], cache=cache.view([1]))
    assert torch.equal(first, second)
    assert cache.held(0, "keys", 0).dtype == torch.float32
    assert torch.equal(cache.held(1, "values", 0), cache.held(1, "values", 1))


def test_memory_is_a_half_and_a_quarter() -> None:
    config = made().config
    sizes = {kind: KVCache(config, 2, 96, cache_type=kind).num_bytes for kind in CACHE_TYPES}
    assert sizes["f16"] * 2 == sizes["f32"]
    assert sizes["q8_0"] * 128 == sizes["f32"] * 34
    pages = {kind: KVCache(config, 2, 96, cache_type=kind).page_bytes for kind in CACHE_TYPES}
    assert pages["q8_0"] * 128 == pages["f32"] * 34


@pytest.mark.parametrize(
    "mixer",
    [
        LatentAttentionConfig(
            num_attention_heads=2, q_lora_rank=None, kv_lora_rank=32, qk_nope_head_dim=16,
            qk_rope_head_dim=16, v_head_dim=16,
        ),
        AttentionConfig(
            num_attention_heads=2, num_key_value_heads=1, head_dim=32,
            pattern=SlidingWindow(window=32),
        ),
        AttentionConfig(num_attention_heads=2, num_key_value_heads=1, head_dim=12, softcap=5.0),
    ],
    ids=["latent", "window", "narrow"],
)  # fmt: skip
def test_what_no_kernel_reads_works_too(mixer: object) -> None:
    model = made(mixer)
    plain = read(model, "f32", [40, 41, 42])
    for kind in CODED:
        found = read(model, kind, [40, 41, 42])
        assert float((found - plain).std() / plain.std()) < 3e-2


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e4))
def test_rounding_stays_within_half_a_step(seed: int, size: float) -> None:
    values = torch.from_numpy(np.random.default_rng(seed).standard_normal((3, 64)) * size).float()
    off = (decode(encode(values, torch.uint8)) - values).abs()
    most = values.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True)
    limit = most / 127 * 0.502 + most * 2**-10 + 127 * 2.0**-25  # halves of a step, and of scales
    assert bool((off.unflatten(-1, (-1, 32)) <= limit).all())


def test_an_unknown_type_is_told() -> None:
    with pytest.raises(UserError, match="did you mean"):
        KVCache(made().config, 1, 16, cache_type="q8")
