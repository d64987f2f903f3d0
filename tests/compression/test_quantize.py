"""Quantising: a model folder in, a GGUF out that we and transformers read to the same logits."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmworks.compression.measure import Speed, Speedup, measure_speed, speedup, weight_bytes
from lmworks.compression.quantize import QuantizeConfig, encode, quantize, relative_error
from lmworks.core.errors import UserError
from lmworks.core.gguf import dequantize, read_gguf
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig, RoPEConfig
from lmworks.models.load import load_model
from lmworks.models.model import Model
from lmworks.models.packed_slots import TILE
from lmworks.models.save import save_model
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.train import train_bpe

TEXTS = ["the cat sat on the mat and the dog sat on the cat\n"] * 20
CONFIG = ModelConfig.uniform(
    vocab_size=288,
    hidden_size=64,
    num_hidden_layers=2,
    mixer=AttentionConfig(
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, rope=RoPEConfig(theta=1e4)
    ),
    feed_forward=MLPConfig(intermediate_size=96),
    max_position_embeddings=128,
)


def make(folder: Path, intermediate_size: int = 96, **changes: Any) -> Path:
    tokenizer = train_bpe(TEXTS, vocab_size=288)
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer.vocab_size, **changes)
    feed_forward = MLPConfig(intermediate_size=intermediate_size)
    model = Model(config.with_layers(feed_forward=feed_forward))
    model.reset_parameters(torch.Generator().manual_seed(0))
    save_model(model, folder, tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("model") / "tiny")


def logits(model: Model) -> torch.Tensor:
    ids = torch.randint(0, 200, (2, 30), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model(ids)


@pytest.fixture(scope="module")
def eight_bit(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "q8"
    return quantize(QuantizeConfig(model=str(source)), out).path


def test_eight_bits_stay_close_and_are_packed(source: Path, eight_bit: Path) -> None:
    truth, ours = logits(load_model(source)), logits(load_model(eight_bit))
    assert (ours - truth).abs().max() < 0.02 * truth.abs().max()
    assert not torch.equal(ours, truth)
    small = load_model(eight_bit, packed=True)
    assert torch.allclose(logits(small), ours, atol=1e-4)
    assert weight_bytes(small) < 0.35 * weight_bytes(load_model(source))


@pytest.mark.parametrize(
    ("kind", "instead"), [("Q4_0", "Q4_0"), ("Q4_K", "Q5_0"), ("Q5_K", "Q5_1"), ("Q6_K", "Q8_0")]
)
def test_other_types_and_what_takes_their_place(
    source: Path, tmp_path: Path, kind: Any, instead: str
) -> None:
    made = quantize(QuantizeConfig(model=str(source), type=kind), tmp_path / "out")
    types = made.metrics["types"]
    assert types[instead] and set(types) == {instead, "F32"}
    plain, packed = load_model(made.path), load_model(made.path, packed=True)
    assert torch.allclose(logits(packed), logits(plain), atol=1e-4)


def test_wide_rows_take_large_blocks() -> None:
    array = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32)
    assert [encode("w", array, kind).type for kind in ("Q4_K", "Q6_K")] == ["Q4_K", "Q6_K"]
    assert relative_error(encode("w", array, "Q6_K"), array) < 0.02


def test_the_figures_are_true(source: Path, eight_bit: Path) -> None:
    from lmworks.core.stages import Artifact

    metrics = Artifact.load(eight_bit).metrics
    model = load_model(source)
    assert metrics["bytes_before"] == sum(p.numel() * 4 for p in model.parameters())
    assert metrics["bytes_after"] == (eight_bit / "model.gguf").stat().st_size
    assert metrics["types"] == {"Q8_0": 16, "F32": 5} and metrics["fallbacks"] == []
    assert 0.001 < metrics["mean_relative_error"] <= metrics["max_relative_error"] < 0.01
    assert "model.gguf" in (eight_bit / "README.md").read_text()


def test_the_tokenizer_travels_with_the_weights(source: Path, eight_bit: Path) -> None:
    before, after = load_tokenizer(source), load_tokenizer(eight_bit)
    text = "the cat, naïve — sat\n\t<|im_start|>x"
    assert before.encode(text) == after.encode(text)
    assert before.special_tokens == after.special_tokens
    assert before.chat_template == after.chat_template
    assert before.eos_token_id == after.eos_token_id


def test_transformers_reads_the_same_file_to_the_same_logits(eight_bit: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        eight_bit, gguf_file="model.gguf", dtype=torch.float32
    ).eval()
    ids = torch.randint(0, 200, (2, 30), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(ids).logits
    assert torch.allclose(logits(load_model(eight_bit)), expected, atol=1e-4)


def test_full_precision_is_exact(source: Path, tmp_path: Path) -> None:
    made = quantize(QuantizeConfig(model=str(source), type="F32"), tmp_path / "f32")
    assert torch.equal(logits(load_model(made.path)), logits(load_model(source)))
    assert made.metrics["max_relative_error"] == 0
    # A GGUF is a source as well.
    again = quantize(QuantizeConfig(model=str(made.path), type="F32"), tmp_path / "again")
    names = [path / "model.gguf" for path in (made.path, again.path)]
    assert len(read_gguf(names[1]).tensors) == 21
    for name, tensor in read_gguf(names[0]).tensors.items():
        assert np.array_equal(read_gguf(names[1]).tensors[name].data, tensor.data), name


def test_half_precision_is_the_rounding_of_each_weight(source: Path, tmp_path: Path) -> None:
    made = quantize(QuantizeConfig(model=str(source), type="F16"), tmp_path / "f16")
    before, after = load_model(source).state_dict(), load_model(made.path).state_dict()
    for name, tensor in before.items():
        expected = tensor if tensor.ndim < 2 else tensor.half().float()
        assert torch.equal(after[name], expected), name


def test_the_same_model_gives_the_same_bytes(source: Path, eight_bit: Path, tmp_path: Path) -> None:
    again = quantize(QuantizeConfig(model=str(source)), tmp_path / "again").path
    for name in ("model.gguf", "README.md"):
        assert (again / name).read_bytes() == (eight_bit / name).read_bytes()


def test_rows_that_do_not_divide_fall_back_and_are_named(tmp_path: Path) -> None:
    folder = make(tmp_path / "odd", intermediate_size=80)
    made = quantize(QuantizeConfig(model=str(folder)), tmp_path / "q8")
    assert sorted(made.metrics["fallbacks"]) == ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]
    assert made.metrics["types"]["F16"] == 2
    truth, ours = logits(load_model(folder)), logits(load_model(made.path))
    assert (ours - truth).abs().max() < 0.02 * truth.abs().max()
    packed = logits(load_model(made.path, packed=True))
    assert torch.allclose(packed, ours, atol=1e-4)


def test_tied_embeddings_are_written_once(tmp_path: Path) -> None:
    folder = make(tmp_path / "tied", tie_word_embeddings=True)
    made = quantize(QuantizeConfig(model=str(folder)), tmp_path / "q8")
    assert "output.weight" not in read_gguf(made.path / "model.gguf").tensors
    truth, ours = logits(load_model(folder)), logits(load_model(made.path))
    assert (ours - truth).abs().max() < 0.02 * truth.abs().max()


def test_a_packed_matrix_that_two_layers_share_is_counted_once(tmp_path: Path) -> None:
    folder = make(tmp_path / "tied", tie_word_embeddings=True)
    made = quantize(QuantizeConfig(model=str(folder)), tmp_path / "q8")
    model = load_model(folder)
    shapes = [p.shape for p in model.parameters() if p.ndim == 2]
    vectors = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    whole_tiles = sum(-(-rows // TILE) * TILE * columns for rows, columns in shapes)
    packed = load_model(made.path, packed=True)
    assert weight_bytes(packed) == whole_tiles * 36 // 32 + vectors * 4
    assert weight_bytes(model) == (sum(r * c for r, c in shapes) + vectors) * 4


@pytest.mark.parametrize("kind", ["Q8_0", "F16", "F32"])
def test_encode_keeps_shape_and_vectors(kind: str) -> None:
    array = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    tensor = encode("w", array, kind)
    assert (tensor.type, tensor.shape) == (kind, (3, 64))
    error = np.linalg.norm(dequantize(tensor) - array) / np.linalg.norm(array)
    assert relative_error(tensor, array) == pytest.approx(error)
    assert encode("norm", array[0], kind).type == "F32"


@pytest.mark.parametrize("shape", [(2, 64), (2, 33)])
@pytest.mark.parametrize("kind", ["Q8_0", "F16"])
def test_a_weight_too_large_for_half_precision_is_kept(kind: str, shape: tuple[int, int]) -> None:
    array = np.full(shape, 1e7, np.float32)
    tensor = encode("w", array, kind)
    assert np.isfinite(dequantize(tensor)).all()
    assert relative_error(tensor, array) < 0.01


def test_no_matrix_of_zeros_divides_by_zero() -> None:
    array = np.zeros((2, 32), np.float32)
    assert relative_error(encode("w", array, "Q8_0"), array) == 0.0


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="is no model"):
        quantize(QuantizeConfig(model=str(tmp_path / "a")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_speeds_are_measured_in_turns(source: Path, eight_bit: Path) -> None:
    models = [load_model(source), load_model(eight_bit, packed=True)]
    speeds = measure_speed(models, num_tokens=4, rounds=2)
    assert [s.weight_bytes for s in speeds] == [weight_bytes(m) for m in models]
    assert all(len(s.round_seconds) == 2 for s in speeds)
    assert [s.tokens_per_s for s in speeds] == [
        round(4 / statistics.median(s.round_seconds), 1) for s in speeds
    ]


def speed(*round_seconds: float) -> Speed:
    return Speed(tokens_per_s=1.0, weight_bytes=1, round_seconds=round_seconds)


def test_the_gain_is_that_of_rounds_side_by_side() -> None:
    before = speed(2, 4, 8, 2, 4, 8, 9)  # a machine that changes its mind, for both alike
    after = speed(1, 2, 4, 1, 2, 4, 3)
    assert speedup(before, after) == Speedup(ratio=2.0, low=2.0, high=3.0)
    few = speedup(speed(2, 2, 2), speed(1, 1, 1))
    assert (few.ratio, few.low, few.high) == (2.0, 0.0, float("inf"))


@pytest.mark.parametrize(
    ("num_rounds", "rank"), [(5, None), (6, 1), (8, 1), (9, 2), (15, 4), (20, 6), (30, 10)]
)
def test_the_interval_is_that_of_the_tables(num_rounds: int, rank: int | None) -> None:
    """Ranks of the 95 % interval of a median as statistical tables print them."""
    found = speedup(speed(*range(1, num_rounds + 1)), speed(*[1.0] * num_rounds))
    expected = (0.0, float("inf")) if rank is None else (rank, num_rounds + 1 - rank)
    assert (found.low, found.high) == expected  # each ratio is its own rank
