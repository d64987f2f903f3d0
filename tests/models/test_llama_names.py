"""The name map covers every parameter, both ways and in both formats."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import (
    ARCHITECTURES,
    Format,
    architecture,
    architecture_of,
)
from lmworks.models.architectures.llama import LLAMA
from lmworks.models.config import AttentionConfig, ModelConfig, SwiGLUConfig
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


_HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(0, 8), max_size=3),
    st.dictionaries(st.sampled_from(["rope_type", "factor", "rope_theta"]), st.text(max_size=7)),
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_values_give_a_config_or_one_line(data: st.DataObject) -> None:
    config = ModelConfig(
        vocab_size=10,
        hidden_size=16,
        num_hidden_layers=2,
        mixer=AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=4),
        feed_forward=SwiGLUConfig(intermediate_size=8),
    )
    token_embd = SimpleNamespace(shape=(10, 16))
    readers = {
        "hf": (LLAMA.config_to_hf(config) | {"rope_parameters": None}, LLAMA.config_from_hf),
        "gguf": (
            LLAMA.config_to_gguf(config) | {"llama.rope.scaling.type": "none"},
            lambda values: LLAMA.config_from_gguf(values, {"token_embd.weight": token_embd}),
        ),
    }
    values, read = readers[data.draw(st.sampled_from(sorted(readers)))]
    keys = data.draw(st.lists(st.sampled_from(sorted(values)), max_size=3, unique=True))
    changed = values | {key: data.draw(_HOSTILE) for key in keys}
    try:
        assert isinstance(read(changed), ModelConfig)
    except UserError as error:
        assert "\n" not in str(error)


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
