"""Longformer and BigBird with each of their heads: the same answers as transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.parity import assert_parity, assert_written, randomised

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import architecture
from lmworks.models.cache import KVCache
from lmworks.models.config import (
    AttentionConfig,
    BigBirdPattern,
    LongformerPattern,
    MLPConfig,
    ModelConfig,
)
from lmworks.models.load import load_model
from lmworks.models.model import Model

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "num_labels": 3,
}
LONGFORMER = SIZES | {"attention_window": [16, 8], "type_vocab_size": 1, "pad_token_id": 1}
BIG_BIRD = SIZES | {"block_size": 4, "num_random_blocks": 2}
HEADS = {
    "Model": "AutoModel",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
}


def texts(length: int = 77) -> tuple[torch.Tensor, torch.Tensor]:
    """Two texts, one 4 tokens shorter: a query that sees padding alone is NaN in theirs."""
    ids = torch.randint(4, 97, (2, length), generator=torch.Generator().manual_seed(1))
    return ids, (torch.arange(length) < torch.tensor([[length], [length - 4]])).long()


def random_model(kind: str, values: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    family = "Longformer" if kind.startswith("Longformer") else "BigBird"
    config = getattr(transformers, f"{family}Config")(**values)
    return randomised(getattr(transformers, kind)(config))


UNUSED = r".*pooler\..*|(cls\.predictions|lm_head)\.bias"


@pytest.mark.parametrize("head", HEADS)
def test_longformer(head: str, tmp_path: Path) -> None:
    theirs = random_model(f"Longformer{head}", LONGFORMER)
    ids, mask = texts()
    chosen: dict[str, torch.Tensor] = {}
    if head in ("Model", "ForMaskedLM"):
        tokens = torch.zeros_like(ids)
        tokens[0, :2] = tokens[1, 30:34] = 1
        chosen["global_attention_mask"] = tokens
    ours = assert_parity(
        theirs, tmp_path / "theirs", ids, num_greedy=0, attention_mask=mask, **chosen
    )
    patterns = [layer.mixer.config.pattern for layer in ours.layers]
    assert [pattern.window for pattern in patterns] == [16, 8]
    assert patterns[0].num_global_tokens == (head == "ForSequenceClassification")
    assert_written(ours, tmp_path / "ours", ids, "longformer", HEADS[head], UNUSED)


@pytest.mark.parametrize("head", HEADS)
def test_big_bird(head: str, tmp_path: Path) -> None:
    theirs = random_model(f"BigBird{head}", BIG_BIRD)
    ids, mask = texts(80)
    ours = assert_parity(theirs, tmp_path / "theirs", ids, num_greedy=0, attention_mask=mask)
    assert ours.layers[0].mixer.config.pattern.seed is None
    assert_written(ours, tmp_path / "ours", ids, "big_bird", HEADS[head], UNUSED)


def test_a_last_block_that_is_not_full(tmp_path: Path) -> None:
    theirs = random_model("BigBirdForMaskedLM", BIG_BIRD)
    theirs.save_pretrained(tmp_path)
    ids, mask = texts(77)
    with torch.no_grad():
        found = load_model(tmp_path)(ids, attention_mask=mask)
        wanted = theirs(ids, attention_mask=mask).logits
    assert ((found - wanted) * mask[..., None]).abs().max() < 1e-4


@pytest.mark.parametrize("length", [20, 36])
def test_a_short_text_is_attended_to_in_full(length: int, tmp_path: Path) -> None:
    theirs = random_model("BigBirdModel", BIG_BIRD)
    ids, _ = texts()
    assert_parity(theirs, tmp_path / "theirs", ids[:, :length], num_greedy=0)


def test_big_bird_without_blocks(tmp_path: Path) -> None:
    theirs = random_model("BigBirdModel", BIG_BIRD | {"attention_type": "original_full"})
    ids, mask = texts()
    ours = assert_parity(theirs, tmp_path / "theirs", ids, num_greedy=0, attention_mask=mask)
    assert ours.layers[0].mixer.pattern is None


@pytest.mark.parametrize(
    ("model_type", "values", "told"),
    [
        ("longformer", LONGFORMER | {"attention_window": [16]}, "names 1 layers of 2"),
        ("longformer", LONGFORMER | {"attention_window": 7}, "even, not 7"),
        ("longformer", LONGFORMER | {"attention_window": "16"}, "whole number"),
        ("big_bird", BIG_BIRD | {"block_size": 0}, "block_size"),
        ("big_bird", BIG_BIRD | {"attention_type": "dense"}, "'dense' is not supported"),
        ("big_bird", BIG_BIRD | {"rescale_embeddings": True}, "rescale_embeddings"),
    ],
)
def test_configs_that_do_not_fit_are_one_line(
    model_type: str, values: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        architecture(model_type).layout("hf").read_config(values)


def decoder(pattern: Any) -> ModelConfig:
    return ModelConfig.uniform(
        vocab_size=31,
        hidden_size=16,
        num_hidden_layers=2,
        mixer=AttentionConfig(
            num_attention_heads=4, num_key_value_heads=2, head_dim=4, pattern=pattern
        ),
        feed_forward=MLPConfig(intermediate_size=16),
    )


@pytest.mark.parametrize("chunks", [[30, 1, 1, 28], [1, 40, 19], [60]])
def test_a_causal_longformer_decodes_as_it_reads(chunks: list[int]) -> None:
    config = decoder(LongformerPattern(window=7, num_global_tokens=3, projections=False))
    model = Model(config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    ids = torch.randint(31, (2, 60), generator=torch.Generator().manual_seed(1))
    view = KVCache(config, 2, 64).view([0, 1])
    found = torch.cat([model(part, cache=view) for part in ids.split(chunks, dim=1)], 1)
    assert (found - model(ids)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        (LongformerPattern(window=8), "no projections when causal"),
        (BigBirdPattern(block_size=4, num_random_blocks=1), "causal must be false"),
    ],
)
def test_patterns_that_can_not_be_causal_say_so(pattern: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        decoder(pattern)
