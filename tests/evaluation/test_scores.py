"""Bits per byte: known models give known figures, and both kinds of model score the same text."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from lmworks.core.errors import UserError
from lmworks.evaluation.scores import num_bytes, score_answers, score_documents

DOCUMENTS = [
    SimpleNamespace(text="The lazy dog.", group="a"),
    SimpleNamespace(text="", group="a"),
    SimpleNamespace(text="Gr\u00fc\u00dfe \U0001f600", group="b"),
]
CHAT = [
    {
        "id": "q1",
        "document": "d1",
        "messages": [
            {"role": "user", "content": "What is a dog?"},
            {"role": "assistant", "content": "Lazy."},
            {"role": "user", "content": "And \u00fc?"},
            {"role": "assistant", "content": "\u00dc \U0001f600"},
        ],
    },
    {
        "id": "q2",
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": ""}],
    },
    {
        "id": "q3",
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}],
    },
]


def _uniform(vocab_size):
    return lambda sequences: [np.full(len(ids) - 1, -math.log(vocab_size)) for ids in sequences]


def test_a_uniform_model_needs_log2_of_the_vocabulary_for_each_token(tokenizer):
    scores = score_documents(_uniform(1024), DOCUMENTS, tokenizer)
    tokens = [len(tokenizer.encode(d.text)) for d in DOCUMENTS if d.text]
    np.testing.assert_allclose(scores.bits, np.array(tokens) * 10)
    assert list(scores.num_bytes) == [13, 12]
    assert list(scores.groups) == ["a", "b"]
    assert scores.bits_per_byte == pytest.approx(10 * sum(tokens) / 25)


def test_documents_start_after_the_separator(tokenizer):
    seen = []

    def spy(sequences):
        seen.extend(sequences)
        return [np.zeros(len(ids) - 1) for ids in sequences]

    score_documents(spy, DOCUMENTS, tokenizer)
    assert [ids[0] for ids in seen] == [tokenizer.bos_token_id] * 2
    assert tokenizer.decode(seen[0][1:].tolist()) == "The lazy dog."


def test_only_answers_count_given_what_comes_before(tokenizer):
    seen = []

    def loud(sequences):
        """Each token costs as many nats as its place, so that a wrong mask shows."""
        seen.extend(sequences)
        return [-np.arange(1.0, len(ids)) for ids in sequences]

    scores = score_answers(loud, CHAT, tokenizer)
    assert list(scores.groups) == ["d1", "q3"]
    assert list(scores.num_bytes) == [5 + 7, 1]
    ids = tokenizer.encode_chat(CHAT[0]["messages"], add_generation_prompt=False)
    assert list(seen[0]) == ids
    first = tokenizer.encode_chat(CHAT[0]["messages"][:1])
    second = tokenizer.encode_chat(CHAT[0]["messages"][:2], add_generation_prompt=False)
    third = tokenizer.encode_chat(CHAT[0]["messages"][:3])
    # The line break behind an answer's end is the template's, not the assistant's.
    places = [*range(len(first), len(second) - 1), *range(len(third), len(ids) - 1)]
    assert scores.bits[0] * math.log(2) == pytest.approx(sum(places))


def test_nothing_to_measure_is_one_line(tokenizer):
    with pytest.raises(UserError, match="no held-out document has any text"):
        score_documents(_uniform(2), DOCUMENTS[1:2], tokenizer)
    with pytest.raises(UserError, match="no held-out question has an answer"):
        score_answers(_uniform(2), CHAT[1:2], tokenizer)


def test_bytes_of_broken_text():
    assert num_bytes("a\u00fc\U0001f600") == 7
    assert num_bytes("\ud800") == 3
