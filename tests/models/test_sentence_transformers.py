"""Sentence encoders: the vectors of sentence-transformers' own steps, with real weights too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lmworks.core.errors import UserError
from lmworks.core.references import resolve
from lmworks.models.load import load_model
from lmworks.models.save import save_model

transformers = pytest.importorskip("transformers")
STEPS = ["Transformer", "Pooling", "Normalize"]


def write_steps(folder: Path, pooling: dict[str, bool], kinds: list[str] = STEPS) -> None:
    steps = [
        {"idx": i, "path": f"{i}_{kind}", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(steps))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 24, **pooling})
    )


@pytest.fixture
def encoder(tmp_path: Path) -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=97,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    model = transformers.BertModel(config).eval()
    model.save_pretrained(tmp_path)
    return model


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(4, 97, (2, 9), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.tensor([[1] * 9, [1] * 5 + [0] * 4])}


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["cls_token", "mean_tokens", "lasttoken"])
@pytest.mark.parametrize("normalize", [True, False])
def test_each_pooling(encoder: Any, tmp_path: Path, pooling: str, normalize: bool) -> None:
    modes = dict.fromkeys(
        ("pooling_mode_cls_token", "pooling_mode_mean_tokens", "pooling_mode_lasttoken"), False
    )
    write_steps(tmp_path, modes | {f"pooling_mode_{pooling}": True}, STEPS[: 2 + normalize])
    states = encoder(**batch()).last_hidden_state
    wanted = {
        "cls_token": states[:, 0],
        "mean_tokens": torch.stack([states[0].mean(0), states[1, :5].mean(0)]),
        "lasttoken": torch.stack([states[0, 8], states[1, 4]]),
    }[pooling]
    ours = load_model(tmp_path)
    inputs = batch()
    vectors = ours(inputs.pop("input_ids"), **inputs)
    assert (vectors - (F.normalize(wanted, dim=-1) if normalize else wanted)).abs().max() < 1e-5


@torch.no_grad()
def test_it_is_kept_in_our_own_folder(encoder: Any, tmp_path: Path) -> None:
    write_steps(tmp_path, {"pooling_mode_mean_tokens": True})
    ours = load_model(tmp_path)
    save_model(ours, tmp_path / "ours")
    again = load_model(tmp_path / "ours")
    assert again.config == ours.config
    assert torch.equal(again(batch()["input_ids"]), ours(batch()["input_ids"]))


@pytest.mark.parametrize(
    ("kinds", "modes", "told"),
    [
        (["Transformer", "Pooling", "Dense"], {"pooling_mode_mean_tokens": True}, "Dense"),
        (STEPS, {"pooling_mode_max_tokens": True}, "max_tokens"),
        (STEPS, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "cls_token"),
        (STEPS, {}, "by nothing"),
    ],
)
def test_steps_that_are_not_supported(
    encoder: Any, tmp_path: Path, kinds: list[str], modes: dict[str, bool], told: str
) -> None:
    write_steps(tmp_path, modes, kinds)
    with pytest.raises(UserError, match=told):
        load_model(tmp_path)


@pytest.mark.parametrize("text", ["{}", '["x", "y"]', '[{"type": "a.Transformer"}, 3]'])
def test_a_damaged_list_of_steps(encoder: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(UserError, match=r"modules\.json"):
        load_model(tmp_path)


def test_no_path_out_of_the_folder(encoder: Any, tmp_path: Path) -> None:
    write_steps(tmp_path, {"pooling_mode_mean_tokens": True})
    text = (tmp_path / "modules.json").read_text().replace("1_Pooling", "../1_Pooling")
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(UserError, match="beside it"):
        load_model(tmp_path)


SENTENCES = [
    "A man is eating a piece of bread.",
    "Someone eats some bread.",
    "The stock market fell by three percent on Monday, its worst day since the spring.",
]


@pytest.mark.weights
@torch.no_grad()
def test_minilm_gives_the_vectors_of_transformers() -> None:
    folder = resolve("minilm-l6").path
    assert folder is not None
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    states = theirs(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    wanted = F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    ours = load_model(folder)
    vectors = ours(
        inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        token_type_ids=inputs["token_type_ids"],
    )
    assert (vectors - wanted).abs().max() < 1e-5
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > 0.7 > 0.2 > far
