"""Scores against transformers' cross-encoder; cosines where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import lmworks
from lmworks.core.errors import UserError
from lmworks.inference.reranking import CosineReranker, CrossEncoder
from lmworks.inference.text_rows import TextTooLong

DOCUMENTS = ["b a", "words " * 90, "", "a short text is b"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("cross")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "short", "text", "words", "is"]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        num_labels=1,
        initializer_range=0.4,
    )
    transformers.BertForSequenceClassification(config).eval().save_pretrained(folder)
    return folder


def test_scores_are_those_of_transformers(folder):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    wanted = []
    with torch.no_grad():
        for document in DOCUMENTS:
            pair = tokenizer(
                [["is a text short", document]],
                truncation="longest_first",
                max_length=64,
                return_tensors="pt",
            )
            wanted.append(float(model(**pair).logits))
    reranker = lmworks.load_reranker(folder)
    assert isinstance(reranker, CrossEncoder) and reranker.method == "cross-encoder"
    rows = reranker.rows("is a text short", DOCUMENTS)
    raw = reranker.finish(reranker.submit(rows).wait(), raw=True)
    np.testing.assert_allclose(raw, wanted, atol=1e-5)
    scores = reranker.score("is a text short", DOCUMENTS)
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-np.array(wanted))), atol=1e-6)
    assert np.ptp(raw) > 0.05


def test_extreme_numbers_stay_scores(folder):
    reranker = lmworks.load_reranker(folder)
    found = reranker.finish([-1e4, 0.0, 1e4])
    assert found.tolist() == [0.0, 0.5, 1.0]


def test_what_is_too_long_can_be_told(folder):
    with pytest.raises(TextTooLong, match="input 1 has"):
        lmworks.load_reranker(folder).rows("a", ["b", "words " * 90], truncate=False)


def test_without_a_cross_encoder_it_is_the_cosine(tmp_path, tiny_model, tokenizer):
    from lmworks.models.save import save_model

    save_model(tiny_model, tmp_path, tokenizer=tokenizer)
    reranker = lmworks.load_reranker(tmp_path)
    assert isinstance(reranker, CosineReranker) and reranker.method == "cosine"
    vectors = lmworks.load_embedder(tmp_path).encode(["q", "one", "two"])
    np.testing.assert_allclose(
        reranker.score("q", ["one", "two"]), vectors[1:] @ vectors[0], atol=1e-6
    )
    with pytest.raises(UserError, match="no cross-encoder"):
        CrossEncoder(tiny_model, tokenizer)
