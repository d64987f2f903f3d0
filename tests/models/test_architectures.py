"""The name map covers every parameter, both ways and in both formats."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.models.architectures import own
from lmworks.models.architectures.base import (
    ARCHITECTURES,
    Format,
    architecture,
    architecture_of,
    to_foreign,
)
from lmworks.models.architectures.llama import (
    LLAMA,
    config_from_gguf,
    config_from_hf,
    config_to_gguf,
    config_to_hf,
)
from lmworks.models.architectures.llama_layout import hf_rules
from lmworks.models.architectures.rules import bind, fused, shifted, stacked, transposed
from lmworks.models.config import AttentionConfig, LayerNormConfig, MLPConfig, ModelConfig
from lmworks.models.load import load_model
from lmworks.models.model import Model
from lmworks.models.save import save_model

FORMATS: tuple[Format, ...] = ("hf", "gguf")


def test_names_that_are_none_of_ours(tiny_config: ModelConfig) -> None:
    with pytest.raises(KeyError):
        list(bind(hf_rules(), {"layers.0.adapter.weight": torch.zeros(1)}, tiny_config))


def test_rules_go_there_and_back(tiny_config: ModelConfig) -> None:
    config = tiny_config.with_layers(feed_forward=MLPConfig(intermediate_size=8, bias=True))
    state = Model(config).state_dict()
    for format in FORMATS:
        layout = LLAMA.layout(format)
        names: list[str] = []
        for bound in layout.bind(state, config):
            theirs = bound.to_foreign([state[name] for name in bound.own])
            again = bound.to_own(list(theirs.values()))
            assert all(torch.equal(again[name], state[name]) for name in bound.own)
            names += theirs
        assert len(set(names)) == len(names) == len(state)


def test_fused_transposed_and_stacked_go_there_and_back(tiny_config: ModelConfig) -> None:
    rules = [
        fused(["a.{}.q", "a.{}.k"], "t.{}.qk", sizes=lambda config, _: [2, 3], conv1d=True),
        transposed("a.{}.w", "t.{}.w"),
        stacked("a.{}.experts", "t.{}.expert.{}.w"),
        shifted("a.{}.norm", "t.{}.norm", 1.0),
    ]
    state = {
        "a.4.q": torch.randn(2, 5),
        "a.4.k": torch.randn(3, 5),
        "a.4.w": torch.randn(2, 3),
        "a.4.experts": torch.randn(3, 2, 2),
        "a.4.norm": torch.randn(7),
    }
    bounds = list(bind(rules, state, tiny_config))
    theirs = {
        name: tensor
        for bound in bounds
        for name, tensor in bound.to_foreign([state[part] for part in bound.own]).items()
    }
    assert {name: tuple(tensor.shape) for name, tensor in theirs.items()} == {
        "t.4.qk": (5, 5),
        "t.4.w": (3, 2),
        "t.4.expert.0.w": (2, 2),
        "t.4.expert.1.w": (2, 2),
        "t.4.expert.2.w": (2, 2),
        "t.4.norm": (7,),
    }
    for bound in bounds:
        for name, tensor in bound.to_own([theirs[part] for part in bound.foreign]).items():
            assert torch.allclose(tensor, state[name])


def test_names_equal_those_of_transformers(tiny_config: ModelConfig) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**LLAMA.layout("hf").config_dict(tiny_config))
    )
    ours = to_foreign(Model(tiny_config).state_dict(), tiny_config, LLAMA.layout("hf"))
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.state_dict().items()
    }


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
    config = ModelConfig.uniform(
        vocab_size=10,
        hidden_size=16,
        num_hidden_layers=2,
        mixer=AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=4),
        feed_forward=MLPConfig(intermediate_size=8),
    )
    token_embd = SimpleNamespace(shape=(10, 16))
    readers = {
        "hf": (config_to_hf(config) | {"rope_parameters": None}, config_from_hf),
        "gguf": (
            config_to_gguf(config) | {"llama.rope.scaling.type": "none"},
            lambda values: config_from_gguf(values, {"token_embd.weight": token_embd}),
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


def test_what_no_other_project_can_tell_is_written_as_our_own(
    tiny_config: ModelConfig, tmp_path: Path, token_ids: torch.Tensor
) -> None:
    first, second = tiny_config.layers
    odd = dataclasses.replace(first, norm=LayerNormConfig(), placement="sandwich")
    config = dataclasses.replace(tiny_config, layers=(odd, second, second))
    assert architecture_of(config).name == "lmworks"
    with pytest.raises(UserError, match="GGUF files has layers of attention and mlp as this model"):
        architecture_of(config, "gguf")
    model = Model(config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    save_model(model.eval(), tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert again.config == config
    assert torch.equal(again(token_ids), model(token_ids))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layers": 3}, "layers must be a list"),
        ({"layers": [{"times": 10**9}]}, "times must be a whole number"),
        ({"hiden_size": 3}, "did you mean 'hidden_size'"),
        ({"hidden_size": "3"}, "model.hidden_size must be of type int"),
        ({"norm": {"kind": "rmsnorm", "eps": 1e-5}}, "did you mean 'rms_norm'"),
        ({"vocab_size": None}, "model.vocab_size must be of type int"),
    ],
)
def test_our_own_config_with_a_fault_is_one_line(
    tiny_config: ModelConfig, change: dict[str, Any], told: str
) -> None:
    written = own.config_to_hf(tiny_config)
    with pytest.raises(UserError, match=told) as caught:
        own.config_from_hf(written | {"model": written["model"] | change})
    assert "\n" not in str(caught.value)
