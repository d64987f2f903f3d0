"""Files of integers and 8-bit floats: read back, computed with, and held against the format's own
package where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch

from lmworks.compression.coding import METHODS, code_matrix
from lmworks.compression.folding import find_folds
from lmworks.compression.formats.base import TYPES, scheme_of
from lmworks.compression.formats.compressed_tensors import tensors_of, write
from lmworks.compression.layer_inputs import LayerInputs, LayerWalk
from lmworks.compression.quantize_safetensors import (
    QuantizeSafetensorsConfig,
    code_model,
    coded_paths,
    fitting_group,
)
from lmworks.compression.smoothing import smooth_layer
from lmworks.core.errors import UserError
from lmworks.models.activation_rounding import InputRounding, RoundedLinear, rounded_activations
from lmworks.models.coded_matrix import CodedMatrix, pack_words, round_to, unpack_words
from lmworks.models.compressed_scheme import Scheme, Schemes
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
from lmworks.models.load import load_model
from lmworks.models.model import Model
from lmworks.models.packed import PackedLinear, PackedMatrix
from lmworks.models.size import held_bytes, model_size


@pytest.fixture
def model() -> Model:
    config = ModelConfig.uniform(
        vocab_size=61, hidden_size=64, num_hidden_layers=2,
        mixer=AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=16),
        feed_forward=MLPConfig(intermediate_size=96), max_position_embeddings=64,
        tie_word_embeddings=True,
    )  # fmt: skip
    made = Model(config)
    made.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(3)
        made.embed_tokens.weight[:, 5] *= 8  # an outlier channel
    return made.eval()


def rows() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 61, 40) for _ in range(8)]


def logits(model: Model) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(torch.from_numpy(rows()[0])[None])
    return found


class _NoTokenizer:
    bos_token_id = eos_token_id = pad_token_id = None
    special_tokens = MappingProxyType({})

    def save(self, folder: Path) -> None:
        pass


def written(model: Model, folder: Path, kind: str, method: str = "search") -> Path:
    coded, _ = code_model(model, scheme_of(kind, 32), rows(), method=method)
    write(coded, folder, tokenizer=_NoTokenizer(), card="", dtype="float32")  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("kind", TYPES)
def test_what_is_written_is_read_back(model: Model, tmp_path: Path, kind: str) -> None:
    folder = written(model, tmp_path / "model", kind)  # the model holds the codes' values now
    plain, packed = load_model(folder), load_model(folder, packed=True)
    for (name, ours), read in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, read), name
    assert model_size(folder, packed=True).weight_bytes == held_bytes(packed)
    module = packed.layers[1].feed_forward.down_proj
    rounding = scheme_of(kind, 32).inputs
    assert isinstance(module, RoundedLinear) == bool(rounding)
    base = module.base if rounding else module
    assert isinstance(base, PackedLinear) == (not kind.startswith("fp8"))
    if not rounding:
        torch.testing.assert_close(logits(packed), logits(plain), rtol=1e-4, atol=2e-4)
    else:
        assert not torch.equal(logits(packed), logits(plain))
        assert float((logits(packed) - logits(plain)).std() / logits(plain).std()) < 0.2


@pytest.mark.parametrize("kind", TYPES)
def test_the_formats_own_package_agrees(model: Model, tmp_path: Path, kind: str) -> None:
    compressed = pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    folder = written(model, tmp_path / "model", kind)
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(said)
    scheme = config.config_groups["group_0"]
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    compressor = BaseCompressor.get_value_from_registry(said["format"])
    name = "model.layers.1.mlp.down_proj"
    parts = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(name)}
    theirs = compressor.decompress(parts, scheme)["weight"]
    torch.testing.assert_close(
        theirs.float(), model.layers[1].feed_forward.down_proj.weight.detach(), rtol=0, atol=1e-6
    )
    assert compressed is not None
    inputs = scheme.input_activations
    if inputs is not None:
        from compressed_tensors.quantization.lifecycle.forward import fake_quantize
        from compressed_tensors.quantization.utils import helpers

        x = torch.randn(3, 7, 96, generator=torch.Generator().manual_seed(0)) * 4
        if inputs.dynamic:
            scale, zero = helpers.compute_dynamic_scales_and_zp(x, inputs, torch.nn.Module())
            ours = InputRounding(kind=scheme_of(kind, 32).inputs)(x)
        else:
            scale, zero = parts["input_scale"], torch.zeros(1)
            ours = InputRounding(kind=scheme_of(kind, 32).inputs, scale=float(scale))(x)
        assert torch.equal(ours, fake_quantize(x, scale, zero, inputs))


@pytest.mark.parametrize("bits", range(2, 9))
def test_words_hold_codes_of_any_width(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(-(1 << (bits - 1)), 1 << (bits - 1), (5, 70), generator=generator)
    words = pack_words(codes.to(torch.int8), bits)
    assert words.shape == (5, -(-70 * bits // 32))
    assert torch.equal(unpack_words(words, bits, 70), codes.to(torch.int8))
    bit_string = sum((int(c) + (1 << (bits - 1))) << (bits * i) for i, c in enumerate(codes[2]))
    whole = sum(int(word) % 2**32 << (32 * i) for i, word in enumerate(words[2]))
    assert whole == bit_string


def correlated(n: int = 64) -> LayerInputs:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400, 12, generator=generator) @ torch.randn(12, n, generator=generator)
    x = x + 0.3 * torch.randn(400, n, generator=generator)
    moment = (x.T @ x / len(x)).numpy()
    return LayerInputs(
        count=400, mean_square=np.diag(moment).copy(), largest=x.abs().amax(0).numpy(),
        moment=moment,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["int4", "int4-shifted", "int3", "int8", "fp8"])
def test_each_method_is_better_than_the_one_before(kind: str) -> None:
    values = torch.randn(48, 64, generator=torch.Generator().manual_seed(1))
    inputs, scheme = correlated(), scheme_of(kind, 32)
    moment = torch.from_numpy(inputs.moment)
    weight = torch.from_numpy(inputs.mean_square)
    outputs, weighed = [], []
    for method in ("round", "search", "solve"):
        off = code_matrix(values, scheme, inputs, method).dequantized() - values
        outputs.append(float(((off @ moment) * off).sum()))
        weighed.append(float((off.square() @ weight).sum()))
    assert outputs[2] < 0.6 * outputs[0]
    assert weighed[1] < weighed[0] or kind in ("int8", "fp8")  # where no clipping pays


def test_smoothing_leaves_the_model_and_helps_rounded_activations(model: Model) -> None:
    with torch.no_grad():  # channels that a norm makes far larger than the others
        for layer in model.layers:
            layer.mixer_norm.weight[5], layer.feed_forward_norm.weight[9] = 90, 90
            for name in ("q_proj", "k_proj", "v_proj"):
                getattr(layer.mixer, name).weight[:, 5] /= 30
            layer.feed_forward.up_proj.weight[:, 9] /= 30
            layer.feed_forward.gate_proj.weight[:, 9] /= 30
    before = logits(model)
    states = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def error(smooth: float) -> float:
        model.load_state_dict(states)
        code_model(model, scheme_of("w8a8", 32), rows(), method="round", smooth=smooth)
        with rounded_activations(model, InputRounding(kind="int8")):
            return float((logits(model) - before).square().mean())

    assert error(0.5) < 0.3 * error(0.0)
    model.load_state_dict(states)
    inputs = LayerWalk(model, rows()).inputs(0, coded_paths(model)[:7])
    smooth_layer(model, find_folds(model).of_layer(0), inputs, 0.5)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-3)


def test_packed_products_are_those_of_the_values() -> None:
    values = torch.randn(40, 128, generator=torch.Generator().manual_seed(0))
    for scheme in (
        Scheme(num_bits=4, group_size=16), Scheme(num_bits=4, group_size=64, symmetric=False),
        Scheme(num_bits=8), Scheme(num_bits=8, symmetric=False), Scheme(num_bits=3, group_size=32),
        Scheme(num_bits=4, group_size=0),
    ):  # fmt: skip
        coded = round_to(values, scheme)
        zeros = None if coded.zeros is None else coded.zeros.numpy()
        matrix = PackedMatrix.of_codes(coded.codes.numpy(), coded.scales.numpy(), zeros)
        np.testing.assert_allclose(matrix.dequantized(), coded.dequantized(), atol=1e-6)
        assert (matrix.codes.shape[2] == 4) == (scheme.num_bits <= 4)
    with pytest.raises(ValueError, match="blocks of 32"):
        PackedMatrix.of_codes(np.zeros((4, 48), np.int8), np.ones((4, 1), np.float32))


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"quant_method": "gptq"}, "quantised by 'gptq'"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ({"config_groups": 3}, "config_groups"),
        ({"config_groups": {"a": {"targets": "Linear"}}}, "targets"),
        ({"config_groups": {"a": {"targets": ["re:("], "weights": {"num_bits": 4}}}}, "expression"),
        ({"config_groups": {"a": {"targets": ["Linear"], "weights": {"num_bits": 11}}}}, "11 bits"),
        ({"config_groups": {}}, "no scheme speaks of"),
        ({"config_groups": {"a": {
            "targets": ["Linear"], "weights": {"num_bits": 4}, "input_activations": "int8",
        }}}, "input_activations is no table"),
    ],
)  # fmt: skip
def test_settings_that_are_not_honoured_are_told(
    model: Model, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    folder = written(model, tmp_path / "model", "int4", "round")
    edit(folder, **changes)
    with pytest.raises(UserError, match=expected):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "damage", "expected"),
    [
        ("weight_scale", lambda t: t * torch.nan, "NaN"),
        ("weight_scale", lambda t: t[:1], "weight_scale"),
        ("weight_packed", lambda t: t[:, :2].contiguous(), "does not hold"),
        ("weight_packed", lambda t: t.float(), "int32"),
        ("weight_shape", lambda t: t * 0, "weight_shape"),
        ("weight_shape", lambda t: t.sum(), "weight_shape"),
        ("weight_shape", lambda t: t * 2**40, "does not hold"),
        ("weight_packed", None, "no weight_packed|does not hold"),
        ("weight_shape", None, "no weight_shape"),
    ],
)
def test_damaged_parts_are_told(
    model: Model, tmp_path: Path, name: str, damage: Any, expected: str
) -> None:
    from safetensors.torch import load_file, save_file

    folder = written(model, tmp_path / "model", "int4", "round")
    tensors = load_file(folder / "model.safetensors")
    key = f"model.layers.0.mlp.up_proj.{name}"
    if damage is None:
        del tensors[key]
    else:
        tensors[key] = damage(tensors[key])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=expected):
        load_model(folder, packed=True)


def test_a_coded_head_beside_a_tied_embedding_is_told(model: Model, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = written(model, tmp_path / "model", "int4", "round")
    tensors = load_file(folder / "model.safetensors")
    other = "model.layers.0.mlp.up_proj"
    for part in ("weight_packed", "weight_scale", "weight_shape"):
        tensors[f"lm_head.{part}"] = tensors[f"{other}.{part}"].clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="ties the head to the embedding"):
        load_model(folder)


def test_groups_that_do_not_divide_are_told(model: Model) -> None:
    assert fitting_group(model, 128) == 32  # 96 columns
    with pytest.raises(UserError, match="group = 48"):
        fitting_group(model, 48)


def test_the_command_offers_what_the_tables_hold() -> None:
    kinds = get_type_hints(QuantizeSafetensorsConfig)
    assert get_args(kinds["type"]) == tuple(TYPES) and get_args(kinds["method"]) == METHODS
    with pytest.raises(UserError, match=r"unknown method.*solve"):
        code_matrix(torch.ones(2, 32), scheme_of("int4", 32), None, "solved")


def test_the_scheme_is_read_as_it_was_written() -> None:
    for kind in TYPES:
        scheme = scheme_of(kind, 64)
        config = {"quant_method": "compressed-tensors", "config_groups": {"g": scheme.to_config()}}
        assert Schemes(config).of("model.layers.0.mlp.up_proj") == scheme
    with pytest.raises(UserError, match="did you mean"):
        scheme_of("int5", 32)


def test_a_static_scale_lies_with_its_module() -> None:
    coded = CodedMatrix(codes=torch.zeros(4, 32, dtype=torch.int8), scales=torch.ones(4, 1))
    parts = tensors_of(coded, scheme_of("w8a8-static", 32), 0.25)
    assert float(parts["input_scale"]) == 0.25
    assert parts["weight"].dtype == torch.int8
