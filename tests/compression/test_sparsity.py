"""Zeros: as many as asked for, where they cost least, and the error that the papers promise."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.compression.error_feedback import damped, feed_back, inverse_factor
from lmworks.compression.layer_inputs import LayerInputs, LayerWalk
from lmworks.compression.sparsify import SparsifyConfig, sparsify, sparsify_model
from lmworks.compression.sparsity import (
    holds_pattern,
    lowest,
    parse_pattern,
    sparsify_matrix,
    sparsity_of,
)
from lmworks.core.errors import UserError
from lmworks.models.config import (
    AttentionConfig,
    LayerNormConfig,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
)
from lmworks.models.model import Model
from lmworks.models.save import save_model
from lmworks.tokenizers.train import train_bpe


def inputs_of(n: int, seed: int = 3) -> LayerInputs:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(500, n // 3, generator=generator) @ torch.randn(n // 3, n, generator=generator)
    x = (x + torch.randn(500, n, generator=generator)) * torch.linspace(0.2, 4, n)
    moment = (x.T @ x / len(x)).numpy()
    return LayerInputs(
        count=500, mean_square=np.diag(moment).copy(), largest=x.abs().amax(0).numpy(),
        moment=moment,
    )  # fmt: skip


def error(values: torch.Tensor, before: torch.Tensor, inputs: LayerInputs) -> float:
    off = values - before
    return float(((off @ torch.from_numpy(inputs.moment)) * off).sum())


@pytest.mark.parametrize("text", ["0.5", "2:4", "30%", "4:8"])
def test_each_method_is_better_than_the_one_before(text: str) -> None:
    pattern, inputs = parse_pattern(text), inputs_of(72)
    before = torch.randn(40, 72, generator=torch.Generator().manual_seed(0))
    found = {
        method: sparsify_matrix(before, pattern, method, inputs)
        for method in ("magnitude", "wanda", "sparsegpt")
    }
    errors = [error(values, before, inputs) for values in found.values()]
    assert min(errors[:2]) > 1.3 * errors[2]
    weight = torch.from_numpy(inputs.mean_square)
    by_column = [float(((v - before).square() @ weight).sum()) for v in found.values()]
    assert by_column[1] < by_column[0]
    for method, values in found.items():
        assert holds_pattern(values, pattern), method
        kept = values != 0
        if method != "sparsegpt":
            assert torch.equal(values[kept], before[kept])
        share = pattern if isinstance(pattern, float) else pattern[0] / pattern[1]
        assert sparsity_of(values) == pytest.approx(share, abs=0.01)


def test_feedback_is_the_best_that_the_kept_columns_can_do() -> None:
    """With one column gone, the others end where least squares would put them."""
    inputs = inputs_of(24)
    before = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    made = feed_back(
        before, inputs.moment, lambda first, here, diagonal: lambda j, x: x * (first + j != 0),
        block=8, damping=1e-6,
    )  # fmt: skip
    h = torch.from_numpy(inputs.moment).double()
    rest = h[1:, 1:]
    best = before.double()[:, 1:] + torch.linalg.solve(rest, h[1:, :1] @ before.double()[:, :1].T).T
    torch.testing.assert_close(made[:, 1:].double(), best, rtol=1e-3, atol=1e-3)
    assert bool((made[:, 0] == 0).all())


@pytest.mark.parametrize("block", [4, 24, 128])
def test_the_size_of_a_block_changes_nothing_but_rounding(block: int) -> None:
    inputs = inputs_of(48)
    before = torch.randn(6, 48, generator=torch.Generator().manual_seed(1))

    def made(size: int) -> torch.Tensor:
        return feed_back(
            before, inputs.moment, lambda first, here, d: lambda j, x: (x * 2).round() / 2,
            block=size,
        )  # fmt: skip

    assert float((made(block) != made(1)).float().mean()) < 0.02


def test_the_factor_is_that_of_the_inverse() -> None:
    inputs = inputs_of(24)
    upper = torch.from_numpy(inverse_factor(damped(inputs.moment, 0.01))).double()
    h = torch.from_numpy(inputs.moment).double()
    h = h / h.diagonal().mean() + 0.01 * torch.eye(24)
    torch.testing.assert_close(upper.T @ upper, torch.linalg.inv(h), rtol=1e-3, atol=1e-3)
    assert torch.equal(upper, upper.triu())


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(2, 8), st.integers(0, 2**31))
def test_a_pattern_is_kept_in_every_group(rows: int, groups: int, of: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    gone = int(random.integers(1, of))
    scores = torch.from_numpy(random.integers(0, 3, (rows, groups * of)).astype(np.float32))
    mask = lowest(scores, (gone, of))
    assert bool((mask.view(rows, groups, of).sum(-1) == gone).all())
    by_group, chosen = scores.view(rows, groups, of), mask.view(rows, groups, of)
    worst = torch.where(chosen, by_group, -1).amax(-1)
    assert bool((worst <= torch.where(chosen, 9, by_group).amin(-1)).all())


@pytest.mark.parametrize("text", ["0", "1", "1.2", "half", "4:4", "0:4", "5:4", "2:400", "nan"])
def test_patterns_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="sparsity"):
        parse_pattern(text)


@pytest.fixture
def model() -> Model:
    config = ModelConfig.uniform(
        vocab_size=50, hidden_size=36, num_hidden_layers=2,
        mixer=AttentionConfig(num_attention_heads=3, num_key_value_heads=3, head_dim=12),
        feed_forward=MLPConfig(intermediate_size=70), max_position_embeddings=64,
    )  # fmt: skip
    made = Model(config)
    made.reset_parameters(torch.Generator().manual_seed(0))
    return made.eval()


def test_a_whole_model(model: Model) -> None:
    rows = [np.random.default_rng(i).integers(0, 50, 40) for i in range(6)]
    whole = copy.deepcopy(model)
    errors = sparsify_model(model, 0.5, "sparsegpt", rows)
    assert len(errors) == 14
    for path in errors:
        assert sparsity_of(model.get_submodule(path).weight) >= 0.5
    assert sparsity_of(model.embed_tokens.weight) == 0
    # Each layer is solved on what the sparse ones before it give.
    path = "layers.1.mixer.q_proj"
    dense = whole.get_submodule(path).weight.detach()
    walk = LayerWalk(model, rows)
    walk.advance(0)
    seen = walk.inputs(1, [path])[path]
    expected = sparsify_matrix(dense, 0.5, "sparsegpt", seen)
    torch.testing.assert_close(model.get_submodule(path).weight.detach(), expected)


def test_rows_that_a_pattern_does_not_divide_are_named(model: Model) -> None:
    with pytest.raises(UserError, match=r"layers.0.feed_forward.down_proj has rows of 70"):
        sparsify_model(model, (2, 4), "magnitude", [])
    assert sparsity_of(model.get_submodule("layers.0.mixer.q_proj").weight) == 0  # nothing changed


def test_rows_are_no_longer_than_a_model_has_positions(tmp_path: Path) -> None:
    words = "the cat sat on the mat and the dog sat on the cat\n"
    tokenizer = train_bpe([words] * 20, vocab_size=288)
    config = ModelConfig.uniform(
        vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=1,
        mixer=AttentionConfig(
            num_attention_heads=4, num_key_value_heads=4, head_dim=8, rope=None, bias="qkvo"
        ),
        feed_forward=MLPConfig(
            intermediate_size=64, gated=False, activation="gelu_tanh", bias=True
        ),
        norm=LayerNormConfig(), positions=LearnedPositions(num_positions=40),
        max_position_embeddings=40, tie_word_embeddings=True,
    )  # fmt: skip
    made = Model(config)
    made.reset_parameters(torch.Generator().manual_seed(0))
    save_model(made, tmp_path / "model", tokenizer=tokenizer)
    (tmp_path / "text.txt").write_text(words * 200)
    asked = SparsifyConfig(
        model=str(tmp_path / "model"), calibration=str(tmp_path / "text.txt"),
        calibration_tokens=600, threads=1,
    )  # fmt: skip
    assert sparsify(asked, tmp_path / "out").metrics["zeros"] > 0.2
