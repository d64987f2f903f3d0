"""Attention weights against those that transformers holds, and what is made of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.parity import randomised

from lmworks.core.errors import UserError
from lmworks.models import attention_trace
from lmworks.models.attention_rollout import rollout
from lmworks.models.attention_summaries import Overview, PooledImage, Summaries
from lmworks.models.attention_trace import kept_bytes, trace_attention
from lmworks.models.config import AttentionConfig, SlidingWindow
from lmworks.models.load import load_model
from lmworks.models.model import Model

IDS = torch.randint(0, 97, (50,), generator=torch.Generator().manual_seed(2))
SIZES = {"vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6}


def _llama(transformers):
    return transformers.LlamaForCausalLM, transformers.LlamaConfig(
        **SIZES, num_key_value_heads=2, intermediate_size=80, max_position_embeddings=64
    )


def _gpt2(transformers):
    return transformers.GPT2LMHeadModel, transformers.GPT2Config(
        vocab_size=97, n_embd=48, n_layer=3, n_head=6, n_positions=64
    )


def _windowed(transformers):
    return transformers.MistralForCausalLM, transformers.MistralConfig(
        **SIZES, num_key_value_heads=2, intermediate_size=80, sliding_window=9, head_dim=8
    )


def _dynamic(transformers):
    """Rotary frequencies that depend on the length of the whole text."""
    kind, config = _llama(transformers)
    config.max_position_embeddings = 32
    config.rope_parameters = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    return kind, config


def _bert(transformers):
    return transformers.BertModel, transformers.BertConfig(**SIZES, intermediate_size=80)


def _mpnet(transformers):
    """One bias by distance, shared by all layers."""
    return transformers.MPNetModel, transformers.MPNetConfig(**SIZES, intermediate_size=80)


@pytest.fixture(params=[_llama, _gpt2, _windowed, _dynamic, _bert, _mpnet])
def both(request, tmp_path):
    """Ours, and the attention that transformers gives for IDS: layer -> (N, T, T)."""
    transformers = pytest.importorskip("transformers")
    kind, config = request.param(transformers)
    torch.manual_seed(0)
    theirs = randomised(kind._from_config(config, attn_implementation="eager"), spread=0.3)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        found = theirs(IDS[None], output_attentions=True).attentions
    return load_model(tmp_path), [layer[0] for layer in found]


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(attention_trace, "tile_rows", lambda length: 7)


def test_weights_are_those_of_transformers(both, small_tiles):
    model, wanted = both
    trace = trace_attention(model, IDS)
    for layer, expected in enumerate(wanted):
        for head in range(6):
            assert (trace.rows(layer, head) - expected[head]).abs().max() < 1e-5
            tiles = torch.cat([weights for _, weights in trace.tiles(layer, head)])
            assert (tiles - expected[head]).abs().max() < 1e-5
    assert wanted[1].std() > 0.03, "these weights are too alike to prove anything"


def test_visited_tiles_are_the_same_weights(both, small_tiles):
    model, wanted = both
    seen = {}

    def visit(tile):
        for head in range(6):
            whole = seen.setdefault((tile.layer, head), torch.zeros(50, 50))
            weights = tile.weights(head)
            part = tile.only(tile.positions % 2 == 1)
            assert torch.allclose(part.weights(head), weights[tile.positions % 2 == 1], atol=1e-6)
            whole[tile.positions, : weights.shape[1]] = weights

    trace = trace_attention(model, IDS, keep={}, visit=visit)
    assert not trace.layers
    assert all((seen[i, h] - wanted[i][h]).abs().max() < 1e-5 for i, h in seen)
    assert len(seen) == 18


def test_rollout_is_the_product_of_the_paper(both):
    model, wanted = both
    product = np.eye(50)
    for layer in wanted:
        product = (0.5 * layer.mean(0).double().numpy() + 0.5 * np.eye(50)) @ product
    trace = trace_attention(model, IDS)
    assert np.abs(rollout(trace).numpy() - product).max() < 1e-5
    assert np.abs(rollout(trace, start=40, stop=43).numpy() - product[40:43]).max() < 1e-5
    first = 0.5 * wanted[0].mean(0).numpy() + 0.5 * np.eye(50)
    assert np.abs(rollout(trace, layer=0).numpy() - first).max() < 1e-5


@pytest.mark.parametrize(
    "change",
    [
        {"alibi": True, "rope": None},
        {"pattern": SlidingWindow(window=9)},
        {"causal": False},
        {"causal": False, "pattern": SlidingWindow(window=5)},
        {"softcap": 2.0, "scale": 0.9},
    ],
    ids=str,
)
def test_every_kind_of_attention_mixes_values_by_these_weights(tiny_config, small_tiles, change):
    """What the model's own kernel gave is the weights times the values."""
    mixer = dataclasses.replace(tiny_config.layers[0].mixer, **change)
    model = Model(tiny_config.with_layers(mixer=mixer)).eval()
    model.reset_parameters(torch.Generator().manual_seed(0))
    randomised(model, spread=0.3)
    found = {}
    with torch.no_grad():
        model.hidden_states(IDS[None], record=lambda name, value: found.update({name: value}))
    trace = trace_attention(model, IDS)
    for layer in range(2):
        v = found[f"layers.{layer}.mixer.v"][0]
        attended = found[f"layers.{layer}.mixer.attended"][0].view(50, 6, 8)
        for head in range(6):
            mixed = trace.rows(layer, head) @ v[head // 3]
            assert (mixed - attended[:, head]).abs().max() < 1e-5


def test_only_what_is_asked_for_is_kept_and_read(tiny_model):
    keep = {0: [4]}
    trace = trace_attention(tiny_model, IDS, keep=keep)
    assert (
        trace.layers[0].heads == [4] and list(trace.layers[0].k) == [1] and len(trace.layers) == 1
    )
    assert kept_bytes(tiny_model.config, keep, 50) == 2 * 50 * 8 * 4
    whole = trace_attention(tiny_model, IDS)
    assert torch.equal(whole.rows(0, 4), trace.rows(0, 4))
    with pytest.raises(UserError, match="layer 1, head 0 is not kept"):
        trace.rows(1, 0)
    with pytest.raises(UserError, match=r"rollout needs every head.*shorter text"):
        rollout(trace)


@pytest.mark.parametrize(
    ("keep", "words"),
    [({2: [0]}, "has layers 0 to 1"), ({0: [6]}, "head 6: layer 0 has heads 0 to 5")],
)
def test_heads_that_are_none_are_told(tiny_model, keep, words):
    with pytest.raises(UserError, match=words):
        trace_attention(tiny_model, IDS, keep=keep)


def test_too_much_and_too_little_are_told(tiny_model):
    with pytest.raises(UserError, match="12 heads of 50 tokens take 0 MB, more than"):
        trace_attention(tiny_model, IDS, most_bytes=100)
    with pytest.raises(UserError, match="at least two tokens"):
        trace_attention(tiny_model, IDS[:1])


class _FakeTile:
    """Weights that are given, where a model would make them."""

    layer = 0

    def __init__(self, start, weights):
        self.positions = torch.arange(start, start + len(weights))
        self.config = AttentionConfig(num_attention_heads=1, num_key_value_heads=1, head_dim=4)


def _summary(ids, weights):
    summaries = Summaries(ids)
    for start in range(0, len(ids), 6):
        rows = weights[start : start + 6]
        summaries.add(_FakeTile(start, rows), 0, rows[:, : start + len(rows)])
    return summaries.of(0, 0)


@given(st.integers(2, 30), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_summaries_are_the_plain_sums(length, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 5, (length,), generator=generator)
    hidden = torch.ones(length, length).triu(1).bool()
    scores = 3 * torch.randn(length, length, generator=generator)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    found = _summary(ids, weights)
    w = weights.double().numpy()
    rows = range(1, length)
    entropy = [-sum(x * np.log2(x) for x in w[i] if x > 0) for i in rows]
    assert found.entropy == pytest.approx(np.mean(entropy), abs=1e-5)
    assert found.distance == pytest.approx(
        np.mean([sum(w[i, j] * (i - j) for j in range(i + 1)) for i in rows]), abs=1e-4
    )
    assert found.first == pytest.approx(np.mean([w[i, 0] for i in rows]), abs=1e-6)
    assert found.previous == pytest.approx(np.mean([w[i, i - 1] for i in rows]), abs=1e-6)
    assert found.itself == pytest.approx(np.mean([w[i, i] for i in rows]), abs=1e-6)
    assert found.next == 0
    copies = {i: [j + 1 for j in range(i - 1) if ids[j] == ids[i]] for i in rows}
    copies = {i: places for i, places in copies.items() if places}
    assert found.repeats == len(copies)
    if copies:
        wanted = np.mean([sum(w[i, j] for j in places) for i, places in copies.items()])
        assert found.induction == pytest.approx(wanted, abs=1e-6)
    else:
        assert found.induction is None


def test_heads_are_called_by_what_they_do():
    ids = torch.tensor([5, 3, 8, 1, 9, 2] * 3)
    length = len(ids)
    eye = torch.eye(length)
    even = torch.ones(length, length).tril()
    copying = torch.zeros(length, length)
    for i in range(length):
        copying[i, i - 5 if i >= 6 else 0] = 1
    near = even * torch.ones(length, length).triu(-3)
    first = torch.zeros(length, length)
    first[:, 0] = 1
    before = torch.cat((eye[:1], eye[:-1]))
    patterns = {
        "itself": eye, "previous": before, "first": first, "induction": copying,
        "even": even / even.sum(-1, keepdim=True), "near": near / near.sum(-1, keepdim=True),
    }  # fmt: skip
    assert {name: _summary(ids, weights).kind for name, weights in patterns.items()} == {
        name: name for name in patterns
    }
    assert _summary(ids, patterns["even"]).evenness == pytest.approx(1, abs=1e-6)
    assert _summary(ids, copying).induction == pytest.approx(1)


@given(st.integers(2, 40), st.integers(1, 16), st.booleans(), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_a_pooled_image_is_the_largest_or_the_mean_of_each_cell(length, size, mean, chunk):
    weights = torch.rand(length, length).tril()
    image = PooledImage(length, size, mean=mean)
    for start in range(0, length, chunk):
        rows = weights[start : start + chunk]
        image.add(torch.arange(start, start + len(rows)), rows[:, : start + len(rows)])
    found = image.image()
    step = -(-length // size)
    assert len(found) == -(-length // step) <= size
    for a in range(len(found)):
        for b in range(len(found)):
            cell = weights[a * step : (a + 1) * step, b * step : (b + 1) * step]
            wanted = cell.mean() if mean else cell.max()
            assert found[a, b] == pytest.approx(float(wanted), abs=1e-6)


def test_the_overview_is_every_head(tiny_model):
    overview = Overview(IDS, 16)
    trace = trace_attention(tiny_model, IDS, visit=overview)
    summaries = overview.summaries.all()
    assert [(s.layer, s.head) for s in summaries] == [(i, h) for i in range(2) for h in range(6)]
    weights = trace.rows(1, 3)
    assert summaries[9].first == pytest.approx(float(weights[1:, 0].mean()), abs=1e-6)
    image = overview.images[1, 3].image()
    assert image.shape == (13, 13)
    assert float(image[12, 0]) == pytest.approx(float(weights[48:50, :4].max()))


def test_of_a_long_text_every_nth_query_is_looked_at(tiny_model, small_tiles):
    overview = Overview(IDS, 16, most_rows=20)
    trace = trace_attention(tiny_model, IDS, visit=overview)
    assert overview.every == 3
    weights = trace.rows(0, 2)[::3]
    found = overview.summaries.of(0, 2)
    assert found.first == pytest.approx(float(weights[1:, 0].mean()), abs=1e-6)
    image = overview.images[0, 2].image()
    assert image[5, 1] == pytest.approx(float(weights[7, 4:8].max()))  # rows 20 to 23: 21
