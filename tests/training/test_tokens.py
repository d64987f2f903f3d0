"""Windows: every token once per epoch, an order that depends only on the seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.training.tokens import PackedWindows, leading_windows


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(40, 600),
    length=st.integers(1, 30),
    rows=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_windows_are_stateless_and_shifted_by_one(
    count: int, length: int, rows: int, seed: int
) -> None:
    tokens = np.arange(count, dtype=np.int32)

    def make() -> PackedWindows:
        return PackedWindows(tokens, context_length=length, batch_size=rows, seed=seed)

    forward, backward = make(), make()
    batches = [forward(step) for step in range(6)]
    for step in reversed(range(6)):
        again = backward(step)
        assert again.input_ids.equal(batches[step].input_ids)
        assert again.labels.equal(again.input_ids + 1)  # the stream counts up by one
        assert again.input_ids.shape == (rows, length)


def test_an_epoch_sees_no_token_twice() -> None:
    tokens = np.arange(1000, dtype=np.int32)
    batches = PackedWindows(tokens, context_length=10, batch_size=1, seed=5)
    epoch = int(batches.batches_per_epoch)
    for first in (0, epoch):  # the second epoch as well, at its own offset
        seen = np.concatenate([batches(first + i).labels.numpy()[0] for i in range(epoch)])
        assert len(set(seen.tolist())) == len(seen) == epoch * 10
        assert len(seen) > 0.97 * len(tokens)


def test_another_seed_gives_another_order() -> None:
    tokens = np.arange(1000, dtype=np.int32)
    one, two = (PackedWindows(tokens, context_length=10, batch_size=4, seed=s) for s in (1, 2))
    assert not one(0).input_ids.equal(two(0).input_ids)


def test_a_corpus_shorter_than_a_window_is_named() -> None:
    with pytest.raises(UserError, match=r"3 tokens, fewer than one window of 9"):
        PackedWindows(np.arange(3), context_length=8, batch_size=1, seed=0)


def test_leading_windows_are_the_start_of_the_text() -> None:
    batches = leading_windows(np.arange(1000), context_length=10, count=12)
    assert [len(b.input_ids) for b in batches] == [8, 4]
    assert batches[0].input_ids.flatten().tolist() == list(range(80))
    assert leading_windows(np.arange(5), context_length=10, count=4) == []
