"""Merging into blocks: nearer to the adapted model than rounding, and nothing else moves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lmworks.compression import merge_back as module
from lmworks.compression.block_rows import BlockRows
from lmworks.compression.merge_back import (
    find_places,
    merge_back,
    merge_plainly,
    solve_blocks,
)
from lmworks.compression.quantize import QuantizeConfig, quantize
from lmworks.core import quantizers
from lmworks.core.errors import UserError
from lmworks.core.gguf import GGUFTensor, dequantize, read_gguf
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig, RoPEConfig
from lmworks.models.load import load_language_model, open_weights
from lmworks.models.model import Model
from lmworks.models.save import save_model
from lmworks.tokenizers.train import train_bpe

KINDS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")


def written(folder: Path, kind: str) -> Path:
    """A GGUF file of a tiny Llama whose matrices are of type `kind`."""
    width = 256 if kind.endswith("K") else 64
    tokenizer = train_bpe(["the cat sat on the mat and the dog\n"] * 20, vocab_size=288)
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
        feed_forward=MLPConfig(intermediate_size=width),
        max_position_embeddings=64,
    )
    model = Model(config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data *= 4
    # States of a trained model lie near few directions; white ones leave a solver nothing to find.
    generator = torch.Generator().manual_seed(5)
    few = torch.randn(6, width, generator=generator)
    few = torch.randn(config.vocab_size, 6, generator=generator) @ few
    model.embed_tokens.weight.data = few + 0.1 * model.embed_tokens.weight.data
    save_model(model, folder / "model", tokenizer=tokenizer)
    made = quantize(QuantizeConfig(model=str(folder / "model"), type=kind), folder / "gguf")  # type: ignore[arg-type]
    return made.path / "model.gguf"


class Adapted(nn.Module):
    """A low-rank update beside a packed layer."""

    def __init__(self, base: Any, generator: torch.Generator, size: float) -> None:
        super().__init__()
        self.base, shape = base, (base.out_features, base.in_features)
        weight = base.dequantized()
        b = torch.randn(shape[0], 2, generator=generator)
        update = b @ torch.randn(2, shape[1], generator=generator)
        self.update = update * (size * weight.std() / update.std())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base(x) + x @ self.update.T
        return out

    def wanted(self) -> torch.Tensor:
        out: torch.Tensor = self.base.dequantized() + self.update
        return out


def adapted(path: Path, size: float = 0.05) -> tuple[Model, dict[str, Any]]:
    """The packed model with an update of each of its layers' matrices."""
    model, generator = load_language_model(path, packed=True), torch.Generator().manual_seed(1)
    found = {}
    for name, layer in list(model.named_modules()):
        if name.startswith("layers.") and hasattr(layer, "matrix"):
            parent, _, last = name.rpartition(".")
            found[name] = Adapted(layer, generator, size)
            setattr(model.get_submodule(parent), last, found[name])
    return model, found


def texts(seed: int, count: int = 60) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, 260, random.integers(5, 40)) for _ in range(count)]


def logits(model: Model) -> torch.Tensor:
    ids = torch.from_numpy(np.random.default_rng(9).integers(0, 260, (8, 40)))
    with torch.inference_mode():
        return model(ids)


@pytest.fixture(scope="module", params=KINDS)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp(request.param), request.param)


def solve(file: Path, out: Path, **changes: Any) -> list[Any]:
    model, parts = adapted(file)
    weights = open_weights(file)
    wanted = {path: part.wanted for path, part in parts.items()}
    places = find_places(weights, list(parts))  # type: ignore[arg-type]
    work = out.parent / "work"
    work.mkdir(exist_ok=True)
    return merge_back(
        weights,
        model,
        places,
        wanted,
        texts(2),
        out,
        work=work,
        **changes,  # type: ignore[arg-type]
    )


def test_it_is_nearer_than_rounding(file: Path, tmp_path: Path) -> None:
    model, parts = adapted(file)
    truth, base = logits(model), logits(load_language_model(file))
    weights = open_weights(file)
    places = find_places(weights, list(parts))  # type: ignore[arg-type]
    wanted = {path: part.wanted for path, part in parts.items()}
    plain = merge_plainly(weights, places, wanted, tmp_path / "plain.gguf")  # type: ignore[arg-type]
    merged = solve(file, tmp_path / "merged.gguf")
    assert [one.name for one in merged] == [one.name for one in plain]
    assert all(one.error < 1 for one in merged)

    def missed(path: Path) -> float:
        return float((logits(load_language_model(path)) - truth).square().mean())

    change = float((base - truth).square().mean())
    assert missed(tmp_path / "merged.gguf") < 0.5 * missed(tmp_path / "plain.gguf")
    assert missed(tmp_path / "merged.gguf") < 0.4 * change


def test_nothing_else_in_the_file_moves(file: Path, tmp_path: Path) -> None:
    solve(file, tmp_path / "merged.gguf")
    before, after = read_gguf(file), read_gguf(tmp_path / "merged.gguf")
    assert after.metadata == before.metadata
    old, new = file.read_bytes(), bytearray((tmp_path / "merged.gguf").read_bytes())
    changed = 0
    for name, tensor in before.tensors.items():
        assert (after.tensors[name].type, after.tensors[name].shape) == (tensor.type, tensor.shape)
        if name.startswith("blk.") and len(tensor.shape) == 2:
            span = slice(tensor.start, tensor.start + tensor.data.nbytes)
            changed += new[span] != old[span]
            new[span] = old[span]
    assert bytes(new) == old
    assert changed == 14


