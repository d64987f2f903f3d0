"""Decoding with a cache equals the full forward, whatever the slots and lengths."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.models.cache import KVCache
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
from lmworks.models.model import Model

TOLERANCE = 1e-5


@pytest.mark.parametrize("slots", [[0, 1, 2], [0, 2, 4], [4, 0, 3], [2, 1, 0]])
def test_prefill_and_decode_equal_the_full_forward(
    tiny_model: Model, token_ids: torch.Tensor, slots: list[int]
) -> None:
    full = tiny_model(token_ids)
    cache = KVCache(tiny_model.config, 5, 64)
    view = cache.view(slots)
    parts = [
        tiny_model(token_ids[:, a:b], cache=view)
        for a, b in ((0, 17), (17, 18), (18, 25), (25, 40))
    ]
    assert (torch.cat(parts, 1) - full).abs().max() < TOLERANCE
    assert [cache.lengths[slot] for slot in slots] == [40, 40, 40]
    assert sum(cache.lengths) == 120


@pytest.mark.parametrize("num_new", [1, 5])
@pytest.mark.parametrize("slots", [[0, 1, 2], [3, 1, 0]])
def test_rows_of_different_lengths_share_a_batch(
    tiny_model: Model, token_ids: torch.Tensor, slots: list[int], num_new: int
) -> None:
    full = tiny_model(token_ids)
    cache = KVCache(tiny_model.config, 4, 64)
    lengths = [3, 19, 11]
    for row, (slot, length) in enumerate(zip(slots, lengths)):
        tiny_model(token_ids[row : row + 1, :length], cache=cache.view([slot]))
    for _ in range(3):
        new = torch.stack([token_ids[r, n : n + num_new] for r, n in enumerate(lengths)])
        logits = tiny_model(new, cache=cache.view(slots))
        for row, length in enumerate(lengths):
            assert (logits[row] - full[row, length : length + num_new]).abs().max() < TOLERANCE
        lengths = [length + num_new for length in lengths]
    assert [cache.lengths[slot] for slot in slots] == lengths


_CONFIG = ModelConfig.uniform(
    vocab_size=31,
    hidden_size=16,
    num_hidden_layers=2,
    mixer=AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=4),
    feed_forward=MLPConfig(intermediate_size=16),
)
_MODEL = Model(_CONFIG)
_MODEL.reset_parameters(torch.Generator().manual_seed(3))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_history_of_slots_equals_the_full_forward(data: st.DataObject) -> None:
    cache = KVCache(_CONFIG, 4, 24)
    held: list[list[int]] = [[], [], [], []]
    for _ in range(data.draw(st.integers(1, 7))):
        slots = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True))
        action = data.draw(st.sampled_from(["forward", "forward", "free", "truncate"]))
        if action == "forward":
            room = 24 - max(len(held[slot]) for slot in slots)
            num_new = data.draw(st.integers(1, 5))
            if num_new > room:
                continue
            ids = data.draw(
                st.lists(
                    st.lists(st.integers(0, 30), min_size=num_new, max_size=num_new),
                    min_size=len(slots),
                    max_size=len(slots),
                )
            )
            logits = _MODEL(torch.tensor(ids), cache=cache.view(slots))
            for row, slot in enumerate(slots):
                held[slot] += ids[row]
                full = _MODEL(torch.tensor([held[slot]]))[0, -num_new:]
                assert (logits[row] - full).abs().max() < TOLERANCE
        elif action == "free":
            cache.free(slots[0])
            held[slots[0]] = []
        else:
            keep = data.draw(st.integers(0, len(held[slots[0]])))
            cache.truncate(slots[0], keep)
            held[slots[0]] = held[slots[0]][:keep]
        assert cache.lengths == [len(ids) for ids in held]


def test_outgrowing_the_cache_is_one_line_and_changes_nothing(
    tiny_model: Model, token_ids: torch.Tensor
) -> None:
    cache = KVCache(tiny_model.config, 2, 20)
    tiny_model(token_ids[:1, :12], cache=cache.view([1]))
    with pytest.raises(UserError, match="21 tokens do not fit the 20 positions"):
        tiny_model(token_ids[:2, :9], cache=cache.view([0, 1]))
    assert cache.lengths == [0, 12]
    tiny_model(token_ids[:2, :8], cache=cache.view([0, 1]))
    assert cache.lengths == [8, 20]


def test_a_bad_id_leaves_the_lengths_alone(tiny_model: Model) -> None:
    cache = KVCache(tiny_model.config, 1, 20)
    with pytest.raises(UserError, match="from 5 to 97 do not fit the vocabulary of 97"):
        tiny_model(torch.tensor([[5, 97]]), cache=cache.view([0]))
    assert cache.lengths == [0]


@pytest.mark.parametrize("slots", [[], [0, 0], [2], [-1]])
def test_wrong_slots_are_refused(tiny_model: Model, slots: list[int]) -> None:
    with pytest.raises(ValueError, match="slots"):
        KVCache(tiny_model.config, 2, 8).view(slots)


def test_wrong_batch_and_truncation_are_refused(tiny_model: Model) -> None:
    cache = KVCache(tiny_model.config, 2, 8)
    with pytest.raises(ValueError, match="1 rows, the cache view 2"):
        tiny_model(torch.tensor([[1]]), cache=cache.view([0, 1]))
    with pytest.raises(ValueError, match="holds 0 positions, not 1"):
        cache.truncate(0, 1)
    with pytest.raises(UserError, match="at least one slot"):
        KVCache(tiny_model.config, 0, 8)


def test_a_cache_from_inference_mode_works_outside_it_and_holds_no_graph(
    tiny_model: Model, token_ids: torch.Tensor
) -> None:
    with torch.inference_mode():
        cache = KVCache(tiny_model.config, 1, 64)
        tiny_model(token_ids[:1, :30], cache=cache.view([0]))
    logits = tiny_model(token_ids[:1, 30:], cache=cache.view([0]))
    assert not cache.growing[0]["keys"].requires_grad
    assert not cache.growing[0]["keys"].is_inference()
    assert (logits - tiny_model(token_ids[:1])[:, 30:]).abs().max() < TOLERANCE


def test_num_bytes_counts_both_blocks(tiny_model: Model) -> None:
    pages = 3  # one for each slot
    assert KVCache(tiny_model.config, 3, 10).num_bytes == 2 * (2 * pages * 2 * 16 * 8) * 4
