"""Pieces of the step that were made faster equal what they stand for, and need less memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lmworks.models.config import RMSNormConfig
from lmworks.models.config.patterns import Sizes, decoder_config
from lmworks.models.feed_forward import gated
from lmworks.models.model import Model
from lmworks.models.norms import RMSNorm
from lmworks.training.objectives import vocabulary_loss as blockwise
from lmworks.training.objectives.vocabulary_loss import vocabulary_loss


def model() -> Model:
    config = decoder_config("attention", depth=1, vocab_size=97, sizes=Sizes(hidden_size=64))
    made = Model(config)
    made.reset_parameters(torch.Generator().manual_seed(0))
    return made.double()


@pytest.mark.parametrize("block", [1, 97 * 128, 1 << 22])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_loss_in_blocks_equals_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, block: int, scale: float
) -> None:
    monkeypatch.setattr(blockwise, "_BLOCK_CELLS", block)
    made = model()
    hidden = torch.randn(300, 64, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(97, (300,))
    weight = made.embed_tokens.weight
    plain = F.cross_entropy(made.logits(hidden), labels) * scale
    ours = vocabulary_loss(made, hidden, labels) * scale
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=0)
    pairs = zip(
        torch.autograd.grad(ours, (hidden, weight)),
        torch.autograd.grad(plain, (hidden, weight)),
        strict=True,
    )
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-15)


def test_large_logits_stay_finite() -> None:
    made = model()
    hidden = torch.randn(9, 64, dtype=torch.float64) * 1e5
    labels = torch.arange(9)
    expected = F.cross_entropy(made.logits(hidden), labels)
    torch.testing.assert_close(vocabulary_loss(made, hidden, labels), expected)


def test_a_frozen_head_gets_no_gradient() -> None:
    made = model()
    made.embed_tokens.weight.requires_grad_(False)
    hidden = torch.randn(5, 64, dtype=torch.float64, requires_grad=True)
    vocabulary_loss(made, hidden, torch.arange(5)).backward()
    assert made.embed_tokens.weight.grad is None
    assert hidden.grad is not None


def test_rms_norm_equals_torch() -> None:
    norm = RMSNorm(48, RMSNormConfig(eps=1e-6))
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
    x = torch.randn(3, 7, 48, requires_grad=True)
    up = torch.randn(3, 7, 48)
    plain = F.rms_norm(x, (48,), norm.weight, 1e-6)
    ours = norm(x)
    assert torch.equal(ours, plain)
    pairs = zip(
        torch.autograd.grad(ours, (x, norm.weight), up),
        torch.autograd.grad(plain, (x, norm.weight), up),
        strict=True,
    )
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_rms_norm_gradients_are_those_of_finite_differences() -> None:
    norm = RMSNorm(6, RMSNormConfig(eps=1e-6)).double()
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))


def test_swiglu_equals_its_parts() -> None:
    gate, up = (torch.randn(5, 33, requires_grad=True) for _ in range(2))
    grad = torch.randn(5, 33)
    plain, ours = F.silu(gate) * up, gated(F.silu, gate, up)
    assert torch.equal(ours, plain)
    for found, expected in zip(
        torch.autograd.grad(ours, (gate, up), grad),
        torch.autograd.grad(plain, (gate, up), grad),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
