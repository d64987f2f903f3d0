"""Encoders of other projects with each of their heads: the same answers as transformers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.parity import assert_parity, assert_written, randomised

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import architecture
from lmworks.models.load import load_language_model, load_model
from lmworks.models.save import save_model

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
DISTILBERT: dict[str, Any] = {
    "vocab_size": 97,
    "dim": 24,
    "hidden_dim": 40,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 64,
}
BERT_LIKE = SIZES | {"layer_norm_eps": 1e-6, "hidden_act": "gelu_new", "num_labels": 5}
FAMILIES: dict[str, tuple[dict[str, Any], bool]] = {  # name: (settings, whether types are told)
    "Bert": (BERT_LIKE, True),
    "Roberta": (BERT_LIKE | {"type_vocab_size": 1}, False),
    "XLMRoberta": (SIZES | {"type_vocab_size": 1}, False),
    "DistilBert": (DISTILBERT | {"activation": "relu", "num_labels": 3}, False),
    "MPNet": (BERT_LIKE, False),
    "Electra": (BERT_LIKE | {"embedding_size": 16}, True),
}
HEADS = {
    "Model": "AutoModel",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
}
CASES = [(family, head, {}) for family in FAMILIES for head in HEADS] + [
    ("Bert", "ForMaskedLM", {"tie_word_embeddings": False}),
    ("Roberta", "ForMaskedLM", {"tie_word_embeddings": False, "pad_token_id": 3}),
    ("DistilBert", "ForMaskedLM", {"tie_word_embeddings": False}),
    ("Electra", "ForPreTraining", {}),
    ("Electra", "Model", {"embedding_size": 24}),
]


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Three texts of 60, 41 and 7 tokens in segments; no id is one that stands for padding."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([60, 41, 7])
    mask = (torch.arange(60) < lengths[:, None]).long()
    types = torch.randint(0, 2, (3, 60), generator=generator)
    ids = torch.randint(4, 97, (3, 60), generator=generator)
    return {"ids": ids, "attention_mask": mask, "token_type_ids": types}


def random_model(family: str, head: str, changes: dict[str, Any]) -> Any:
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family][0] | changes)
    torch.manual_seed(0)
    return randomised(getattr(transformers, family + head)(config))


@pytest.mark.parametrize(("family", "head", "changes"), CASES)
def test_the_same_answers_as_transformers(
    family: str,
    head: str,
    changes: dict[str, Any],
    tmp_path: Path,
    batch: dict[str, torch.Tensor],
) -> None:
    theirs = random_model(family, head, changes)
    if not FAMILIES[family][1]:
        del batch["token_type_ids"]
    ids = batch.pop("ids")
    ours = assert_parity(theirs, tmp_path / "theirs", ids, num_greedy=0, **batch)
    if head in HEADS and family != "XLMRoberta":
        kind = theirs.config.model_type
        unused = r".*pooler\..*|(cls\.predictions|lm_head)\.bias"  # the latter where untied
        assert_written(ours, tmp_path / "ours", ids, kind, HEADS[head], unused)


def test_a_head_beside_the_one_asked_for_is_left_in_the_file(
    tmp_path: Path, batch: dict[str, torch.Tensor]
) -> None:
    theirs = random_model("Bert", "ForPreTraining", {})
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        ours = load_model(tmp_path)(batch["ids"])
        assert (ours - theirs(batch["ids"]).prediction_logits).abs().max() < 1e-4


def test_names_of_old_files(tmp_path: Path, batch: dict[str, torch.Tensor]) -> None:
    theirs = random_model("Bert", "Model", {})
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors | {"embeddings.position_ids": torch.arange(64)[None]}, path)
    with torch.no_grad():
        wanted = theirs(batch["ids"]).last_hidden_state
        assert (load_model(tmp_path)(batch["ids"]) - wanted).abs().max() < 1e-4


def test_a_base_model_whose_config_claims_a_head(
    tmp_path: Path, batch: dict[str, torch.Tensor]
) -> None:
    theirs = random_model("MPNet", "Model", {})
    theirs.save_pretrained(tmp_path)
    change_config(tmp_path, architectures=["MPNetForMaskedLM"])
    ours = load_model(tmp_path)
    assert ours.config.head is None
    with torch.no_grad():
        wanted = theirs(batch["ids"]).last_hidden_state
        assert (ours(batch["ids"]) - wanted).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("family", "padding", "labels"), [("Llama", 0, 1), ("Qwen2", 5, 4), ("GPT2", 0, 3)]
)
def test_decoders_with_a_head_for_classes_or_rewards(
    family: str, padding: int, labels: int, tmp_path: Path, batch: dict[str, torch.Tensor]
) -> None:
    """A reward model is a decoder with one label; both pool the last token."""
    settings = SIZES | {"num_key_value_heads": 2}
    if family == "GPT2":
        settings = {"vocab_size": 97, "n_embd": 24, "n_layer": 2, "n_head": 4}
    config = getattr(transformers, f"{family}Config")(
        **settings, pad_token_id=padding, num_labels=labels
    )
    torch.manual_seed(0)
    theirs = randomised(getattr(transformers, f"{family}ForSequenceClassification")(config))
    ids, mask = batch["ids"], batch["attention_mask"]
    ids = ids.where(ids != padding, 6).where(mask.bool(), padding)
    again = copy.deepcopy(theirs)
    ours = assert_parity(theirs, tmp_path / "theirs", ids, num_greedy=0, attention_mask=mask)
    assert ours(ids).shape == ((3,) if labels == 1 else (3, labels))
    save_model(ours, tmp_path / "ours", model_type=theirs.config.model_type)
    assert load_model(tmp_path / "ours").config == ours.config
    with pytest.raises(UserError, match="no model that continues text"):
        load_language_model(tmp_path / "ours")
    read = (
        type(theirs)
        .from_pretrained(tmp_path / "ours", dtype=torch.float32, pad_token_id=padding)
        .eval()
    )
    with torch.no_grad():
        wanted = again(ids, attention_mask=mask).logits
        assert (read(ids, attention_mask=mask).logits - wanted).abs().max() < 1e-4


def test_token_classes_of_a_decoder(tmp_path: Path, batch: dict[str, torch.Tensor]) -> None:
    config = transformers.Qwen2Config(**SIZES, num_key_value_heads=2, num_labels=4)
    torch.manual_seed(0)
    theirs = randomised(transformers.Qwen2ForTokenClassification(config))
    assert_parity(theirs, tmp_path, batch["ids"], num_greedy=0)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("family", "changes", "told"),
    [
        ("Bert", {"architectures": ["BertForQuestionAnswering"]}, "BertForQuestionAnswering"),
        ("Bert", {"is_decoder": True}, "is_decoder"),
        ("Bert", {"position_embedding_type": "relative_key"}, "relative_key"),
        ("Bert", {"type_vocab_size": 0}, "type_vocab_size"),
        ("Bert", {"num_attention_heads": 5}, "multiple"),
        ("Bert", {"hidden_act": "gelu_10"}, "gelu_10"),
        ("MPNet", {"relative_attention_num_buckets": 16}, "buckets"),
        ("MPNet", {"max_position_embeddings": 2}, "leaves none"),
        ("DistilBert", {"dim": None}, "dim is missing"),
        ("Electra", {"embedding_size": 0}, "size must be"),
    ],
)
def test_configs_that_do_not_fit(family: str, changes: dict[str, Any], told: str) -> None:
    values = random_model(family, "Model", {}).config.to_dict() | {"architectures": None}
    layout = architecture(values["model_type"]).layout("hf")
    with pytest.raises(UserError, match=told):
        layout.read_config(values | changes)


def test_inputs_that_do_not_fit(tmp_path: Path, batch: dict[str, torch.Tensor]) -> None:
    random_model("Roberta", "Model", {}).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    with pytest.raises(UserError, match="token types from 0 to 1"):
        model(batch["ids"], token_type_ids=batch["token_type_ids"])
    with pytest.raises(UserError, match="beyond the 62"):
        model(torch.full((1, 63), 5))
    with pytest.raises(UserError, match="has no encoder"):
        model.encode(batch["ids"])
