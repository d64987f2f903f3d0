"""Windowed layers keep a ring: the same tokens as with everything kept, in bounded memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.models.cache import KVCache
from lmworks.models.config import (
    AttentionConfig,
    LayerConfig,
    MLPConfig,
    ModelConfig,
    SlidingWindow,
)
from lmworks.models.model import Model
from lmworks.models.ring import Ring


def config(*windows: int | None, alibi: bool = False) -> ModelConfig:
    """A layer for each window, None for full attention."""
    return ModelConfig(
        vocab_size=31,
        hidden_size=16,
        layers=tuple(
            LayerConfig(
                mixer=AttentionConfig(
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    head_dim=4,
                    alibi=alibi,
                    pattern=None if window is None else SlidingWindow(window=window),
                ),
                feed_forward=MLPConfig(intermediate_size=16),
            )
            for window in windows
        ),
    )


def build(model_config: ModelConfig) -> Model:
    model = Model(model_config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():  # sharp enough that every key matters
            parameter.mul_(4)
    return model.eval()


TOLERANCE = 1e-4

MODELS = {windows: build(config(*windows)) for windows in [(5, None), (1, 9), (64, 3)]}
ALIBI = build(config(5, 7, alibi=True))


@settings(max_examples=40, deadline=None)
@given(
    windows=st.sampled_from([*MODELS, "alibi"]),
    chunks=st.lists(st.integers(1, 23), min_size=1, max_size=6),
    slots=st.sampled_from([[0, 1], [1, 0], [0, 2]]),
)
def test_chunks_of_any_size_equal_the_full_forward(
    windows: tuple[int, int], chunks: list[int], slots: list[int]
) -> None:
    model = MODELS.get(windows, ALIBI)
    ids = torch.randint(31, (2, sum(chunks)), generator=torch.Generator().manual_seed(1))
    view = KVCache(model.config, 3, 200).view(slots)
    found = torch.cat([model(part, cache=view) for part in ids.split(chunks, dim=1)], 1)
    assert (found - model(ids)).abs().max() < TOLERANCE


def test_beyond_the_longest_table_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS[5, None]
    ids = torch.randint(31, (2, 50), generator=torch.Generator().manual_seed(5))
    monkeypatch.setattr("lmworks.models.cache_step._LONGEST_TABLE", 7)
    view = KVCache(model.config, 2, 64).view([0, 1])
    found = torch.cat([model(part, cache=view) for part in ids.split([9, 1, 1, 39], dim=1)], 1)
    assert (found - model(ids)).abs().max() < TOLERANCE


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=3, max_size=3),
    steps=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    slots=st.sampled_from([[0, 1, 2], [3, 0, 1]]),
)
def test_rows_of_different_lengths_share_a_batch(
    lengths: list[int], steps: list[int], slots: list[int]
) -> None:
    model = MODELS[5, None]
    ids = torch.randint(31, (3, 80), generator=torch.Generator().manual_seed(2))
    full = model(ids)
    cache = KVCache(model.config, 4, 100)
    for row, (slot, length) in enumerate(zip(slots, lengths)):
        model(ids[row : row + 1, :length], cache=cache.view([slot]))
    held = list(lengths)
    for num_new in steps:
        new = torch.stack([ids[row, n : n + num_new] for row, n in enumerate(held)])
        found = model(new, cache=cache.view(slots))
        for row, length in enumerate(held):
            assert (found[row] - full[row, length : length + num_new]).abs().max() < TOLERANCE
        held = [length + num_new for length in held]


def test_greedy_tokens_are_those_of_a_cache_that_keeps_all() -> None:
    model = MODELS[5, None]
    ids = torch.randint(31, (1, 30), generator=torch.Generator().manual_seed(3))
    ring, whole = KVCache(model.config, 1, 300), KVCache(config(None, None), 1, 300)
    said: list[list[int]] = [[], []]
    for cache, tokens in zip((ring, whole), said):
        last = ids
        for _ in range(200):
            logits = model(last, cache=cache.view([0]), last_only=True)
            last = logits[:, -1].argmax(-1, keepdim=True)
            tokens.append(int(last))
    assert said[0] == said[1]
    assert len(set(said[0])) > 3


def test_memory_is_that_of_the_window_however_long_the_sequence() -> None:
    windows = config(16, 16)
    assert KVCache(windows, 1, 32768).num_bytes == KVCache(windows, 1, 64).num_bytes
    assert KVCache(windows, 1, 32768).num_bytes == 2 * 2 * 2 * 16 * 4 * 4


def test_a_slot_begins_anew_after_it_was_freed() -> None:
    model = MODELS[5, None]
    ids = torch.randint(31, (2, 40), generator=torch.Generator().manual_seed(4))
    cache = KVCache(model.config, 1, 64)
    model(ids[:1], cache=cache.view([0]))
    cache.free(0)
    found = [model(part, cache=cache.view([0])) for part in ids[1:].split([3, 1, 36], dim=1)]
    assert (torch.cat(found, 1) - model(ids[1:])).abs().max() < TOLERANCE


def test_what_was_written_over_is_not_given_back() -> None:
    model = MODELS[5, None]
    cache = KVCache(model.config, 1, 64)
    model(torch.zeros(1, 4, dtype=torch.int64), cache=cache.view([0]))
    cache.truncate(0, 2)
    model(torch.zeros(1, 9, dtype=torch.int64), cache=cache.view([0]))
    with pytest.raises(ValueError, match="written over"):
        cache.truncate(0, 10)
    cache.truncate(0, 0)
    assert cache.lengths == [0]


def test_positions_of_a_ring_as_it_lies() -> None:
    ring = Ring(4, [6], 1, torch.device("cpu"))
    assert ring.key_positions.tolist() == [[4, 5, 6, 3]]
    uneven = Ring(4, [1, 6], 1, torch.device("cpu"))
    assert uneven.key_positions.tolist() == [[0, 1, -2, -1], [4, 5, 6, 3]]
