"""Packed rows: each document as if it stood alone, in every layer that says it can."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.models.cache import KVCache
from lmworks.models.config import (
    AttentionConfig,
    BigBirdPattern,
    DynamicNTKScaling,
    LatentAttentionConfig,
    LearnedPositions,
    LongformerPattern,
    LongRoPEScaling,
    MLPConfig,
    ModelConfig,
    RelativePositions,
    RoPEConfig,
    SinusoidalPositions,
    SlidingWindow,
)
from lmworks.models.config.patterns import MIXERS, Sizes, decoder_config
from lmworks.models.documents import Documents, row_length
from lmworks.models.model import Model

VOCAB, SIZES = 61, Sizes(hidden_size=64, num_attention_heads=4, context_length=48, window=5)


def attention(**changes: Any) -> AttentionConfig:
    return AttentionConfig(
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8} | changes
    )


def stack(mixer: Any, **rest: Any) -> ModelConfig:
    return ModelConfig.uniform(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        mixer=mixer,
        feed_forward=MLPConfig(intermediate_size=48),
        **rest,
    )


def pattern(word: str) -> ModelConfig:
    return decoder_config(word, depth=2, vocab_size=VOCAB, sizes=SIZES)


FAMILY: dict[str, ModelConfig] = {
    **{word: pattern(word) for word in MIXERS},
    "moe": pattern("attention+moe"),
    "hybrid": pattern("mamba2,attention"),
    "learned": stack(attention(rope=None), positions=LearnedPositions(num_positions=48)),
    "sinusoidal": stack(attention(rope=None), positions=SinusoidalPositions()),
    "alibi": stack(attention(rope=None, alibi=True)),
    "relative": stack(attention(rope=None), relative_positions=RelativePositions()),
    "softcap": stack(attention(softcap=2.0)),
    "capped window": stack(attention(softcap=2.0, pattern=SlidingWindow(window=5))),
    "alibi window": stack(attention(rope=None, alibi=True, pattern=SlidingWindow(window=5))),
    "dynamic": stack(
        attention(
            rope=RoPEConfig(
                scaling=DynamicNTKScaling(factor=4.0, original_max_position_embeddings=8)
            )
        )
    ),
    "longrope": stack(
        attention(
            rope=RoPEConfig(
                scaling=LongRoPEScaling(
                    short_factor=(1.0, 1.1, 1.2, 1.3),
                    long_factor=(2.0, 3.0, 4.0, 5.0),
                    original_max_position_embeddings=8,
                    factor=4.0,
                )
            )
        )
    ),
    "latent": stack(
        LatentAttentionConfig(
            num_attention_heads=4,
            kv_lora_rank=12,
            qk_nope_head_dim=6,
            qk_rope_head_dim=4,
            v_head_dim=8,
        )
    ),
    "encoder": stack(attention(causal=False)),
    "encoder window": stack(attention(causal=False, pattern=SlidingWindow(window=5))),
    "encoder alibi": stack(attention(causal=False, rope=None, alibi=True)),
    "encoder relative": stack(
        attention(causal=False, rope=None), relative_positions=RelativePositions()
    ),
}
LENGTHS = [[17, 1, 9, 21], [2, 40, 6], [48]]  # of the documents in each row


def fresh(config: ModelConfig, seed: int = 0) -> Model:
    """A model whose parameters are all off their beginnings, so that nothing is a no-op."""
    model, generator = Model(config), torch.Generator().manual_seed(seed)
    model.reset_parameters(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def packed() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and documents, (3, 48); numbers neither begin at 0 nor rise."""
    ids = torch.randint(0, VOCAB, (3, 48), generator=torch.Generator().manual_seed(1))
    numbers = [[7 - 2 * n for n, size in enumerate(row) for _ in range(size)] for row in LENGTHS]
    return ids, torch.tensor(numbers)


