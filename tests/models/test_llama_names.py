"""The name map covers every parameter, both ways and in both formats."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import (
    ARCHITECTURES,
    Format,
    architecture,
    architecture_of,
)
from lmworks.models.architectures.llama import LLAMA
from lmworks.models.config import ModelConfig, SwiGLUConfig
from lmworks.models.decoder import Decoder


@pytest.mark.parametrize("format", ["hf", "gguf"])
def test_names_go_there_and_back(tiny_config: ModelConfig, format: Format) -> None:
    mixer = dataclasses.replace(tiny_config.mixer, bias=True)
    feed_forward = SwiGLUConfig(intermediate_size=8, bias=True)
    config = dataclasses.replace(tiny_config, mixer=mixer, feed_forward=feed_forward)
    with torch.device("meta"):
        names = [name for name, _ in Decoder(config).named_parameters()]
    foreign = [LLAMA.foreign_name(name, format) for name in names]
    assert len(set(foreign)) == len(names)
    assert [LLAMA.own_name(name, format) for name in foreign] == names


def test_names_that_are_none_of_ours() -> None:
    assert LLAMA.own_name("model.layers.0.self_attn.rotary_emb.inv_freq", "hf") is None
    with pytest.raises(KeyError):
        LLAMA.foreign_name("layers.0.adapter.weight", "hf")


def test_names_equal_those_of_transformers(tiny_config: ModelConfig) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**LLAMA.config_to_hf(tiny_config))
    )
    ours = Decoder(tiny_config).state_dict()
    shapes = {LLAMA.foreign_name(name, "hf"): tensor.shape for name, tensor in ours.items()}
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}


def test_every_architecture_of_the_table_answers_to_its_name() -> None:
    assert {name: architecture(name).name for name in ARCHITECTURES} == {
        name: name for name in ARCHITECTURES
    }


def test_a_config_that_none_can_express_is_told(tiny_config: ModelConfig) -> None:
    class GeGLUConfig:
        kind = "geglu"

    odd = dataclasses.replace(tiny_config, feed_forward=GeGLUConfig())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="layers of attention and geglu"):
        architecture_of(odd)
