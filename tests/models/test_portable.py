"""Decoders as graphs: the model's own logits, with the past given or kept, and in ONNX Runtime."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmworks.core.errors import UserError
from lmworks.models.config import (
    AttentionConfig,
    DynamicNTKScaling,
    LayerNormConfig,
    LearnedPositions,
    LMHeadConfig,
    MLPConfig,
    ModelConfig,
    RMSNormConfig,
    RoPEConfig,
    SlidingWindow,
    YaRNScaling,
)
from lmworks.models.config.model import EmbeddingConfig
from lmworks.models.config.patterns import Sizes, decoder_config
from lmworks.models.model import Model
from lmworks.models.portable.decoder import PortableDecoder, SteppingDecoder, check_portable

LENGTH = 24


def config(**changes: Any) -> ModelConfig:
    mixer = AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    mixer = dataclasses.replace(mixer, **changes.pop("mixer", {}))
    mlp = dataclasses.replace(MLPConfig(intermediate_size=96), **changes.pop("mlp", {}))
    rest = {"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 2} | changes
    return ModelConfig.uniform(mixer=mixer, feed_forward=mlp, **rest)


YARN = YaRNScaling(factor=4.0, original_max_position_embeddings=16)
FAMILIES: dict[str, ModelConfig] = {
    "llama": config(tie_word_embeddings=True),
    "qwen3": config(mixer={"qk_norm": RMSNormConfig(eps=1e-6), "bias": "qkv"}),
    "yarn": config(mixer={"rope": RoPEConfig(scaling=YARN)}),
    "gemma2": config(
        mixer={"softcap": 5.0, "scale": 0.3, "pattern": SlidingWindow(window=5)},
        norm=RMSNormConfig(unit_offset=True),
        placement="sandwich",
        embedding=EmbeddingConfig(scale=8.0),
        head=LMHeadConfig(softcap=30.0),
        tie_word_embeddings=True,
    ),
    "gpt2": config(
        mixer={"bias": "qkvo", "rope": None, "num_key_value_heads": 4},
        mlp={"gated": False, "bias": True, "activation": "gelu_tanh"},
        norm=LayerNormConfig(),
        positions=LearnedPositions(num_positions=64),
    ),
}


def model_of(family: str) -> Model:
    model = Model(FAMILIES[family])
    generator = torch.Generator().manual_seed(0)
    model.reset_parameters(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.15 if parameter.dim() > 1 else 0.1
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def case(family: str) -> tuple[Model, torch.Tensor, torch.Tensor]:
    model = model_of(family)
    ids = torch.randint(0, 97, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return copy.deepcopy(model), ids, model(ids)


def close(mine: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (mine - theirs).abs().max() < 1e-4 and theirs.abs().max() > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_past_that_is_given_goes_on(family: str) -> None:
    model, ids, expected = case(family)
    decoder = PortableDecoder(model, LENGTH)
    with torch.inference_mode():
        first, past = decoder(ids[:, :9], decoder.past(0))
        rest, past = decoder(ids[:, 9:], past)
    close(torch.cat([first, rest], 1), expected)
    assert past[0].shape[2] == LENGTH


@pytest.mark.parametrize("family", FAMILIES)
def test_a_past_that_is_kept_inside_begins_again_at_zero(family: str) -> None:
    model, ids, expected = case(family)
    decoder = SteppingDecoder(model, LENGTH)
    with torch.inference_mode():
        for _ in range(2):
            steps = [decoder(ids[:, i : i + 1], torch.tensor([i])) for i in range(LENGTH)]
            close(torch.cat(steps, 1), expected)


@pytest.mark.parametrize(
    "family",
    ["llama", *(pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES if f != "llama")],
)
def test_onnx_runtime_gives_the_same_logits(family: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from lmworks.models.portable.onnx import export_onnx

    model, ids, expected = case(family)
    path = export_onnx(model, tmp_path, length=LENGTH)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = [i for i in session.get_inputs() if i.name != "input_ids"]
    past = [np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in given]
    found = []
    for start, end in ((0, 9), (9, 10), (10, LENGTH)):
        feed = {"input_ids": ids[:, start:end].numpy()}
        feed |= {i.name: part for i, part in zip(given, past)}
        logits, *past = session.run(None, feed)
        found.append(torch.from_numpy(logits))
    close(torch.cat(found, 1), expected)


def test_what_can_not_be_written_out_is_named() -> None:
    scaling = DynamicNTKScaling(factor=2.0, original_max_position_embeddings=16)
    grows = config(mixer={"rope": RoPEConfig(scaling=scaling)})
    with pytest.raises(UserError, match="positions that depend on the length"):
        check_portable(grows)
    sizes = Sizes(hidden_size=64, context_length=64)
    with pytest.raises(UserError, match=r"layer 0 \(mamba.*GGUF"):
        check_portable(decoder_config("mamba", depth=2, vocab_size=97, sizes=sizes))
    with pytest.raises(UserError, match=r"layer 0 \(.*GGUF"):
        check_portable(decoder_config("attention+moe", depth=2, vocab_size=97, sizes=sizes))