@pytest.mark.parametrize("name", FAMILY)
def test_each_document_is_read_as_if_it_stood_alone(name: str) -> None:
    model = fresh(FAMILY[name])
    ids, documents = packed()
    weight = torch.randn(3, 48, VOCAB, generator=torch.Generator().manual_seed(2))
    logits = model(ids, documents=documents)
    (logits * weight).sum().backward()
    together = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    worst = 0.0
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for length in lengths:
            here = slice(start, start + length)
            alone = model(ids[row : row + 1, here])
            (alone * weight[row, here]).sum().backward()
            worst = max(worst, float((alone[0] - logits[row, here]).detach().abs().max()))
            start += length
    assert logits.detach().std() > 0.05
    assert worst < 1e-5
    for parameter_name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert parameter_name not in together
            continue
        gap = (parameter.grad - together[parameter_name]).abs().max()
        assert gap < 1e-4 * max(1.0, float(parameter.grad.abs().max())), parameter_name


@pytest.mark.parametrize("name", [n for n in FAMILY if "encoder" not in n])
def test_without_being_told_documents_see_each_other(name: str) -> None:
    model = fresh(FAMILY[name])
    ids, documents = packed()
    with torch.no_grad():
        gap = (model(ids) - model(ids, documents=documents)).abs().amax(dim=(1, 2))
    assert (gap[:2] > 1e-3).all()
    assert gap[2] < 1e-5  # the last row is one document


@pytest.mark.parametrize("name", ["attention", "alibi", "relative", "window", "latent", "mamba"])
def test_documents_may_lie_across_each_other(name: str) -> None:
    model, generator = fresh(FAMILY[name]), torch.Generator().manual_seed(3)
    ids = torch.randint(0, VOCAB, (2, 30), generator=generator)
    documents = torch.randint(0, 3, (2, 30), generator=generator)
    with torch.no_grad():
        logits = model(ids, documents=documents)
        for row in range(2):
            for number in range(3):
                here = documents[row] == number
                alone = model(ids[row : row + 1, here])[0]
                assert (alone - logits[row, here]).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["attention", "alibi", "relative", "learned", "window", "encoder"])
def test_masks_and_taking_apart_agree(name: str) -> None:
    """A mask over the whole row, which padding and `visible` ask for, says the same."""
    model = fresh(FAMILY[name])
    ids, documents = packed()
    causal = torch.ones(48, 48, dtype=torch.bool).tril().expand(3, -1, -1)
    visible = torch.ones_like(causal) if "encoder" in name else causal
    mask = torch.ones_like(ids)
    mask[0, 40:] = 0
    with torch.no_grad():
        logits = model(ids, documents=documents)
        by_mask = model(ids, documents=documents, visible=visible)
        padded = model(ids, documents=documents, attention_mask=mask)
    assert (logits - by_mask).abs().max() < 1e-5
    assert (logits - padded)[1:].abs().max() < 1e-5
    if "encoder" not in name:
        assert (logits - padded)[0, :40].abs().max() < 1e-5


def visible_names() -> list[str]:
    return [n for n in FAMILY if all("visible" in x.mixer.honours() for x in FAMILY[n].layers)]


@pytest.mark.parametrize("name", [n for n in visible_names() if n != "moe"])
def test_nothing_hidden_has_a_say_and_all_visible_does(name: str) -> None:
    model, generator = fresh(FAMILY[name]), torch.Generator().manual_seed(5)
    ids = torch.randint(0, VOCAB, (1, 12), generator=generator)
    visible = (torch.rand(1, 12, 12, generator=generator) < 0.5) | torch.eye(12, dtype=torch.bool)
    rows = model.embed_tokens(ids).detach().requires_grad_()
    states = model.hidden_states(rows, visible=visible)
    two_steps = (visible[0].float() @ visible[0].float()) > 0  # through two layers
    window = 5 if "window" in name else 12
    near = (torch.arange(12)[:, None] - torch.arange(12)).abs() < window
    if window < 12:
        one = (visible[0] & near).float()
        two_steps = (one @ one) > 0
    for target in range(12):
        (gradient,) = torch.autograd.grad(states[0, target].sum(), rows, retain_graph=True)
        touched = gradient[0].abs().sum(-1) > 0
        assert torch.equal(touched, two_steps[target]), target


