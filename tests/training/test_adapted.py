"""Adapters through the stages: trained, resumed, served and merged, as commands do it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.tiny import tiny_model

from lmworks.cli.stage_command import build_config
from lmworks.core.errors import UserError
from lmworks.inference.chat import load_chat
from lmworks.models.adapters.base import adapter_of
from lmworks.models.adapters.lora import LoRAConfig
from lmworks.models.adapters.merge_stage import MergeAdapterConfig, merge_adapter
from lmworks.models.load import load_model
from lmworks.models.model import Model
from lmworks.models.save import save_model
from lmworks.tokenizers.train import TrainTokenizerConfig, train_tokenizer
from lmworks.training.adapted import load_to_train
from lmworks.training.sft import SFTConfig, sft

ANSWERS = [("capital of France?", "Paris."), ("two and two?", "Four."), ("sky?", "Blue, mostly.")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a tokenizer, and beside it conversations."""
    folder = tmp_path_factory.mktemp("base")
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in ANSWERS * 8
    ]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus = folder / "corpus"
    corpus.mkdir()
    document = {"id": "a", "text": " ".join(q + " " + a for q, a in ANSWERS) * 20, "source": "a"}
    for name in ("train", "heldout"):
        (corpus / f"{name}.jsonl").write_text(json.dumps(document) + "\n")
    config = TrainTokenizerConfig(corpus=str(corpus), vocab_size=300)
    tokenizer = train_tokenizer(config, out=folder / "tokenizer").path
    from lmworks.tokenizers.load import load_tokenizer

    words = load_tokenizer(tokenizer)
    model = tiny_model(words.vocab_size, heads=(4, 2), length=128)
    save_model(model, folder / "model", tokenizer=words)
    return folder


def flags(base: Path, *sets: str, **given: Any) -> Any:
    settings = {"model": str(base / "model"), "questions": str(base / "chats.jsonl")}
    steps = {"num_steps": 6, "batch_size": 4, "threads": 1}
    return build_config(SFTConfig, None, {**settings, **steps, **given}, sets)


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "bottleneck", "prefix"])
def test_an_adapter_is_trained_served_and_merged(kind: str, base: Path, tmp_path: Path) -> None:
    small = {"lora": ("adapter.rank=4",), "dora": ("adapter.rank=4",)}
    config = flags(base, *small.get(kind, ()), adapter=kind)
    made = sft(config, tmp_path / "adapter")
    assert made.metrics["adapter"] == kind and made.metrics["trained_parameters"] > 0
    assert made.manifest["config"]["adapter"]["kind"] == kind
    values = json.loads((made.path / "adapter_config.json").read_text())
    assert values["base_model_name_or_path"] == str(base / "model")
    assert not list(made.path.glob("model*.safetensors"))
    ids = torch.arange(20)[None] + 5
    adapted, plain = load_model(made.path), load_model(base / "model")
    assert not torch.equal(adapted(ids), plain(ids))
    mergeable = kind not in ("bottleneck", "prefix")
    assert (adapter_of(adapted) is None) == mergeable
    chat: Any = load_chat(made.path, max_batch=1)
    answer = chat.complete([{"role": "user", "content": "sky?"}], max_tokens=4, temperature=0)
    assert answer.completion_tokens > 0
    chat.close()
    merge = MergeAdapterConfig(adapter=str(made.path))
    if not mergeable:
        with pytest.raises(UserError, match="can't be folded into weights"):
            merge_adapter(merge, tmp_path / "merged")
        return
    merged = load_model(merge_adapter(merge, tmp_path / "merged").path)
    assert (merged(ids) - adapted(ids)).abs().max().item() <= 1e-5


def test_settings_of_an_adapter_are_checked_by_its_kind(base: Path) -> None:
    assert flags(base, adapter="lora").adapter == LoRAConfig()
    config = flags(base, "adapter.rank=4", "adapter.targets=[q_proj]", adapter="lora").adapter
    assert config == LoRAConfig(rank=4, targets=("q_proj",))
    assert flags(base).adapter is None
    for kind, sets, said in (
        ("lore", (), "did you mean 'lora'?"),
        ("lora", ("adapter.rnak=4",), "did you mean 'rank'?"),
        ("prefix", ("adapter.rank=4",), "unknown key 'rank'"),
        ("lora", ("adapter.rank=many",), "rank = 'many' is not valid"),
        ("lora", ("adapter.rank=0",), "rank must be at least 1"),
    ):
        with pytest.raises(UserError) as error:
            flags(base, *sets, adapter=kind)
        assert said in str(error.value)
    with pytest.raises(UserError, match="needs a kind"):
        flags(base, "adapter.rank=4")


def test_blocks_need_an_adapter(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be trained; train an adapter"):
        sft(flags(base, base_type="nf4"), tmp_path / "whole")
    made = sft(flags(base, "adapter.rank=4", adapter="lora", base_type="nf4"), tmp_path / "qlora")
    assert made.metrics["train_loss"] > 0


def test_an_adapter_names_its_base(base: Path, tmp_path: Path) -> None:
    made = sft(flags(base, "adapter.rank=4", adapter="lora"), tmp_path / "adapter").path
    config = made / "adapter_config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"base_model_name_or_path": "runs/gone"}))
    with pytest.raises(UserError, match="'runs/gone', which can't be found"):
        load_model(made)
    assert isinstance(load_model(made, base=base / "model"), Model)
    with pytest.raises(UserError, match="is no adapter"):
        load_model(base / "model", base=base / "model")
    with pytest.raises(UserError, match="bottleneck"):
        other = sft(flags(base, adapter="bottleneck"), tmp_path / "other").path
        load_to_train(other, LoRAConfig(rank=4), "float32", 0)
