"""What we save, transformers loads with the same logits; saving is whole or not at all."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from lmworks.core.errors import UserError
from lmworks.models import save
from lmworks.models.config import LinearScaling, Llama3Scaling, ModelConfig, RoPEConfig
from lmworks.models.load import load_model
from lmworks.models.model import Model
from lmworks.models.save import save_model

LLAMA3 = Llama3Scaling(factor=8.0, original_max_position_embeddings=64)


def variant(config: ModelConfig, name: str) -> ModelConfig:
    layer: Any = config.layers[0]
    mixer, feed_forward = layer.mixer, layer.feed_forward
    ropes = {
        "llama3": RoPEConfig(theta=5e5, scaling=LLAMA3),
        "linear": RoPEConfig(scaling=LinearScaling(factor=2.0)),
    }
    if name in ropes:
        return config.with_layers(mixer=dataclasses.replace(mixer, rope=ropes[name]))
    if name == "biases":
        return config.with_layers(
            mixer=dataclasses.replace(mixer, bias="qkvo"),
            feed_forward=dataclasses.replace(feed_forward, bias=True),
        )
    if name == "wide heads":
        return config.with_layers(mixer=dataclasses.replace(mixer, head_dim=20))
    return dataclasses.replace(config, tie_word_embeddings=name == "tied")


def scattered(config: ModelConfig) -> Model:
    """A model in which no two weights are alike, norms and biases included."""
    model, generator = Model(config), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.3, 0.2, generator=generator)
    return model.eval()


@pytest.mark.parametrize("name", ["untied", "tied", "llama3", "linear", "biases", "wide heads"])
def test_transformers_computes_the_same_logits(
    tiny_config: ModelConfig, token_ids: torch.Tensor, tmp_path: Path, name: str
) -> None:
    transformers = pytest.importorskip("transformers")
    ours = scattered(variant(tiny_config, name))
    save_model(ours, tmp_path / "m")
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "m", output_loading_info=True
    )
    assert type(theirs).__name__ == "LlamaForCausalLM"
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert (theirs(token_ids).logits - ours(token_ids)).abs().max() < 1e-5
    again = load_model(tmp_path / "m")
    assert again.config == ours.config
    assert torch.equal(again(token_ids), ours(token_ids))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_same_weights_same_bytes(tiny_model: Model, tmp_path: Path) -> None:
    save_model(tiny_model, tmp_path / "a", card="Trained on nothing.")
    save_model(tiny_model, tmp_path / "b", card="Trained on nothing.")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(contents(tmp_path / "a")) == ["README.md", "config.json", "model.safetensors"]
    assert "Trained on nothing." in (tmp_path / "a" / "README.md").read_text()


def test_large_models_are_sharded(
    tiny_model: Model, token_ids: torch.Tensor, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    save_model(tiny_model, tmp_path, shard_bytes=40_000)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    assert all(shard.stat().st_size < 50_000 for shard in shards)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    parameters = sum(p.numel() for p in tiny_model.parameters())
    assert index["metadata"]["total_size"] == 4 * parameters
    assert torch.equal(load_model(tmp_path)(token_ids), tiny_model(token_ids))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (theirs(token_ids).logits - tiny_model(token_ids)).abs().max() < 1e-5
    # Saved whole over the shards, none of them stays behind.
    save_model(tiny_model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


class FakeTokenizer:
    special_tokens: ClassVar = {
        "<|endoftext|>": 0,
        "<|im_start|>": 1,
        "<|im_end|>": 2,
        "<|pad|>": 3,
    }
    bos_token_id = eos_token_id = 0
    pad_token_id = 3

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


def test_the_end_tokens_are_those_of_the_tokenizer(tiny_model: Model, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save_model(tiny_model, tmp_path, tokenizer=FakeTokenizer())  # type: ignore[arg-type]
    expected = {"bos_token_id": 0, "eos_token_id": [0, 2], "pad_token_id": 3}
    assert json.loads((tmp_path / "generation_config.json").read_text()) == expected
    assert (tmp_path / "tokenizer.json").is_file()
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert theirs.eos_token_id == [0, 2]


def test_without_a_tokenizer_no_end_token_is_claimed(tiny_model: Model, tmp_path: Path) -> None:
    save_model(tiny_model, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["eos_token_id"] is None
    assert not (tmp_path / "generation_config.json").exists()


def test_a_full_disk_leaves_the_former_model_whole(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tiny_model, tmp_path)
    before = contents(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save, "save_file", full)
    with pytest.raises(UserError, match="the disk is full"):
        save_model(scattered(tiny_model.config), tmp_path)
    assert contents(tmp_path) == before


def test_leftovers_of_a_killed_save_are_thrown_away(tiny_model: Model, tmp_path: Path) -> None:
    (tmp_path / ".saving").mkdir()
    (tmp_path / ".saving" / "model-00001-of-00002.safetensors").write_bytes(b"half")
    save_model(tiny_model, tmp_path)
    assert sorted(contents(tmp_path)) == ["README.md", "config.json", "model.safetensors"]


def test_a_folder_that_is_a_file_is_told(tiny_model: Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        save_model(tiny_model, tmp_path / "file" / "model")


def test_an_adapted_model_is_told(tiny_model: Model, tmp_path: Path) -> None:
    tiny_model.layers[0].adapter = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"first layers\.0\.adapter\.bias"):
        save_model(tiny_model, tmp_path / "m")
    assert not (tmp_path / "m").exists()
