"""Patterns of layers, and the counting of what a model costs."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lmworks.core.errors import UserError
from lmworks.models.compute import compute
from lmworks.models.config import AttentionConfig, SlidingWindow
from lmworks.models.config.patterns import FEED_FORWARDS, MIXERS, Sizes, decoder_config, words_of
from lmworks.models.model import Model

SIZES = Sizes(hidden_size=128, context_length=64)


def test_a_pattern_is_gone_through_to_the_depth() -> None:
    config = decoder_config("window*2, attention+none", depth=5, vocab_size=50, sizes=SIZES)
    windows = [
        isinstance(layer.mixer, AttentionConfig) and layer.mixer.pattern for layer in config.layers
    ]
    assert windows == [SlidingWindow(window=16), SlidingWindow(window=16), None, *windows[:2]]
    bare = [layer.feed_forward is None for layer in config.layers]
    assert bare == [False, False, True, False, False]


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("feed_forward", FEED_FORWARDS)
def test_every_word_trains_and_decodes(mixer: str, feed_forward: str) -> None:
    config = decoder_config(f"{mixer}+{feed_forward}", depth=2, vocab_size=50, sizes=SIZES)
    model = Model(config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    ids = torch.randint(50, (2, 40), generator=torch.Generator().manual_seed(1))
    model(ids).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    assert compute(config).num_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("atention", "did you mean 'attention'"),
        ("attention+mpl", "did you mean 'mlp'"),
        ("attention*0", "repeats a word how often"),
        ("attention*x", "repeats a word how often"),
        ("", "unknown layer"),
    ],
)
def test_what_is_no_pattern_is_told(pattern: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        words_of(pattern)


def test_operations_are_those_that_torch_counts() -> None:
    config = decoder_config("attention", depth=3, vocab_size=200, sizes=SIZES)
    with torch.device("meta"):
        model, ids = Model(config), torch.zeros(1, 64, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            model(ids)
    counted = counter.get_total_flops() / 64
    # torch counts all positions of causal attention, of which we count the half that is seen.
    unseen = 4 * 2 * 64 * 32 * 3
    assert compute(config).forward_flops == pytest.approx(counted - unseen)
