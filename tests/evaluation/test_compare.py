"""The table: who is compared with whom, and verdicts that come from intervals alone."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from lmworks.core.errors import UserError
from lmworks.evaluation.compare import (
    Candidate,
    best_ngram,
    decoder_candidate,
    evaluate_models,
    sentence,
    untrained,
)
from lmworks.evaluation.report import verdict
from lmworks.scratch.ngram import KneserNey
from lmworks.training.tokens import token_stream


@pytest.fixture
def documents():
    random = np.random.default_rng(0)
    words = ["the", "a", "dog", "fox", "line", "page", "end", "of", "over", "again"]
    return [
        SimpleNamespace(text=" ".join(random.choice(words, 20)), group=f"g{index % 9}")
        for index in range(27)
    ]


def _constant(name, tokenizer, nats, noise=0.0, **more):
    def logprobs(sequences):
        random = np.random.default_rng(1)
        rows = [random.normal(0, noise, len(ids) - 1) if noise else 0.0 for ids in sequences]
        return [np.full(len(ids) - 1, -nats) + row for ids, row in zip(sequences, rows)]

    return Candidate(name=name, logprobs=logprobs, tokenizer=tokenizer, **more)


def test_rows_differences_and_verdicts(tokenizer, documents):
    candidates = [
        _constant("untrained", tokenizer, 6.0),
        _constant("base", tokenizer, 2.0),
        _constant("other", tokenizer, 1.0, is_stage=False),
        _constant("8-bit", tokenizer, 2.0, noise=0.05),
    ]
    ngram = _constant("n-gram", tokenizer, 3.0, is_stage=False)
    (table,) = evaluate_models(iter(candidates), documents=documents, ngram=ngram)
    rows = {row.name: row for row in table.rows}
    assert list(rows) == ["n-gram", "untrained", "base", "other", "8-bit"]
    assert rows["n-gram"].versus_ngram is None and rows["untrained"].versus_previous is None
    assert verdict(rows["untrained"].versus_ngram) == "worse"
    assert verdict(rows["base"].versus_ngram) == "better"
    assert verdict(rows["base"].versus_previous) == "better"
    assert rows["base"].previous == "untrained"
    assert verdict(rows["8-bit"].versus_previous) == "no difference shown"
    assert rows["8-bit"].previous == "base"
    assert rows["other"].versus_previous is None
    difference = rows["base"].bits_per_byte.estimate - rows["n-gram"].bits_per_byte.estimate
    assert rows["base"].versus_ngram.estimate == pytest.approx(difference)
    assert "27 documents in 9 groups" in table.note


def test_sentences_say_no_more_than_the_interval(tokenizer, documents):
    ngram = _constant("n-gram", tokenizer, 3.0)
    models = [_constant("good", tokenizer, 2.0), _constant("bad", tokenizer, 4.0)]
    models.append(_constant("same", tokenizer, 3.0, noise=0.1))
    (table,) = evaluate_models(models, documents=documents, ngram=ngram)
    _, good, bad, same = (sentence(row) for row in table.rows)
    assert " less than the best n-gram (95 % interval " in good
    assert " more than the best n-gram (95 % interval " in bad
    assert "no difference" in same
    (few,) = evaluate_models(models[:1], documents=documents[:5], ngram=ngram)
    assert "no difference" in sentence(few.rows[1])  # five groups prove nothing


def test_real_models_side_by_side(tokenizer, documents, make_decoder):
    model = make_decoder(vocab_size=tokenizer.vocab_size, context=32)
    tokens = token_stream(documents, tokenizer)
    ngram = best_ngram(tokens, documents, tokenizer)
    candidates = [
        untrained("Untrained", model, tokenizer),
        decoder_candidate("Model", model, tokenizer),
    ]
    chat = [
        {
            "id": str(index),
            "messages": [
                {"role": "user", "content": "the dog?"},
                {"role": "assistant", "content": "the fox"},
            ],
        }
        for index in range(7)
    ]
    tables = evaluate_models(candidates, documents=documents, ngram=ngram, conversations=chat)
    on_documents, on_answers = tables
    assert [row.name for row in on_documents.rows] == ["Best n-gram", "Untrained", "Model"]
    assert [row.name for row in on_answers.rows] == ["Untrained", "Model"]
    assert verdict(on_documents.rows[1].versus_ngram) == "worse"
    best = min(
        -sum(
            KneserNey.train(tokens, tokenizer.vocab_size, order)
            .logprobs(np.array([tokenizer.bos_token_id, *tokenizer.encode(d.text)]))[1:]
            .sum()
            for d in documents
        )
        for order in range(2, 7)
    )
    num_bytes = sum(len(d.text) for d in documents)
    figure = on_documents.rows[0].bits_per_byte.estimate
    assert figure == pytest.approx(best / np.log(2) / num_bytes)
    again = evaluate_models(candidates, documents=documents, ngram=ngram, conversations=chat)
    assert again == tables


def test_nothing_to_compare_is_one_line(tokenizer, documents):
    with pytest.raises(UserError, match="no model to measure"):
        evaluate_models([], documents=documents)
