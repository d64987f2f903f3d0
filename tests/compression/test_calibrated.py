"""Quantising by method and for a size: nearer to the model, within the size, and able to go on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmworks.compression import layer_quantizer
from lmworks.compression.layer_source import LayerSource
from lmworks.compression.measure_importance import ImportanceConfig, importance
from lmworks.compression.mix import choose, kept_types
from lmworks.compression.quantize import QuantizeConfig, plan, quantize
from lmworks.core.errors import UserError
from lmworks.core.gguf import read_gguf
from lmworks.core.importance import read_importance
from lmworks.core.stages import Artifact
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig, RoPEConfig
from lmworks.models.load import load_model
from lmworks.models.model import Model
from lmworks.models.save import save_model
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.train import train_bpe

WORDS = "the cat sat on the mat and the dog sat on the cat near a hat\n"


def make(folder: Path, tied: bool = True, width: int = 64) -> Path:
    """A model whose states lie near few directions, as those of a trained one do."""
    tokenizer = train_bpe([WORDS] * 20, vocab_size=288)
    config = ModelConfig.uniform(
        vocab_size=tokenizer.vocab_size,
        hidden_size=width,
        num_hidden_layers=2,
        mixer=AttentionConfig(
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=width // 4,
            rope=RoPEConfig(theta=1e4),
        ),
        feed_forward=MLPConfig(intermediate_size=96),
        max_position_embeddings=128,
        tie_word_embeddings=tied,
    )
    model = Model(config)
    generator = torch.Generator().manual_seed(0)
    model.reset_parameters(generator)
    few = torch.randn(config.vocab_size, 6, generator=generator) @ torch.randn(
        6, width, generator=generator
    )
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 4
    model.embed_tokens.weight.data = 0.3 * (few + 0.3 * model.embed_tokens.weight.data)
    save_model(model, folder, tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    random = np.random.default_rng(0)
    words = WORDS.split()
    rows = [" ".join(random.choice(words, 60)) for _ in range(60)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return path


def config(source: Path, text: Path | None, **changes: Any) -> QuantizeConfig:
    given = {"calibration": str(text)} if text else {}
    settings = {"type": "Q4_0", "calibration_tokens": 1500} | given | changes
    return QuantizeConfig(model=str(source), **settings)


def kl(source: Path, made: Path) -> float:
    """On other text of the same words."""
    random = np.random.default_rng(9)
    words = WORDS.split()
    tokenizer = load_tokenizer(source)
    rows = [tokenizer.encode(" ".join(random.choice(words, 60)))[:40] for _ in range(8)]
    with torch.inference_mode():
        p, q = (load_model(path)(torch.tensor(rows)).log_softmax(-1) for path in (source, made))
    return float((p.exp() * (p - q)).sum(-1).mean())


@pytest.fixture(scope="module")
def made(source: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("made")
    how = ("rtn", "hqq", "imatrix", "awq", "gptq", "solve")
    return {name: quantize(config(source, text, method=name), folder / name) for name in how}


def test_solving_is_nearest_and_all_have_one_size(source: Path, made: dict[str, Artifact]) -> None:
    found = {name: kl(source, artifact.path) for name, artifact in made.items()}
    assert found["solve"] < 0.6 * found["rtn"] and found["gptq"] < 0.8 * found["rtn"]
    assert found["solve"] < min(found["imatrix"], found["awq"], found["hqq"])
    assert found["awq"] < found["rtn"]
    sizes = {artifact.metrics["bytes_after"] for artifact in made.values()}
    assert len(sizes) == 1
    outputs = {name: made[name].metrics["mean_output_error"] for name in ("imatrix", "solve")}
    assert outputs["solve"] < outputs["imatrix"]
    assert "mean_output_error" not in made["rtn"].metrics
    assert "by `solve`" in (made["solve"].path / "README.md").read_text()


def test_text_alone_asks_for_solving(
    source: Path, text: Path, made: dict[str, Artifact], tmp_path: Path
) -> None:
    again = quantize(config(source, text), tmp_path / "a")
    assert again.metrics["method"] == "solve"
    expected = (made["solve"].path / "model.gguf").read_bytes()
    assert (again.path / "model.gguf").read_bytes() == expected


def test_a_killed_run_goes_on_to_the_same_bytes(
    source: Path, text: Path, made: dict[str, Artifact], tmp_path: Path, monkeypatch: Any
) -> None:
    whole, seen = layer_quantizer.encode_matrix, []

    def die(matrix: Any, *rest: Any) -> Any:
        if matrix.name.startswith("blk.1.ffn"):
            raise KeyboardInterrupt
        return whole(matrix, *rest)

    def see(matrix: Any, *rest: Any) -> Any:
        seen.append(matrix.name)
        return whole(matrix, *rest)

    monkeypatch.setattr(layer_quantizer, "encode_matrix", die)
    with pytest.raises(KeyboardInterrupt):
        quantize(config(source, text), tmp_path / "out")
    monkeypatch.setattr(layer_quantizer, "encode_matrix", see)
    again = quantize(config(source, text), tmp_path / "out")
    assert not any(name.startswith("blk.0") for name in seen) and "blk.1.attn_q.weight" in seen
    expected = (made["solve"].path / "model.gguf").read_bytes()
    assert (again.path / "model.gguf").read_bytes() == expected


@pytest.mark.parametrize("bits", [5.0, 6.5])
def test_a_size_is_met_and_well_spent(
    source: Path, text: Path, tmp_path: Path, bits: float
) -> None:
    uniform = quantize(config(source, text, type="Q5_0"), tmp_path / "uniform")
    size = int(uniform.metrics["bytes_after"] * bits / 5.0)
    asked = config(source, text, target_size=f"{size}B")
    mixed = quantize(asked, tmp_path / "mixed")
    assert 0.98 * size <= mixed.metrics["bytes_after"] <= size
    assert (mixed.path / "model.gguf").stat().st_size == mixed.metrics["bytes_after"]
    assert mixed.metrics["predicted_kl"] > 0
    table = list(plan(asked))
    assert any("attn_q" in line for line in table) and "predicted KL" in table[-1]
    assert kl(source, mixed.path) < 1.5 * kl(source, uniform.path)


def test_sizes_that_no_file_has_name_the_nearest(source: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"can't be met: the smallest file .* \((\d+) bytes\)"):
        quantize(config(source, text, target_size="10KB"), tmp_path / "a")
    with pytest.raises(UserError, match="not both"):
        quantize(config(source, text, target_size="1MB", target_bpw=4), tmp_path / "b")
    with pytest.raises(UserError, match=r"such as 4\.5"):
        quantize(config(source, text, target_bpw=-1.0), tmp_path / "b")
    large = quantize(config(source, text, target_size="1GB"), tmp_path / "c")
    assert set(large.metrics["types"]) == {"F16", "F32"}


def test_text_is_looked_at_where_anything_is_quantised(
    source: Path, text: Path, tmp_path: Path
) -> None:
    floats = quantize(config(source, text, type="F16"), tmp_path / "a")
    assert "mean_output_error" not in floats.metrics
    mixed = quantize(config(source, text, type="F16", keep=["*ffn_down*=Q4_0"]), tmp_path / "b")
    assert mixed.metrics["mean_output_error"] > 0
    size = f"{mixed.metrics['bytes_after'] // 2}B"
    sized = quantize(config(source, text, type="F16", target_size=size), tmp_path / "c")
    assert sized.metrics["mean_output_error"] > 0


def test_tensors_are_kept_by_pattern(source: Path, text: Path, tmp_path: Path) -> None:
    keep = ["*ffn_down*=Q8_0", "blk.1.ffn_down.weight=F16"]
    out = quantize(config(source, text, method="rtn", keep=keep), tmp_path / "a").path
    types = {name: t.type for name, t in read_gguf(out / "model.gguf").tensors.items()}
    assert types["blk.0.ffn_down.weight"] == "Q8_0" and types["blk.1.ffn_down.weight"] == "F16"
    assert types["blk.0.ffn_up.weight"] == "Q4_0"
    for rule, message in (
        ("x*=Q8_0", "fits no tensor"),
        ("*=Q9", "PATTERN=TYPE"),
        ("*", "PATTERN"),
    ):
        with pytest.raises(UserError, match=message):
            kept_types([rule], {"blk.0.attn_q.weight": (1, 2)})


def test_an_untied_head_is_solved_too(text: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "untied", tied=False)
    out = quantize(config(folder, text), tmp_path / "a").path
    facts = json.loads((out / "quantized.json").read_text())
    assert "output_error" in facts["output.weight"]
    assert "output_error" not in facts["token_embd.weight"]
    assert kl(folder, out) < 0.1


def test_importance_is_measured_written_and_used(source: Path, text: Path, tmp_path: Path) -> None:
    settings = ImportanceConfig(model=str(source), calibration=str(text), calibration_tokens=1500)
    folder = importance(settings, tmp_path / "importance").path
    held = read_importance(folder / "imatrix.gguf")
    assert len(held) == 14 and held["blk.0.ffn_down.weight"].shape == (96,)
    used = config(source, None, importance=str(folder / "imatrix.gguf"))
    out = quantize(used, tmp_path / "a")
    assert out.metrics["method"] == "imatrix"
    plain = quantize(dataclasses.replace(used, method="rtn"), tmp_path / "b")
    assert out.metrics["mean_output_error"] < 0.95 * plain.metrics["mean_output_error"]
    other = make(tmp_path / "other", width=32)
    with pytest.raises(UserError, match=r"importance of blk\.0.*another|made from this model"):
        quantize(config(other, None, importance=str(folder / "imatrix.gguf")), tmp_path / "c")


def test_what_is_bad_is_said(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown method.*gptq"):
        quantize(config(source, None, method="gpqt"), tmp_path / "a")
    short = tmp_path / "short.txt"
    short.write_text("hello")
    with pytest.raises(UserError, match="at least 256"):
        quantize(config(source, short), tmp_path / "a")


def test_the_mix_is_the_best_there_is() -> None:
    """Against trying them all."""
    import itertools

    random = np.random.default_rng(0)
    for _ in range(20):
        sizes = {str(i): {k: int(random.integers(1, 9)) for k in "abc"} for i in range(5)}
        costs = {
            n: {k: float(random.random() / size) for k, size in own.items()}
            for n, own in sizes.items()
        }
        least = sum(min(own.values()) for own in sizes.values())
        budget = least + 8
        chosen = choose(sizes, costs, budget)
        assert sum(sizes[n][k] for n, k in chosen.items()) <= budget
        best = min(
            sum(costs[n][k] for n, k in zip(sizes, kinds, strict=True))
            for kinds in itertools.product("abc", repeat=5)
            if sum(sizes[n][k] for n, k in zip(sizes, kinds, strict=True)) <= budget
        )
        assert sum(costs[n][k] for n, k in chosen.items()) <= best * 1.5 + 1e-9


def test_predicted_kl_is_about_right(source: Path, text: Path, tmp_path: Path) -> None:
    asked = config(source, text, keep=["*=Q4_0"], target_size="1GB", method="rtn")
    made = quantize(asked, tmp_path / "a")
    found = kl(source, made.path)
    assert 0.3 * found < made.metrics["predicted_kl"] < 3 * found


def test_one_layer_is_there_at_a_time(source: Path) -> None:
    held = LayerSource(source)
    held.load(0)
    there = {n.split(".")[1] for n, p in held.model.named_parameters() if not p.is_meta}
    assert there == {"0"}
    values = {name: array for name, array, _ in held.tensors(0)}
    assert values["blk.0.attn_q.weight"].shape == (64, 64)
    held.drop(0)
    assert all(p.is_meta for p in held.model.parameters())
    assert dataclasses.asdict(held.config)["hidden_size"] == 64
