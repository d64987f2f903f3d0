"""Memory told before loading equals what is held afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lmworks.compression.measure import weight_bytes
from lmworks.core.errors import UserError
from lmworks.models.adapters.base import add_adapter
from lmworks.models.adapters.files import save_adapter
from lmworks.models.adapters.lora import LoRAConfig
from lmworks.models.cache import KVCache
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
from lmworks.models.load import load_model
from lmworks.models.model import Model
from lmworks.models.save import save_model
from lmworks.models.size import adapter_bytes, model_size
from lmworks.tokenizers.train import train_bpe


def tiny(*, tied: bool = True, layers: int = 2) -> Model:
    config = ModelConfig.uniform(
        vocab_size=260,
        hidden_size=64,
        num_hidden_layers=layers,
        mixer=AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=16),
        feed_forward=MLPConfig(intermediate_size=96),
        max_position_embeddings=128,
        tie_word_embeddings=tied,
    )
    model = Model(config).eval()
    model.reset_parameters(torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_float_weights_and_cache(tmp_path: Path, tied: bool) -> None:
    save_model(tiny(tied=tied), tmp_path)
    size = model_size(tmp_path)
    assert size.weight_bytes == weight_bytes(load_model(tmp_path))
    for slots, positions in ((1, 16), (3, 96)):
        cache = KVCache(load_model(tmp_path).config, slots, positions)
        assert size.cache_bytes(slots, positions) == cache.num_bytes


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_packed_weights(tmp_path: Path, kind: str) -> None:
    from lmworks.compression.quantize import QuantizeConfig, quantize

    model, tokenizer = tiny(tied=False), train_bpe(["no merge"], vocab_size=260)
    save_model(model, tmp_path / "base", tokenizer=tokenizer)
    found = quantize(QuantizeConfig(model=str(tmp_path / "base"), type=kind), out=tmp_path / "q")
    packed, plain = model_size(found.path, packed=True), model_size(found.path)
    assert packed.weight_bytes == weight_bytes(load_model(found.path, packed=True))
    assert plain.weight_bytes == weight_bytes(load_model(found.path)) > packed.weight_bytes


def test_an_adapter_counts_where_it_stands_beside_its_base(tmp_path: Path) -> None:
    save_model(tiny(), tmp_path / "base")
    adapter = add_adapter(tiny(), LoRAConfig(rank=4))
    save_adapter(adapter, tmp_path / "adapter", base=str(tmp_path / "base"))
    own = 4 * adapter.num_parameters
    assert adapter_bytes(tmp_path / "adapter") == own
    base = model_size(tmp_path / "base").weight_bytes
    assert model_size(tmp_path / "adapter").weight_bytes == base
    beside = model_size(tmp_path / "adapter", packed=True).weight_bytes
    assert beside == base + own == weight_bytes(load_model(tmp_path / "adapter", packed=True))


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no model"):
        model_size(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(UserError, match="damaged or cut short"):
        adapter_bytes(tmp_path)
