"""GGUF files of Llama models: the same logits as transformers' own reading of the same file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmworks.core.errors import UserError
from lmworks.core.gguf import GGUFTensor, read_gguf, write_gguf
from lmworks.core.quantizers import quantize_q8_0
from lmworks.models.architectures.base import architecture_of, to_gguf
from lmworks.models.config import (
    AttentionConfig,
    LinearScaling,
    Llama3Scaling,
    MLPConfig,
    ModelConfig,
    RoPEConfig,
)
from lmworks.models.load import load_model
from lmworks.models.model import Model
from lmworks.models.packed import PackedEmbedding, PackedLinear

CONFIG = ModelConfig.uniform(
    vocab_size=96,
    hidden_size=64,
    num_hidden_layers=2,
    mixer=AttentionConfig(
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, rope=RoPEConfig(theta=1e5)
    ),
    feed_forward=MLPConfig(intermediate_size=96),
    max_position_embeddings=128,
)
IDS = torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(1))

Edit = Callable[[dict[str, Any], dict[str, GGUFTensor]], None]


def attention(**changes: Any) -> ModelConfig:
    return CONFIG.with_layers(mixer=dataclasses.replace(CONFIG.layers[0].mixer, **changes))


def scattered(config: ModelConfig) -> Model:
    model, generator = Model(config), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.3, 0.2, generator=generator)
    return model.eval()


def as_tensor(name: str, array: np.ndarray, type: str) -> GGUFTensor:
    array = np.ascontiguousarray(array, dtype=np.float32)
    if type == "Q8_0" and array.ndim == 2:
        data = quantize_q8_0(array).reshape(-1)
    else:
        half = type == "F16" and array.ndim == 2
        type = "F16" if half else "F32"
        data = np.frombuffer(array.astype(np.float16 if half else np.float32).tobytes(), np.uint8)
    return GGUFTensor(name=name, shape=array.shape, type=type, data=data)


def write(model: Model, path: Path, type: str = "F32", edit: Edit | None = None) -> Path:
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    arrays = to_gguf(model.config, state)
    tensors = {name: as_tensor(name, array, type) for name, array in arrays.items()}
    metadata = architecture_of(model.config, "gguf").layout("gguf").config_dict(model.config)
    if edit:
        edit(metadata, tensors)
    write_gguf(path, metadata, tensors)
    return path


VARIANTS = {
    "grouped": CONFIG,
    "tied": dataclasses.replace(CONFIG, tie_word_embeddings=True),
    "wide heads": attention(head_dim=32),
    "linear": attention(rope=RoPEConfig(scaling=LinearScaling(factor=4.0))),
    "llama3": attention(rope=RoPEConfig(theta=5e5, scaling=Llama3Scaling(factor=32.0))),
    "biases": attention(bias="qkvo").with_layers(
        feed_forward=MLPConfig(intermediate_size=96, bias=True)
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_written_and_read_nothing_is_lost(tmp_path: Path, name: str) -> None:
    model = scattered(VARIANTS[name])
    again = load_model(write(model, tmp_path / "model.gguf"))
    assert again.config == model.config
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key


@pytest.mark.parametrize("type", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize("name", ["grouped", "tied"])
def test_logits_equal_those_of_transformers_on_the_same_file(
    tmp_path: Path, name: str, type: str
) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    write(scattered(VARIANTS[name]), tmp_path / "model.gguf", type)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    )
    ours = load_model(tmp_path)  # a folder with one GGUF file does too
    with torch.no_grad():
        expected = theirs(IDS).logits
        assert expected.std() > 0.1
        assert (ours(IDS) - expected).abs().max() < 1e-4


def test_packed_computes_what_dequantised_does(tmp_path: Path) -> None:
    for name in ("grouped", "tied", "biases"):
        path = write(scattered(VARIANTS[name]), tmp_path / f"{name}.gguf", "Q8_0")
        plain, packed = load_model(path), load_model(path, packed=True)
        kinds = {type(module) for module in packed.modules()}
        assert PackedLinear in kinds
        assert PackedEmbedding in kinds
        scale = plain(IDS).abs().max()
        with torch.no_grad():
            assert (packed(IDS) - plain(IDS)).abs().max() < 2e-2 * scale


def test_packed_scales_that_are_not_finite_are_told(tmp_path: Path) -> None:
    def edit(_: dict[str, Any], tensors: dict[str, GGUFTensor]) -> None:
        held = tensors["blk.1.ffn_up.weight"]
        data = held.data.copy()
        data[:2] = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)
        tensors["blk.1.ffn_up.weight"] = dataclasses.replace(held, data=data)

    path = write(scattered(CONFIG), tmp_path / "model.gguf", "Q8_0", edit)
    for packed, count in ((False, 32), (True, 1)):
        with pytest.raises(UserError, match=f"ffn_up.weight holds {count} values that are NaN"):
            load_model(path, packed=packed)


def test_a_tied_packed_matrix_is_held_once(tmp_path: Path) -> None:
    path = write(scattered(VARIANTS["tied"]), tmp_path / "model.gguf", "Q8_0")
    model = load_model(path, packed=True)
    assert model.lm_head is not None
    assert model.lm_head.matrix is model.embed_tokens.matrix


def test_packed_leaves_float_files_alone(tmp_path: Path) -> None:
    path = write(scattered(CONFIG), tmp_path / "m.gguf", "F16")
    assert torch.equal(load_model(path, packed=True)(IDS), load_model(path)(IDS))


def told(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def metadata(**changes: Any) -> Edit:
    def edit(values: dict[str, Any], _: dict[str, GGUFTensor]) -> None:
        for key, value in changes.items():
            name = key.replace("__", ".")
            if value is None:
                values.pop(name)
            else:
                values[name] = value

    return edit


def tensor(name: str, array: np.ndarray | None) -> Edit:
    def edit(_: dict[str, Any], tensors: dict[str, GGUFTensor]) -> None:
        if array is None:
            del tensors[name]
        else:
            tensors[name] = as_tensor(name, array, "F32")

    return edit


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (metadata(general__architecture="lama"), "unknown architecture 'lama': did you mean"),
        (metadata(general__architecture=None), "names no general.architecture"),
        (metadata(general__architecture=5), "names no general.architecture"),
        (metadata(llama__block_count=None), "llama.block_count is missing"),
        (metadata(llama__block_count="two"), "llama.block_count must be a whole number"),
        (
            metadata(llama__block_count=10**9),
            "num_hidden_layers must be",
        ),
        (metadata(llama__block_count=3), "9 missing: blk.2.attn_norm.weight"),
        (metadata(llama__attention__head_count=[4, 2]), "must be a whole number, not [4, 2]"),
        (metadata(llama__attention__head_count_kv=3), "not a multiple"),
        (metadata(llama__expert_count=8), "mixture-of-experts"),
        (
            metadata(llama__rope__dimension_count=8),
            "dimension_count 8 is not supported: known: 16",
        ),
        (metadata(llama__rope__freq_base="x"), "llama.rope.freq_base must be a number"),
        (metadata(llama__rope__freq_base=0.0), "theta must be a number above 0"),
        (metadata(llama__rope__scaling__type="yran"), "rope scaling 'yran' is not supported"),
        (metadata(llama__feed_forward_length=97), "of a wrong shape: blk.0.ffn_gate.weight"),
        (tensor("token_embd.weight", None), "token_embd.weight is missing"),
        (tensor("blk.1.attn_v.weight", None), "1 missing: blk.1.attn_v.weight"),
        (tensor("blk.0.extra.weight", np.ones(3)), "1 unexpected: blk.0.extra.weight"),
        (tensor("blk.0.attn_q.weight", np.ones((3, 4))), "attn_q.weight (3, 4) instead of"),
        (tensor("output_norm.weight", np.full(64, np.nan)), "holds 64 values that are NaN"),
        (tensor("rope_freqs.weight", np.arange(8) + 1.0), "not those of llama3 scaling"),
        (tensor("rope_freqs.weight", np.full(8, np.nan)), "not those of llama3 scaling"),
        (tensor("rope_freqs.weight", np.zeros(3)), "not those of llama3 scaling"),
    ],
)
def test_a_file_that_does_not_fit_is_told(tmp_path: Path, edit: Edit, expected: str) -> None:
    path = write(scattered(CONFIG), tmp_path / "model.gguf", edit=edit)
    message = told(path)
    assert expected in message
    assert "model.gguf" in message


def test_divisors_of_one_are_no_scaling(tmp_path: Path) -> None:
    edit = tensor("rope_freqs.weight", np.ones(8))
    assert load_model(write(scattered(CONFIG), tmp_path / "m.gguf", edit=edit)).config == CONFIG


def test_an_older_key_for_linear_scaling_is_read(tmp_path: Path) -> None:
    edit = metadata(llama__rope__scale_linear=2.0)
    config = load_model(write(scattered(CONFIG), tmp_path / "m.gguf", edit=edit)).config
    assert config.layers[0].mixer.rope.scaling == LinearScaling(factor=2.0)


def test_a_truncated_file_is_told(tmp_path: Path) -> None:
    path = write(scattered(CONFIG), tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes()[:-100])
    assert "cut short" in told(path)


def test_two_files_in_a_folder_are_told(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        write(scattered(CONFIG), tmp_path / name)
    assert "a.gguf" in told(tmp_path)
    assert "b.gguf" in told(tmp_path)


def test_row_orders_are_those_of_the_file_and_back(tmp_path: Path) -> None:
    model = scattered(CONFIG)
    tensors = read_gguf(write(model, tmp_path / "m.gguf")).tensors
    held = tensors["blk.0.attn_k.weight"].data.view(np.float32).reshape(32, 64)
    ours = model.layers[0].mixer.k_proj.weight.detach().numpy()
    # Within each head of 16 rows, 0 1 2 ... of the file are 0 8 1 9 2 10 ... of ours.
    assert np.array_equal(held[:4], ours[[0, 8, 1, 9]])
    assert np.array_equal(held[16:20], ours[[16, 24, 17, 25]])