def test_an_update_of_nothing_changes_nothing(tmp_path: Path) -> None:
    file = written(tmp_path, "Q4_1")
    model, parts = adapted(file, size=0.0)
    weights: Any = open_weights(file)
    places = find_places(weights, list(parts))
    wanted = {path: part.wanted for path, part in parts.items()}
    merge_back(weights, model, places, wanted, texts(2), tmp_path / "out.gguf", work=tmp_path)
    assert (tmp_path / "out.gguf").read_bytes() == file.read_bytes()


def test_a_killed_run_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, "Q4_0")
    solve(file, tmp_path / "whole.gguf")
    (tmp_path / "work" / "merged.json").unlink()
    solved: list[str] = []
    true = module._solve

    def die(place: Any, *rest: Any) -> Any:
        if place.path.startswith("layers.1"):
            raise KeyboardInterrupt
        return true(place, *rest)

    monkeypatch.setattr(module, "_solve", die)
    with pytest.raises(KeyboardInterrupt):
        solve(file, tmp_path / "out.gguf")

    def see(place: Any, *rest: Any) -> Any:
        solved.append(place.path)
        return true(place, *rest)

    monkeypatch.setattr(module, "_solve", see)
    merged = solve(file, tmp_path / "out.gguf")
    assert len(merged) == 14 and len(solved) == 7 and all("layers.1" in path for path in solved)
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_a_solved_row_is_never_worse_than_it_was(kind: str) -> None:
    random = np.random.default_rng(3)
    weights = random.standard_normal((6, 256)).astype(np.float32)
    raw = quantizers.quantize(weights, kind)
    tensor = GGUFTensor(name="w", shape=(6, 256), type=kind, data=raw.reshape(-1))
    before = dequantize(tensor)
    wanted = before + np.float32(0.02) * random.standard_normal((6, 1)).astype(np.float32)
    wanted[0], wanted[1, :64] = before[0], wanted[1, :64] * 8  # nothing to do; outgrown
    x = random.standard_normal((400, 8)) @ random.standard_normal((8, 256))
    x = (x + 0.1 * random.standard_normal((400, 256))).astype(np.float32)
    moment = (x.T @ x / len(x)).astype(np.float32)
    blocks = solve_blocks(tensor, wanted, moment, 0.1)
    after = dequantize(dataclasses.replace(tensor, data=blocks.raw().reshape(-1)))
    error = ((after - wanted) @ moment * (after - wanted)).sum(1)
    start = ((before - wanted) @ moment * (before - wanted)).sum(1)
    assert (error <= start + 1e-6).all()
    assert error[2:].sum() < 0.5 * start[2:].sum()
    assert np.array_equal(
        blocks.raw(),
        BlockRows.of_tensor(dataclasses.replace(tensor, data=blocks.raw().reshape(-1))).raw(),
    )
    low, high = blocks.limits[:2]
    assert blocks.codes.min() >= low and blocks.codes.max() <= high


def bad(tmp_path: Path, spoil: Any, rows: list[np.ndarray] | None = None) -> None:
    file = written(tmp_path, "Q8_0")
    model, parts = adapted(file)
    wanted = {path: part.wanted for path, part in parts.items()}
    weights: Any = open_weights(file)
    places = find_places(weights, list(parts))
    spoil(wanted)
    merge_back(
        weights, model, places, wanted, texts(2) if rows is None else rows,
        tmp_path / "o.gguf", work=tmp_path,
    )  # fmt: skip


def test_a_damaged_adapter_is_named(tmp_path: Path) -> None:
    def spoil(wanted: dict[str, Any]) -> None:
        wanted["layers.1.mixer.v_proj"] = lambda: torch.full((32, 64), float("nan"))

    with pytest.raises(UserError, match=r"layers\.1\.mixer\.v_proj holds NaN .* damaged"):
        bad(tmp_path, spoil)


def test_an_adapter_of_another_model_is_told(tmp_path: Path) -> None:
    def spoil(wanted: dict[str, Any]) -> None:
        wanted["layers.0.mixer.q_proj"] = lambda: torch.zeros(65, 64)

    with pytest.raises(UserError, match=r"\(65, 64\), but blk\.0\.attn_q.* another model"):
        bad(tmp_path, spoil)


def test_too_little_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 20 tokens; give at least 256"):
        bad(tmp_path, lambda wanted: None, [np.arange(20)])


def test_what_has_no_tensor_of_its_own_is_refused(tmp_path: Path) -> None:
    weights: Any = open_weights(written(tmp_path, "Q8_0"))
    with pytest.raises(UserError, match=r"embed_tokens has no matrix .*model merge-adapter"):
        find_places(weights, ["embed_tokens"])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("IQ2_XS", "IQ2_XS can.t be written: take")],
)
def test_a_type_that_can_not_be_solved_is_named(tmp_path: Path, kind: str, reason: str) -> None:
    weights: Any = open_weights(written(tmp_path, "Q8_0"))
    name = "blk.0.attn_q.weight"
    weights.tensors[name] = dataclasses.replace(weights.tensors[name], type=kind)
    with pytest.raises(UserError, match=rf"attn_q\.weight: {reason}"):
        find_places(weights, ["layers.0.mixer.q_proj"])
