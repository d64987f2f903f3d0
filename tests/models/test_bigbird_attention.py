"""BigBird attention against masked dense attention and transformers' own block-sparse layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.models.bigbird_attention import bigbird_attention, bigbird_counts, draw_random_blocks


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=random, dtype=torch.float64).requires_grad_()


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(5 * 8 - 7, 200),
    num_random=st.integers(0, 3),
    table=st.sampled_from(["drawn", "zeros"]),
    causal=st.booleans(),
    groups=st.sampled_from([1, 2]),
    padded=st.booleans(),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_are_those_of_a_masked_matrix(
    length: int,
    num_random: int,
    table: str,
    causal: bool,
    groups: int,
    padded: bool,
    seed: int,
) -> None:
    count, heads = -(-length // 8), 2 * groups
    blocks = torch.zeros(heads, count - 2, num_random, dtype=torch.int64)
    if table == "drawn":
        blocks = draw_random_blocks(heads, count, num_random, seed=seed, causal=causal)
    q = draw(2, heads, length, 4, seed=seed)
    k, v = draw(2, 2, length, 4, seed=seed + 1), draw(2, 2, length, 4, seed=seed + 2)
    padding = None
    counts = bigbird_counts(length, 8, blocks, causal=causal)[None]
    if padded:
        padding = torch.ones(2, length, dtype=torch.bool)
        padding[0, : length // 4] = False
        counts = counts * padding[:, None, None]
    ours = bigbird_attention(
        q, k, v, block_size=8, random_blocks=blocks, causal=causal, padding=padding
    )
    wide_k, wide_v = (x.repeat_interleave(groups, 1) for x in (k, v))
    scores = q @ wide_k.transpose(-1, -2) / 2 + counts.double().log().clamp(min=-1e30)
    theirs = scores.softmax(-1) @ wide_v
    valid = (counts > 0).any(-1, keepdim=True)
    assert torch.allclose(ours * valid, theirs * valid, atol=1e-9)
    upstream = torch.randn_like(ours) * valid
    for mine, oracle in zip(
        torch.autograd.grad(ours, (q, k, v), upstream),
        torch.autograd.grad(theirs, (q, k, v), upstream),
    ):
        assert torch.allclose(mine, oracle, atol=1e-9)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("num_blocks", [11, 13, 20])
def test_equals_the_layer_of_transformers(num_blocks: int, training: bool) -> None:
    big_bird = pytest.importorskip("transformers.models.big_bird.modeling_big_bird")
    torch.manual_seed(0)
    size, length = 4, 4 * num_blocks
    config = big_bird.BigBirdConfig(
        hidden_size=24,
        num_attention_heads=3,
        block_size=size,
        num_random_blocks=2,
        max_position_embeddings=512,
    )
    layer = big_bird.BigBirdBlockSparseAttention(config, seed=5).double().train(training)
    drawn: list[np.ndarray] = []
    original = layer._bigbird_block_rand_mask_with_head

    def spy(**arguments: object) -> list[np.ndarray]:
        drawn[:] = original(**arguments)
        return list(drawn)

    layer._bigbird_block_rand_mask_with_head = spy
    x = torch.randn(2, length, 24, dtype=torch.float64, requires_grad=True)
    padding = torch.ones(2, length, dtype=torch.float64)
    padding[1, -7:] = 0
    blocked, band, rows, columns = big_bird.BigBirdModel.create_masks_for_block_sparse_attn(
        padding, size
    )
    theirs, _ = layer(x, band, rows, columns, blocked, blocked)

    def heads(projection: torch.nn.Linear) -> torch.Tensor:
        return projection(x).unflatten(2, (3, 8)).transpose(1, 2)

    ours = bigbird_attention(
        heads(layer.query),
        heads(layer.key),
        heads(layer.value),
        block_size=size,
        random_blocks=torch.from_numpy(np.stack(drawn)).long(),
        padding=padding.bool(),
    )
    ours = ours.transpose(1, 2).flatten(2)
    kept = padding.bool()
    assert torch.allclose(ours[kept], theirs[kept], atol=1e-10)
    mine, oracle = (torch.autograd.grad(y[kept].sin().sum(), x)[0] for y in (ours, theirs))
    assert torch.allclose(mine, oracle, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(5, 40),
    num_random=st.integers(0, 4),
    causal=st.booleans(),
    seed=st.integers(0, 9),
)
def test_drawn_blocks_are_far_and_come_once(
    count: int, num_random: int, causal: bool, seed: int
) -> None:
    table = draw_random_blocks(3, count, num_random, seed=seed, causal=causal)
    assert table.shape == (3, count - 2, num_random)
    assert torch.equal(table, draw_random_blocks(3, count, num_random, seed=seed, causal=causal))
    for row in table.flatten(0, 1).tolist():
        real = [block for block in row if block >= 0]
        assert len(set(real)) == len(real)
    for query, row in enumerate(table.transpose(0, 1).flatten(1).tolist(), start=1):
        for block in row:
            assert block == -1 or (0 < block < count - 1 and abs(block - query) > 1)
            assert not causal or block < query
    if not causal and count >= num_random + 5:
        assert (table >= 0).all()


@pytest.mark.parametrize(("length", "inner"), [(32, 2), (80, 7)])
def test_a_table_that_does_not_fit_is_refused(length: int, inner: int) -> None:
    x = draw(1, 1, length, 8)
    with pytest.raises(ValueError, match="random_blocks"):
        bigbird_attention(
            x, x, x, block_size=8, random_blocks=torch.zeros(1, inner, 2, dtype=torch.int64)
        )
