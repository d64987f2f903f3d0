"""Checkpoints that transformers saved compute the same here; damaged ones are one clear line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmworks.core.errors import UserError
from lmworks.models.load import load_model

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "one head each": {"num_key_value_heads": 6},
    "single kv head": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "wide heads": {"head_dim": 16},
    "llama3 rope": {"rope_parameters": LLAMA3, "head_dim": 16},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e3, "factor": 4.0}},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "other eps": {"rms_norm_eps": 1e-2},
}

Make = Callable[..., tuple[Any, Path]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_transformers(
    make_llama: Make, token_ids: torch.Tensor, variant: str
) -> None:
    theirs, folder = make_llama(**VARIANTS[variant])
    ours = load_model(folder)
    assert not ours.training
    with torch.no_grad():
        expected, got = theirs(token_ids).logits, ours(token_ids)
    assert expected.abs().max() > 0.5
    assert (got - expected).abs().max() < 1e-5


def test_gradients_equal_those_of_transformers(make_llama: Make, token_ids: torch.Tensor) -> None:
    theirs, folder = make_llama(rope_parameters=LLAMA3, tie_word_embeddings=True)
    ours = load_model(folder).train()
    targets = torch.nn.functional.one_hot(token_ids, 97).float()
    for logits in (theirs(token_ids).logits, ours(token_ids)):
        (logits.log_softmax(-1) * targets).mean().backward()
    from lmworks.models.architectures.llama import LLAMA

    assert LLAMA.hf is not None
    bounds = LLAMA.hf.bind(dict(ours.named_parameters()), ours.config)
    foreign = {bound.own[0]: bound.foreign[0] for bound in bounds}
    reference = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        expected = reference[foreign[name]].grad
        assert parameter.grad is not None
        scale = expected.abs().max()
        assert scale > 0
        assert (parameter.grad - expected).abs().max() < 1e-5 * max(1.0, float(scale)), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_become_float32(
    make_llama: Make, token_ids: torch.Tensor, dtype: torch.dtype
) -> None:
    theirs, folder = make_llama()
    theirs.to(dtype).save_pretrained(folder)
    ours = load_model(folder)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    # Loaded anew: the conversion above also rounded the rotary frequencies of `theirs`.
    theirs = type(theirs).from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(token_ids).logits
    assert (ours(token_ids) - expected).abs().max() < 1e-5


def test_shards_are_read_through_their_index(make_llama: Make, token_ids: torch.Tensor) -> None:
    theirs, folder = make_llama()
    whole = load_model(folder)
    (folder / "model.safetensors").unlink()
    theirs.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert torch.equal(load_model(folder)(token_ids), whole(token_ids))


def test_the_old_spelling_of_rope_is_read(make_llama: Make, token_ids: torch.Tensor) -> None:
    _, folder = make_llama(rope_parameters=LLAMA3)
    expected = load_model(folder)(token_ids)
    edit_config(
        folder,
        rope_parameters=...,
        rope_theta=5e5,
        rope_scaling={key: value for key, value in LLAMA3.items() if key != "rope_theta"},
    )
    assert torch.equal(load_model(folder)(token_ids), expected)


def test_a_model_does_not_change_its_file(make_llama: Make) -> None:
    _, folder = make_llama()
    before = (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        for parameter in load_model(folder).parameters():
            parameter.zero_()
    assert (folder / "model.safetensors").read_bytes() == before


def test_weights_lie_in_aligned_memory_of_their_own(make_llama: Make) -> None:
    # A matrix product may round otherwise where its operands begin at odd places of a file.
    _, folder = make_llama()
    assert not any(p.data_ptr() % 64 for p in load_model(folder).parameters())


def test_buffers_of_old_checkpoints_are_passed_over(
    make_llama: Make, token_ids: torch.Tensor
) -> None:
    _, folder = make_llama()
    expected = load_model(folder)(token_ids)
    edit_weights(folder, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert torch.equal(load_model(folder)(token_ids), expected)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def edit_weights(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    path = folder / "model.safetensors"
    state = load_file(path) | changes
    save_file({k: v for k, v in state.items() if v is not None}, path, metadata={"format": "pt"})


def told(folder: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_tensors_that_do_not_fit_are_told_at_once(make_llama: Make) -> None:
    _, folder = make_llama()
    edit_weights(
        folder,
        {
            "model.norm.weight": None,
            "model.layers.1.mlp.up_proj.weight": None,
            "model.layers.0.self_attn.q_proj.weight": torch.zeros(3, 4),
            "visual.patch.weight": torch.zeros(2),
        },
    )
    message = told(folder)
    for part in (
        "2 missing: model.layers.1.mlp.up_proj.weight, model.norm.weight",
        "1 unexpected: visual.patch.weight",
        "1 of a wrong shape: model.layers.0.self_attn.q_proj.weight (3, 4) instead of (48, 48)",
    ):
        assert part in message


def test_a_long_list_is_cut(make_llama: Make) -> None:
    _, folder = make_llama()
    edit_config(folder, num_hidden_layers=4)
    assert "18 missing" in told(folder)
    assert "and 10 more" in told(folder)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "lama"}, "unknown architecture 'lama': did you mean 'llama'"),
        ({"model_type": "gpt9"}, "unknown architecture 'gpt9'"),
        ({"model_type": ...}, "names no model_type"),
        ({"model_type": 3}, "names no model_type"),
        ({"hidden_act": "gelou"}, "hidden_act 'gelou' is not supported"),
        ({"rope_parameters": {"rope_type": "yran", "rope_theta": 1.0}}, "rope_type 'yran'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_parameters": 7}, "must be an object"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"vocab_size": ...}, "vocab_size is missing"),
        ({"vocab_size": "many"}, "vocab_size must be a whole number"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 1024"),
        ({"num_attention_heads": 7, "head_dim": ...}, "not a multiple of num_attention_heads 7"),
        ({"num_attention_heads": 0, "head_dim": ...}, "is not a multiple of num_attention_heads 0"),
        ({"num_key_value_heads": 4}, "not a multiple of num_key_value_heads 4"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"vocab_size": 2**31 - 1, "hidden_size": 2**30, "head_dim": 8}, "of a wrong shape"),
    ],
)
def test_a_config_that_can_not_be_built_is_told(
    make_llama: Make, changes: dict[str, Any], expected: str
) -> None:
    _, folder = make_llama()
    edit_config(folder, **changes)
    message = told(folder)
    assert expected in message
    assert "config.json" in message or "the config" in message


@pytest.mark.parametrize("text", ["", "[]", "{", '"llama"', "\x00"])
def test_a_config_that_is_none_is_told(make_llama: Make, text: str) -> None:
    _, folder = make_llama()
    (folder / "config.json").write_text(text)
    assert "config.json" in told(folder)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 5000, -1])
def test_a_truncated_file_is_told(make_llama: Make, kept: int) -> None:
    _, folder = make_llama()
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert "model.safetensors is damaged or cut short" in told(folder)


def test_a_header_that_lies_about_its_length_is_told(make_llama: Make) -> None:
    _, folder = make_llama()
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}" * 100)
    assert "damaged" in told(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_told(make_llama: Make, value: float) -> None:
    _, folder = make_llama()
    bad = torch.zeros(48)
    bad[5] = value
    edit_weights(folder, {"model.norm.weight": bad})
    assert "model.norm.weight holds 1 values that are NaN or infinite" in told(folder)


def test_integer_weights_are_told(make_llama: Make) -> None:
    _, folder = make_llama()
    edit_weights(folder, {"model.norm.weight": torch.zeros(48, dtype=torch.int8)})
    assert "model.norm.weight is of type I8" in told(folder)


def test_a_tied_head_may_be_stored_but_not_differ(
    make_llama: Make, token_ids: torch.Tensor
) -> None:
    _, folder = make_llama(tie_word_embeddings=True)
    expected = load_model(folder)(token_ids)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    edit_weights(folder, {"lm_head.weight": embedding.clone()})
    assert torch.equal(load_model(folder)(token_ids), expected)
    edit_weights(folder, {"lm_head.weight": embedding + 1})
    assert "lm_head.weight differs from model.embed_tokens.weight" in told(folder)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ("{", "not valid JSON"),
        ("[]", "holds no weight_map"),
        ('{"weight_map": {}}', "holds no weight_map"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "not there: gone.safetensors"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "not a file of this folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "not a file of this folder"),
        ('{"weight_map": {"a": ".."}}', "not"),
        ('{"weight_map": {"a": 3}}', "not a file of this folder"),
    ],
)
def test_a_bad_index_is_told(make_llama: Make, index: str, expected: str) -> None:
    _, folder = make_llama()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    assert expected in told(folder)


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    pickle = tmp_path / "pytorch_model.bin"
    pickle.write_bytes(b"\x80\x04")
    for place in (tmp_path, pickle):
        assert "is a pickle, which can run code when it is read" in told(place)


def test_places_without_weights_are_told(make_llama: Make, tmp_path: Path) -> None:
    _, folder = make_llama()
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds neither safetensors nor a .gguf file" in told(empty)
    assert f"name its folder, {folder}" in told(folder / "model.safetensors")
    assert "is no model" in told(folder / "config.json")
    assert "neither a file or folder here" in told(tmp_path / "nowhere")
    endpoint = told("http://localhost:1/v1#some-model")
    assert "gives no weights: use load_chat" in endpoint
    (folder / "config.json").unlink()
    assert "config.json" in told(folder)
