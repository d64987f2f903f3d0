"""Inputs rounded as ggml rounds them: its own blocks, and llama.cpp's own logits with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmworks.core.gguf import GGUFTensor, dequantize, write_gguf
from lmworks.core.quantizers import quantize
from lmworks.models.architectures.base import architecture, to_foreign
from lmworks.models.block_rounding import ggml_activations, round_blocks
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig, RoPEConfig
from lmworks.models.load import load_model
from lmworks.models.model import Model
from lmworks.tokenizers.train import train_bpe

llama_cpp: Any = None


def test_blocks_are_those_of_q8_0() -> None:
    x = np.random.default_rng(0).standard_normal((5, 128)).astype(np.float32)
    x[0, :32] = 0
    raw = quantize(x, "Q8_0").reshape(-1)
    written = dequantize(GGUFTensor(name="x", shape=x.shape, type="Q8_0", data=raw))
    assert np.array_equal(round_blocks(torch.from_numpy(x), "Q4_0").numpy(), written)


def test_wide_blocks_keep_their_largest_number() -> None:
    x = torch.randn(3, 512, generator=torch.Generator().manual_seed(0))
    x[0, :256] = 0
    rounded = round_blocks(x, "Q6_K").view(3, 2, 256)
    blocks = x.view(3, 2, 256)
    at = blocks.abs().argmax(-1, keepdim=True)
    assert torch.allclose(rounded.gather(-1, at), blocks.gather(-1, at), rtol=1e-6)
    step = blocks.abs().amax(-1, keepdim=True) / 127
    assert ((rounded - blocks).abs() <= step * 0.5001).all()
    assert (rounded[0, 0] == 0).all()


def test_weights_of_16_bits_round_to_them() -> None:
    x = torch.tensor([1.0001, 3.14159265])
    assert torch.equal(round_blocks(x, "F16"), x.half().float())
    assert torch.equal(round_blocks(x, "F32"), x)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "IQ4_NL"])
def test_with_it_the_logits_are_those_of_llama_cpp(kind: str, tmp_path: Path) -> None:
    global llama_cpp
    llama_cpp = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python")
    tokenizer = train_bpe(["the cat sat on the mat, and the 12 dogs don't\n"] * 20, vocab_size=288)
    mixer = AttentionConfig(
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, rope=RoPEConfig(theta=1e4)
    )
    config = ModelConfig.uniform(
        vocab_size=tokenizer.vocab_size, hidden_size=256, num_hidden_layers=1, mixer=mixer,
        feed_forward=MLPConfig(intermediate_size=512), max_position_embeddings=128,
    )  # fmt: skip
    model = Model(config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 3
    layout = architecture("llama").layout("gguf")
    tensors = {}
    for name, tensor in to_foreign(model.state_dict(), config, layout).items():
        array = np.ascontiguousarray(tensor.numpy())
        own = kind if array.ndim == 2 else "F32"
        raw = quantize(array, kind) if array.ndim == 2 else array.view(np.uint8)
        tensors[name] = GGUFTensor(name=name, shape=array.shape, type=own, data=raw.reshape(-1))
    metadata = layout.config_dict(config) | tokenizer.gguf_metadata()
    write_gguf(tmp_path / "model.gguf", metadata, tensors)

    packed = load_model(tmp_path / "model.gguf", packed=True)
    tokens = list(range(40, 60))
    plain, rounded = [], []
    for token, theirs in zip(tokens, first_logits(tmp_path / "model.gguf", tokens), strict=True):
        with torch.inference_mode():
            ours = packed(torch.tensor([[token]]))[0, -1].numpy()
            with ggml_activations(packed):
                alike = packed(torch.tensor([[token]]))[0, -1].numpy()
        plain.append(np.abs(ours - theirs).max())
        rounded.append(np.abs(alike - theirs).max())
    # A code at a half may still go the other way, and then costs as much as without the rounding.
    assert np.median(rounded) < 1e-5 < 1e-2 < np.median(plain)


def first_logits(path: Path, tokens: list[int]) -> Iterator[np.ndarray]:
    """llama.cpp's logits after each token, which begins a text."""
    c = llama_cpp
    c.llama_backend_init()
    settings = c.llama_model_default_params()
    settings.use_extra_bufts = False  # no layouts of its own, whose sums round otherwise
    model = c.llama_model_load_from_file(str(path).encode(), settings)
    options = c.llama_context_default_params()
    options.n_ctx = options.n_batch = 64
    options.type_k = options.type_v = 0  # float32
    options.flash_attn_type, options.n_threads, options.n_threads_batch = 0, 1, 1
    context = c.llama_init_from_model(model, options)
    size = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
    for token in tokens:
        c.llama_memory_clear(c.llama_get_memory(context), True)
        held = (c.llama_token * 1)(token)
        assert c.llama_decode(context, c.llama_batch_get_one(held, 1)) == 0
        yield np.ctypeslib.as_array(c.llama_get_logits(context), shape=(size,)).copy()
    c.llama_free(context)
    c.llama_model_free(model)
