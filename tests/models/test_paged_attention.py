"""The kernel that reads pages in place, against attention over the same positions in one piece."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.models import paged_attention
from lmworks.models.attention import attend
from lmworks.models.cache import KVCache
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
from lmworks.models.model import Model


def config(head_dim: int = 16, group: int = 2, scale: float | None = None) -> ModelConfig:
    return ModelConfig.uniform(
        vocab_size=31,
        hidden_size=32,
        num_hidden_layers=1,
        mixer=AttentionConfig(
            num_attention_heads=2 * group, num_key_value_heads=2, head_dim=head_dim, scale=scale
        ),
        feed_forward=MLPConfig(intermediate_size=16),
    )


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(
    head_dim=st.sampled_from([16, 48, 64, 80, 128]),
    group=st.integers(1, 3),
    scale=st.sampled_from([None, 0.3]),
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=5),
    num_new=st.integers(1, paged_attention.MOST_NEW),
    seed=st.integers(0, 99),
)
def test_it_gathers_what_attention_in_one_piece_gathers(
    head_dim: int, group: int, scale: float | None, lengths: list[int], num_new: int, seed: int
) -> None:
    made = config(head_dim, group, scale)
    mixer = made.layers[0].mixer
    assert isinstance(mixer, AttentionConfig)
    cache = KVCache(made, len(lengths), 96)
    for tensor in cache.growing[0].values():
        tensor.fill_(torch.nan)  # what a page held before must not be seen
    past = [drawn(2, 1, 2, max(n, 1), head_dim, seed=seed + i) for i, n in enumerate(lengths)]
    for slot in torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed)):
        length = lengths[slot]
        if length:
            step = cache.view([int(slot)]).begin(1, length)
            step.layer(0).append(*past[slot])
            step.commit()
    rows = len(lengths)
    q = drawn(rows, num_new, 2 * group, head_dim, seed=seed + 77).transpose(1, 2)
    k, v = drawn(2, rows, num_new, 2, head_dim, seed=seed + 78).transpose(2, 3)
    step = cache.view(range(rows)).begin(rows, num_new)
    assert step.layer(0).attends(q, mixer)
    found = step.layer(0).attend(q, k, v, mixer)
    step.commit()
    for row, length in enumerate(lengths):
        keys, values = (
            torch.cat((old[:, :, :length], new[row : row + 1]), 2)
            for old, new in zip(past[row], (k, v))
        )
        ahead = torch.arange(length + num_new) > length + torch.arange(num_new)[:, None]
        mask = torch.zeros(ahead.shape).masked_fill_(ahead, -torch.inf)
        wanted = attend(q[row : row + 1], keys, values, mixer, mask=mask, is_causal=False)
        assert (found[row] - wanted[0]).abs().max() < 1e-5
        assert torch.equal(cache.held(0, "keys", row)[None], keys)
        assert torch.equal(cache.held(0, "values", row)[None], values)


def test_a_row_is_the_same_to_the_bit_in_any_company() -> None:
    made = config(64, 3)
    mixer = made.layers[0].mixer
    assert isinstance(mixer, AttentionConfig)
    q, k, v = drawn(1, 6, 40, 64), drawn(1, 2, 40, 64, seed=1), drawn(1, 2, 40, 64, seed=2)

    def gathered(cuts: list[int], others: int) -> torch.Tensor:
        cache = KVCache(made, others + 1, 64)
        found, at = [], 0
        for cut in cuts:
            rows = [cache.view(range(others + 1)), cache.view([others])][at == 0]
            step = rows.begin(len(rows.slots), cut)
            q_, k_, v_ = (
                t[:, :, at : at + cut].expand(len(rows.slots), -1, -1, -1) for t in (q, k, v)
            )
            found.append(step.layer(0).attend(q_, k_, v_, mixer)[-1:])
            step.commit()
            at += cut
        return torch.cat(found, 2)

    alone = gathered([1] * 40, 0)
    assert torch.equal(gathered([7, 1, 16, 15, 1], 0), alone)
    assert torch.equal(gathered([7, 1, 16, 15, 1], 5), alone)
    assert torch.equal(gathered([1] * 40, 2), alone)


@pytest.mark.parametrize("num_new", [1, 3, 16, 17])
def test_a_model_reads_its_pages(num_new: int) -> None:
    model = Model(config()).eval()
    model.reset_parameters(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    ids = torch.randint(31, (3, 80), generator=torch.Generator().manual_seed(1))
    full = model(ids)
    cache = KVCache(model.config, 3, 96)
    held = [5, 33, 16]
    for row, length in enumerate(held):
        model(ids[row : row + 1, :length], cache=cache.view([row]))
    new = torch.stack([ids[row, n : n + num_new] for row, n in enumerate(held)])
    found = model(new, cache=cache.view([0, 1, 2]))
    for row, length in enumerate(held):
        assert (found[row] - full[row, length : length + num_new]).abs().max() < 1e-4


def test_rows_are_gathered_without_what_lies_behind_them() -> None:
    cache = KVCache(config(), 2, 64)
    for tensor in cache.growing[0].values():
        tensor.fill_(torch.nan)
    step = cache.view([1]).begin(1, 30)
    step.layer(0).append(drawn(1, 2, 30, 16), drawn(1, 2, 30, 16))
    step.commit()
    step = cache.view([0, 1]).begin(2, 2)
    keys, _ = step.layer(0).append(drawn(2, 2, 2, 16), drawn(2, 2, 2, 16))
    assert keys.shape == (2, 2, 32, 16)
    assert not keys.isnan().any()
    assert not keys[0, :, 2:].any()
