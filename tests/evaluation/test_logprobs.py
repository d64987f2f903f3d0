"""Every token once, with the context that the windows promise, whatever the batches are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmworks.inference import logprobs as module
from lmworks.inference.logprobs import decoder_logprobs, ngram_logprobs, windows_of
from lmworks.scratch.ngram import KneserNey


@given(st.integers(0, 70), st.integers(1, 20))
def test_windows_score_every_token_once_with_half_a_window_of_context(length, size):
    scored = []
    for start, end, first in windows_of(length, size):
        assert 0 <= start <= first < end <= start + size
        assert first == 0 or first - start >= size // 2
        scored += range(first, end)
    assert scored == list(range(max(length - 1, 0)))


def _one_by_one(model, ids, size):
    """The definition: one forward per window, one token at a time."""
    nats = np.zeros(len(ids) - 1)
    for start, end, first in windows_of(len(ids), size):
        with torch.no_grad():
            logits = model(torch.tensor(ids[start:end])[None])[0]
        for position in range(first, end):
            row = torch.log_softmax(logits[position - start].double(), -1)
            nats[position] = row[int(ids[position + 1])]
    return nats


@pytest.mark.parametrize("cells", [300 * 3, 8_000_000])
def test_decoder_equals_one_window_at_a_time(make_decoder, monkeypatch, cells):
    monkeypatch.setattr(module, "_LOGIT_CELLS", cells)
    monkeypatch.setattr(module, "_TOKENS_PER_BATCH", 64)
    model = make_decoder(context=16)
    random = np.random.default_rng(0)
    sequences = [random.integers(0, 300, n) for n in (40, 1, 17, 2, 16, 0, 100, 33)]
    found = decoder_logprobs(model)(sequences)
    assert [len(row) for row in found] == [39, 0, 16, 1, 15, 0, 99, 32]
    for ids, row in zip(sequences, found):
        if len(ids) > 1:
            np.testing.assert_allclose(row, _one_by_one(model, ids, 16), atol=2e-4)


def test_a_smaller_window_sees_less(make_decoder):
    model, ids = make_decoder(context=64), np.random.default_rng(1).integers(0, 300, 60)
    wide, narrow = decoder_logprobs(model)([ids])[0], decoder_logprobs(model, window=8)([ids])[0]
    np.testing.assert_allclose(wide[:8], narrow[:8], atol=2e-4)
    assert np.abs(wide[8:] - narrow[8:]).max() > 0.01


def test_ngram_scores_all_but_the_first():
    tokens = np.array([0, 1, 2, 1, 2, 0, 1, 2])
    model = KneserNey.train(tokens, 3, 3)
    (row,) = ngram_logprobs(model)([tokens])
    np.testing.assert_array_equal(row, model.logprobs(tokens)[1:])
