"""Against KL computed plainly in float64, over whole logits."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.evaluation.divergence import _kl, divergences, remember


def _rows(seed=0, lengths=(5, 16, 2, 9, 30, 12, 7)):
    random = np.random.default_rng(seed)
    return [random.integers(0, 300, length) for length in lengths]


def _plain(reference, candidate, ids):
    """(T - 1, 4) of a row that fits the context: KL, agreement, nats of candidate and reference."""
    rows = []
    with torch.inference_mode():
        p, q = (
            model(torch.from_numpy(ids[None, :-1]))[0].double().log_softmax(-1)
            for model in (reference, candidate)
        )
    for place, target in enumerate(ids[1:]):
        one, other = p[place], q[place]
        kl = float((one.exp() * (one - other)).sum())
        agrees = float(one.argmax() == other.argmax())
        rows.append((kl, agrees, -float(other[target]), -float(one[target])))
    return np.array(rows)


def test_is_what_whole_logits_in_float64_give(make_decoder):
    reference, candidate = make_decoder(context=32, seed=1), make_decoder(context=32, seed=2)
    rows = _rows()
    found = divergences(reference, candidate, rows, groups=list("aabbcde"))
    expected = [_plain(reference, candidate, ids) for ids in rows]
    sums = np.array([each.sum(0) for each in expected])
    np.testing.assert_allclose(found.kl, sums[:, 0], rtol=2e-6)
    np.testing.assert_array_equal(found.agreements, sums[:, 1])
    np.testing.assert_allclose(found.nats, sums[:, 2], rtol=1e-6)
    np.testing.assert_allclose(found.reference_nats, sums[:, 3], rtol=1e-6)
    np.testing.assert_allclose(found.token_kl, np.concatenate([e[:, 0] for e in expected]), 1e-4)
    assert list(found.num_tokens) == [len(ids) - 1 for ids in rows]
    assert found.mean_kl().estimate == pytest.approx(sums[:, 0].sum() / found.num_tokens.sum())
    assert found.quantile(1.0) == found.token_kl.max()


def test_a_model_does_not_differ_from_itself(make_decoder):
    model = make_decoder()
    found = divergences(model, model, _rows())
    assert not found.kl.any() and not found.added_nats().estimate
    assert found.agreement().estimate == 1


def test_long_rows_are_read_in_windows_by_both(make_decoder):
    reference, candidate = make_decoder(context=8, seed=1), make_decoder(context=32, seed=1)
    found = divergences(reference, candidate, [np.arange(30)])
    assert found.num_tokens[0] == 29 and found.kl[0] == 0  # the same weights, the same windows


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(-6, 0), st.floats(0.5, 12))
def test_small_differences_survive_float32(seed, log_size, spread):
    """The plain sum of p (log p - log q) loses a KL of 1e-7; this keeps it to a percent."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 5000, generator=random) * spread
    other = logits + 10**log_size * torch.randn(3, 5000, generator=random)
    p, q = (x.double().log_softmax(-1) for x in (logits, other))
    exact = (p.exp() * (p - q)).sum(-1)
    found = _kl(logits.log_softmax(-1), other.log_softmax(-1))
    assert bool((found >= 0).all())
    np.testing.assert_allclose(found.double(), exact, rtol=1e-2, atol=1e-7)


def test_what_was_remembered_gives_the_same_to_the_bit(make_decoder, tmp_path):
    reference, candidate = make_decoder(context=16, seed=1), make_decoder(context=16, seed=2)
    rows = _rows()
    kept = remember(reference, rows, tmp_path / "states.npy")
    assert "layers" in reference._modules and "layers" not in kept._head._modules
    live, again = divergences(reference, candidate, rows), divergences(kept, candidate, rows)
    np.testing.assert_array_equal(live.token_kl, again.token_kl)
    np.testing.assert_array_equal(live.reference_nats, again.reference_nats)
    with pytest.raises(ValueError, match="other rows"):
        divergences(kept, candidate, rows[:2])


def test_a_file_of_the_same_rows_is_taken_as_it_is(make_decoder, tmp_path):
    reference, rows, path = make_decoder(seed=1), _rows(), tmp_path / "states.npy"
    remember(reference, rows, path)
    before = path.stat().st_mtime_ns
    remember(reference, rows, path)
    assert path.stat().st_mtime_ns == before
    kept = remember(reference, rows[:3], path)
    assert path.stat().st_mtime_ns != before
    assert len(kept.states) == sum(len(ids) - 1 for ids in rows[:3])


def test_comparisons_are_paired_and_of_the_same_texts(make_decoder):
    reference, near = make_decoder(seed=1), make_decoder(seed=1)
    with torch.no_grad():
        near.layers[0].mixer.o_proj.weight.mul_(1.01)
    rows = _rows(lengths=(9,) * 12)
    close = divergences(reference, near, rows)
    far = divergences(reference, make_decoder(seed=2), rows)
    difference, ratio = close.kl_above(far), far.kl_ratio(close)
    assert difference.high < 0 and ratio.low > 1
    assert ratio.estimate == pytest.approx(far.kl.sum() / close.kl.sum())
    assert not math.isinf(close.mean_kl().high)
    with pytest.raises(ValueError, match="same texts"):
        close.kl_above(divergences(reference, near, rows[:3]))


def test_says_what_can_not_be_compared(make_decoder):
    model = make_decoder()
    with pytest.raises(UserError, match="300 and 200 tokens"):
        divergences(model, make_decoder(vocab_size=200), _rows())
    with pytest.raises(UserError, match="row 1 has fewer"):
        divergences(model, model, [np.arange(3), np.array([1])])
    with pytest.raises(UserError, match="no row"):
        divergences(model, model, [])
    with pytest.raises(ValueError, match="2 groups for 1 rows"):
        divergences(model, model, [np.arange(3)], groups=["a", "b"])


def test_a_cache_costs_what_it_rounds(make_decoder):
    model, rows = make_decoder(context=32, seed=1), _rows()
    exact, half = (divergences(model, model, rows, cache_type=kind) for kind in ("f32", "f16"))
    plain = divergences(model, make_decoder(context=32, seed=2), rows)
    sums = [found.kl.sum() for found in (exact, half, plain)]
    assert all(20 * less < more for less, more in itertools.pairwise(sums))
    np.testing.assert_allclose(exact.nats, exact.reference_nats, rtol=1e-5)
