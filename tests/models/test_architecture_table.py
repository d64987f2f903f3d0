"""What holds for every architecture of the table: names, and values that mean harm."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.test_other_decoders import CASES

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import ARCHITECTURES, _tensors, architecture
from lmworks.models.config import ModelConfig

transformers = pytest.importorskip("transformers")


def test_every_architecture_has_a_layout_under_its_name() -> None:
    for name in ARCHITECTURES:
        found = architecture(name)
        assert found.name == name
        assert found.hf or found.gguf


@pytest.mark.parametrize(
    ("name", "nearest"), [("lama", "llama"), ("qwen_3", "qwen3"), ("gptneox", "gpt_neox")]
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UserError, match=f"did you mean '{nearest}'"):
        architecture(name)


def test_a_format_that_an_architecture_lacks_is_one_line() -> None:
    with pytest.raises(UserError, match="gpt_neox is not supported in GGUF files"):
        architecture("gpt_neox").layout("gguf")
    with pytest.raises(UserError, match="gemma3 is not supported in Hugging Face folders"):
        architecture("gemma3").layout("hf")


@functools.cache
def values_of(case: str) -> dict[str, Any]:
    """The `config.json` that transformers writes for a case."""
    kind, changes, _ = CASES[case]
    values: dict[str, Any] = getattr(transformers, kind)(**changes).to_dict()
    return values


def read(values: dict[str, Any]) -> ModelConfig:
    return architecture(values["model_type"]).layout("hf").read_config(values)


HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.one_of(st.integers(0, 8), st.sampled_from(["full_attention", "x"])), max_size=3),
    st.dictionaries(
        st.sampled_from(["rope_type", "factor", "rope_theta", "full_attention", "long_factor"]),
        st.one_of(st.text(max_size=7), st.integers(), st.sampled_from(["yarn", "longrope"])),
    ),
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_config_json_gives_a_config_or_one_line(data: st.DataObject) -> None:
    values = values_of(data.draw(st.sampled_from(sorted(CASES))))
    keys = data.draw(st.lists(st.sampled_from(sorted(values)), max_size=3, unique=True))
    changed = values | {key: data.draw(HOSTILE) for key in keys if key != "model_type"}
    try:
        assert isinstance(read(changed), ModelConfig)
    except UserError as error:
        assert "\n" not in str(error)


@functools.cache
def gguf_of(case: str) -> tuple[str, dict[str, Any], dict[str, Any]] | None:
    """Metadata and tensors of a GGUF file with a case's config; None if GGUF can't tell of it."""
    config = read(values_of(case))
    for name in ARCHITECTURES:
        if architecture(name).expresses(config, "gguf"):
            layout = architecture(name).layout("gguf")
            return name, layout.config_dict(config), _tensors(layout, config)
    return None


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_metadata_gives_a_config_or_one_line(data: st.DataObject) -> None:
    found = gguf_of(data.draw(st.sampled_from(sorted(CASES))))
    if found is None:
        return
    name, metadata, tensors = found
    keys = data.draw(st.lists(st.sampled_from(sorted(metadata)), max_size=3, unique=True))
    changed = metadata | {key: data.draw(HOSTILE) for key in keys}
    gone = data.draw(st.lists(st.sampled_from(sorted(tensors)), max_size=2))
    left = {key: tensor for key, tensor in tensors.items() if key not in gone}
    try:
        assert isinstance(architecture(name).layout("gguf").read_config(changed, left), ModelConfig)
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("case", "change", "told"),
    [
        ("mistral", {"layer_types": ["full_attention"] * 2}, "layer_types"),
        ("qwen2 with windows", {"layer_types": ["full_attention"]}, "lists 1 layers"),
        ("qwen2 with windows", {"layer_types": ["chunked_attention"] * 2}, "'chunked_attention'"),
        ("qwen2 with windows", {"sliding_window": 0}, "window must be a whole number"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma2", {"sliding_window": None}, "sliding_window is missing"),
        ("gemma3", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping"),
        ("smollm3", {"no_rope_layers": [1, 1]}, "for each of the 4 layers"),
        ("deepseek_v3", {"first_k_dense_replace": 1}, "first_k_dense_replace"),
        ("deepseek_v3", {"rope_interleave": False}, "rope_interleave"),
        ("gpt_neox", {"num_attention_heads": 7}, "not a multiple of num_attention_heads 7"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_key(
    case: str, change: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        read(values_of(case) | change)


@pytest.mark.parametrize(
    "case", ["qwen2 with windows", "qwen3 with windows", "gemma2", "gemma3", "olmo3"]
)
def test_older_files_list_no_layer_types(case: str) -> None:
    values = values_of(case)
    older = {key: value for key, value in values.items() if key != "layer_types"}
    assert read(older) == read(values)


def test_gemma3_in_the_older_spelling_of_its_two_rotary_bases() -> None:
    values = values_of("gemma3 scaled")
    ropes = values["rope_parameters"]
    older = {key: value for key, value in values.items() if key != "rope_parameters"} | {
        "rope_theta": ropes["full_attention"]["rope_theta"],
        "rope_local_base_freq": ropes["sliding_attention"]["rope_theta"],
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    assert read(older) == read(values)


def test_the_page_of_architectures_says_what_the_table_says() -> None:
    root = Path(__file__).parents[2]
    spec = importlib.util.spec_from_file_location(
        "make_architecture_docs", root / "tools" / "make_architecture_docs.py"
    )
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    written = (root / "docs" / "architectures.md").read_text(encoding="utf-8")
    assert set(written.splitlines()) <= set(made.page().splitlines())
