"""KenLM's own figures, a plain dictionary implementation, a case worked by hand, and speed."""

from __future__ import annotations

import json
import math
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.scratch.ngram import FALLBACK_DISCOUNTS, KneserNey, discounts

streams = st.lists(st.integers(0, 6), max_size=60)
orders = st.integers(1, 6)


def brute_force(train, vocab_size, order, context, word):
    """The definition, with dictionaries: probability of `word` after `context`."""
    p = 1 / vocab_size
    for n in range(1, order + 1):
        windows = [tuple(train[i - n + 1 : i + 1]) for i in range(max(n - 1, 1), len(train))]
        if n == order:
            counts = Counter(windows)
        else:
            before = defaultdict(set)
            for i in range(max(n - 1, 1), len(train)):
                before[tuple(train[i - n + 1 : i + 1])].add(train[i - n] if i >= n else None)
            counts = {gram: len(tokens) for gram, tokens in before.items()}
        of_counts = Counter(counts.values())
        d = FALLBACK_DISCOUNTS
        if all(of_counts[j] for j in (1, 2, 3, 4)):
            y = of_counts[1] / (of_counts[1] + 2 * of_counts[2])
            formula = [j - (j + 1) * y * of_counts[j + 1] / of_counts[j] for j in (1, 2, 3)]
            if all(0 <= x <= j for j, x in enumerate(formula, 1)):
                d = formula
        if n - 1 > len(context):
            break
        history = tuple(context[len(context) - n + 1 :])
        after = {gram[-1]: c for gram, c in counts.items() if gram[:-1] == history}
        if not after:
            continue
        total = sum(after.values())
        freed = sum(d[min(c, 3) - 1] for c in after.values())
        c = after.get(word, 0)
        p = (max(c - d[min(c, 3) - 1], 0) if c else 0) / total + freed / total * p
    return p


def test_figures_of_kenlm():
    case = json.loads((Path(__file__).parent / "kneser_ney_lmplz.json").read_text())
    model = KneserNey.train(np.array(case["train"]), case["vocab_size"], case["order"])
    log10 = model.logprobs(np.array(case["test"]))[1:] / math.log(10)
    np.testing.assert_allclose(log10, case["log10"], atol=2e-7)  # KenLM works in float32


@settings(max_examples=60, deadline=None)
@given(train=streams, test=streams, order=orders)
def test_equals_the_definition(train, test, order):
    model = KneserNey.train(np.array(train, dtype=np.int64), 8, order)
    logprobs = model.logprobs(np.array(test, dtype=np.int32))
    expected = [
        math.log(brute_force(train, 8, order, test[max(0, i - order + 1) : i], test[i]))
        for i in range(len(test))
    ]
    np.testing.assert_allclose(logprobs, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(train=streams, context=st.lists(st.integers(0, 7), max_size=8), order=orders)
def test_probabilities_sum_to_one_and_agree_with_logprobs(train, context, order):
    model = KneserNey.train(np.array(train, dtype=np.int64), 8, order)
    p = model.distribution(context)
    assert p.shape == (8,) and (p > 0).all()
    assert p.sum() == pytest.approx(1, abs=1e-12)
    for word in (0, 7):
        last = model.logprobs(np.array([*context, word]))[-1]
        assert last == pytest.approx(math.log(p[word]), abs=1e-12)


def test_worked_by_hand():
    # Stream s a b a b a c with s=0 a=1 b=2 c=3: too small for the formula, so 0.5, 1, 1.5.
    # Predecessors: of a {s, b}, of b {a}, of c {a}; total 4.
    # Unigram of b: (1 - .5)/4 + (1 + .5 + .5)/4 * 1/4 = .25
    # After a: b twice, c once, total 3. Bigram b: (2 - 1)/3 + (1 + .5)/3 * .25 = .458333...
    model = KneserNey.train(np.array([0, 1, 2, 1, 2, 1, 3]), 4, 2)
    assert model.levels[0].discounts == (0.5, 1.0, 1.5)
    assert model.distribution([])[2] == pytest.approx(0.25)
    assert model.distribution([1])[2] == pytest.approx(1 / 3 + 0.125)
    assert model.distribution([3])[2] == pytest.approx(0.25)  # c ends the stream: nothing known
    assert model.num_ngrams == 7  # a, b, c (s is never predicted) and four pairs


def test_discounts_by_hand():
    counts = np.repeat([1, 2, 3, 4, 9], [10, 5, 3, 2, 4])
    # y = 10 / 20; D1 = 1 - 2 y 5/10, D2 = 2 - 3 y 3/5, D3 = 3 - 4 y 2/3
    assert discounts(counts) == pytest.approx((0.5, 1.1, 3 - 4 / 3))
    assert discounts(np.repeat([1, 2, 3], [10, 5, 3])) == FALLBACK_DISCOUNTS
    assert discounts(np.repeat([1, 2, 3, 4], [1, 9, 9, 9])) == pytest.approx(
        (1 - 2 / 19 * 9, 2 - 3 / 19, 3 - 4 / 19)
    )
    assert discounts(np.repeat([1, 2, 3, 4], [2, 1, 9, 1])) == FALLBACK_DISCOUNTS  # D2 < 0


def test_every_array_size_has_probabilities():
    for train in ([], [3], [3, 3]):
        model = KneserNey.train(np.array(train, dtype=np.int32), 5, 6)
        assert model.logprobs(np.array([], dtype=np.int32)).shape == (0,)
        assert np.isfinite(model.logprobs(np.array([3, 3, 1, 4]))).all()


def test_best_order_equals_each_order_alone():
    random = np.random.default_rng(3)
    tokens = np.cumsum(random.integers(0, 3, 900)) % 11
    heldout = [np.cumsum(random.integers(0, 3, 80)) % 11, np.array([4])]
    model, figures = KneserNey.best(tokens, heldout, vocab_size=11)
    assert list(figures) == [2, 3, 4, 5, 6]
    for order, figure in figures.items():
        alone = KneserNey.train(tokens, 11, order)
        assert figure == pytest.approx(-alone.logprobs(heldout[0])[1:].mean(), abs=1e-12)
    assert figures[model.order] == min(figures.values())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: KneserNey.train(np.array([0, 9]), 9, 2), "token id 9 is outside"),
        (lambda: KneserNey.train(np.array([0, -1]), 9, 2), "token id -1 is outside"),
        (lambda: KneserNey.train(np.array([0.5]), 9, 2), "whole numbers"),
        (lambda: KneserNey.train(np.array([0, 1]), 9, 7), "order 7"),
        (lambda: KneserNey.train(np.array([0, 1]), 9, 0), "order 0"),
        (lambda: KneserNey.train(np.array([0, 1]), 9, 2).logprobs(np.array([12])), "12 is outside"),
        (lambda: KneserNey.best(np.array([0, 1]), [], vocab_size=9), "no held-out tokens"),
        (lambda: KneserNey.train(np.array([0, 1]), 2**40, 2), "too large"),
    ],
)
def test_bad_input_is_one_line(call, words):
    with pytest.raises(UserError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_million_and_a_half_tokens_take_seconds():
    random = np.random.default_rng(0)
    tokens = (random.zipf(1.3, 1_500_000) % 8192).astype(np.int32)
    started = time.monotonic()
    model = KneserNey.train(tokens, 8192, 5)
    trained = time.monotonic()
    model.logprobs(tokens[:100_000])
    assert trained - started < 10
    assert time.monotonic() - trained < 2