def test_positions_are_where_a_token_stands_and_not_its_order() -> None:
    ids = torch.randint(0, VOCAB, (2, 10), generator=torch.Generator().manual_seed(4))
    order = torch.randperm(10, generator=torch.Generator().manual_seed(6))
    everything = torch.ones(2, 10, 10, dtype=torch.bool)
    for name in ("attention", "alibi", "relative", "learned", "sinusoidal", "window", "latent"):
        model = fresh(FAMILY[name])
        with torch.no_grad():
            plain = model(ids, visible=everything)
            moved = model(ids[:, order], positions=order.expand(2, -1), visible=everything)
        assert (plain[:, order] - moved).abs().max() < 1e-5, name
        shifted = torch.arange(10).expand(2, -1) * 2
        with torch.no_grad():
            assert (model(ids, positions=shifted) - model(ids)).abs().max() > 1e-3, name


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_taking_apart_and_putting_back_keeps_every_token(data: st.DataObject) -> None:
    rows, length = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40))
    numbers = data.draw(
        st.lists(
            st.lists(st.integers(-3, 3), min_size=length, max_size=length),
            min_size=rows,
            max_size=rows,
        )
    )
    documents = Documents(torch.tensor(numbers))
    x = torch.randn(rows, length, 2)
    for padded in (False, True):
        assert torch.equal(documents.apart(lambda bucket, part: part, x, padded=padded), x)
    expected = [[row[:i].count(n) for i, n in enumerate(row)] for row in numbers]
    assert documents.positions.tolist() == expected
    assert documents.lengths.tolist() == [[row.count(n) for n in row] for row in numbers]


@given(st.integers(1, 100_000))
def test_rows_are_a_quarter_longer_at_most(size: int) -> None:
    assert size <= row_length(size) < size * 1.25 + 1


def test_what_can_not_be_honoured_is_refused_by_name() -> None:
    ids, documents = packed()
    visible = torch.ones(3, 48, 48, dtype=torch.bool)
    with pytest.raises(UserError, match="layer 0: mamba can't honour visible"):
        fresh(FAMILY["mamba"])(ids, visible=visible)
    with pytest.raises(UserError, match="rwkv_time_mix can't honour positions"):
        fresh(FAMILY["rwkv"])(ids, positions=documents)
    longformer = attention(causal=False, pattern=LongformerPattern(window=4))
    bigbird = attention(causal=False, pattern=BigBirdPattern(block_size=4, num_random_blocks=1))
    for mixer, name in ((longformer, "longformer"), (bigbird, "bigbird")):
        with pytest.raises(UserError, match=f"attention with the pattern {name} can't honour doc"):
            fresh(stack(mixer))(ids, documents=documents)
    with pytest.raises(UserError, match="token 3 of row 1 may look at nothing"):
        visible[1, 3] = False
        fresh(FAMILY["attention"])(ids, visible=visible)
    model = fresh(FAMILY["attention"])
    with pytest.raises(UserError, match="documents: a cache goes on with plain rows"):
        model(ids, cache=KVCache(model.config, 3, 48).view(range(3)), documents=documents)
    across = dataclasses.replace(
        FAMILY["attention"].layers[0], cross_attention=attention(rope=None, causal=False)
    )
    both = dataclasses.replace(
        FAMILY["encoder"],
        layers=(dataclasses.replace(across, mixer=attention()),),
        encoder=FAMILY["encoder"],
    )
    model = fresh(both)
    with pytest.raises(UserError, match="reads one for each row"):
        model(ids, encoded=model.encode(ids), documents=documents)
