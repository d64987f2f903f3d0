"""GraphFormers: against the paper's equations written anew, and what must hold of any graph."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.models.config import (
    AttentionConfig,
    EmbeddingConfig,
    LayerNormConfig,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
)
from lmworks.models.graph_attention import graph_config, graph_former
from lmworks.models.load import load_model
from lmworks.models.model import Model
from lmworks.models.save import save_model

HIDDEN, HEADS, LAYERS = 24, 4, 3


def encoder_config(**changes: Any) -> ModelConfig:
    norm = LayerNormConfig(eps=1e-6)
    mixer = AttentionConfig(
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HIDDEN // HEADS,
        rope=None,
        causal=False,
        bias="qkvo",
    )
    settings: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "mixer": mixer,
        "feed_forward": MLPConfig(intermediate_size=40, activation="gelu", gated=False, bias=True),
        "norm": norm,
        "placement": "post",
        "embedding": EmbeddingConfig(norm=norm),
        "positions": LearnedPositions(num_positions=16),
        "head": None,
    }
    return dataclasses.replace(ModelConfig.uniform(**settings | changes), norm=None)


def moved(model: Model) -> Model:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)
    return model.eval()


def graphs() -> dict[str, torch.Tensor]:
    """Two graphs of four texts; the second has two, and texts are of several lengths."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 97, (8, 12), generator=generator)
    lengths = torch.tensor([12, 7, 9, 3, 5, 12, 1, 1])
    nodes = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    mask = (torch.arange(12) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "nodes": nodes}


def by_the_paper(
    weights: dict[str, torch.Tensor], texts: list[list[torch.Tensor]], every_node: bool
) -> list[list[torch.Tensor]]:
    """The states of each text, graph by graph and head by head, without padding."""

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def heads(x: torch.Tensor) -> list[torch.Tensor]:
        return list(x.split(HIDDEN // HEADS, dim=-1))

    def mha(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any = None) -> torch.Tensor:
        parts = []
        for number, (qh, kh, vh) in enumerate(zip(heads(q), heads(k), heads(v), strict=True)):
            scores = qh @ kh.T / math.sqrt(HIDDEN // HEADS)
            if bias is not None:
                scores = scores + bias[..., number]
            parts.append(scores.softmax(-1) @ vh)
        return torch.cat(parts, dim=-1)

    def transformer(h: torch.Tensor, station: torch.Tensor | None, layer: str) -> torch.Tensor:
        wide = h if station is None else torch.cat((station[None], h))
        mixer = f"{layer}.mixer"
        attended = mha(
            linear(h, f"{mixer}.q_proj"),
            linear(wide, f"{mixer}.k_proj"),
            linear(wide, f"{mixer}.v_proj"),
        )
        h = norm(h + linear(attended, f"{mixer}.o_proj"), f"{layer}.mixer_norm")
        inner = F.gelu(linear(h, f"{layer}.feed_forward.up_proj"))
        inner = linear(inner, f"{layer}.feed_forward.down_proj")
        return norm(h + inner, f"{layer}.feed_forward_norm")

    found = []
    for texts_of_graph in texts:
        states = [
            norm(
                weights["embed_tokens.weight"][ids] + weights["embed_positions.weight"][: len(ids)],
                "embed_norm",
            )
            for ids in texts_of_graph
        ]
        states = [transformer(h, None, "layers.0") for h in states]
        for number in range(1, LAYERS):
            layer = f"layers.{number}"
            z = torch.stack([h[0] for h in states])
            table = weights[f"{layer}.mixer.graph_bias"]
            bias = torch.stack(
                [
                    torch.stack([table[(a > 0) + (b > 0)] for b in range(len(z))])
                    for a in range(len(z))
                ]
            )
            stations = mha(*(linear(z, f"{layer}.mixer.graph_{name}_proj") for name in "qkv"), bias)
            states = [
                transformer(h, stations[i] if every_node or i == 0 else None, layer)
                for i, h in enumerate(states)
            ]
        found.append(states)
    return found


@pytest.mark.parametrize("every_node", [True, False])
def test_the_equations_of_the_paper(every_node: bool) -> None:
    model = moved(Model(graph_config(encoder_config(), every_node=every_node)))
    inputs = graphs()
    states = model(**inputs).view(2, 4, 12, HIDDEN)
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    texts = [
        [
            inputs["input_ids"][4 * g + m][: int(inputs["attention_mask"][4 * g + m].sum())]
            for m in range(4)
            if inputs["nodes"][g, m]
        ]
        for g in range(2)
    ]
    wanted = by_the_paper(weights, texts, every_node)
    mine, theirs = torch.zeros(()), torch.zeros(())
    for g, graph in enumerate(wanted):
        for m, expected in enumerate(graph):
            got = states[g, m, : len(expected)]
            assert (got - expected).abs().max() < 1e-5
            weight = torch.randn(got.shape, generator=torch.Generator().manual_seed(m))
            mine, theirs = mine + (got * weight).sum(), theirs + (expected * weight).sum()
    mine.backward()
    theirs.backward()
    for name, parameter in model.named_parameters():
        gradient = weights[name].grad
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        assert parameter.grad is not None, name
        scale = gradient.abs().max().clamp(min=1e-2)
        assert (parameter.grad - gradient).abs().max() / scale < 1e-3, name


@torch.no_grad()
@settings(deadline=None, max_examples=20)
@given(order=st.permutations([1, 2, 3]), every_node=st.booleans())
def test_the_order_of_neighbours_says_nothing(order: list[int], every_node: bool) -> None:
    model = moved(Model(graph_config(encoder_config(), every_node=every_node)))
    inputs = graphs()
    rows = torch.tensor([0, *order])
    turned = {
        "input_ids": inputs["input_ids"][:4][rows],
        "attention_mask": inputs["attention_mask"][:4][rows],
        "nodes": inputs["nodes"][:1][:, rows],
    }
    one = {name: value[: 1 if name == "nodes" else 4] for name, value in inputs.items()}
    assert (model(**turned)[0, 0] - model(**one)[0, 0]).abs().max() < 1e-5


@torch.no_grad()
def test_who_takes_in_whom() -> None:
    inputs = graphs()
    alone = {name: value for name, value in inputs.items() if name != "nodes"}
    for every_node in (True, False):
        model = moved(Model(graph_config(encoder_config(), every_node=every_node)))
        states, plain = model(**inputs)[:, 0], model(**alone)[:, 0]
        changed = (states - plain).abs().amax(-1) > 1e-3
        real = inputs["nodes"].flatten()
        assert bool(changed[[0, 4]].all())
        neighbours = real.clone()
        neighbours[[0, 4]] = False
        assert bool((changed[neighbours] == every_node).all())
        # What stands where no text is has no part in it.
        other = inputs["input_ids"].clone()
        other[6:] = 5
        again = model(**{**inputs, "input_ids": other})[:, 0]
        assert torch.equal(again[real], states[real])


@torch.no_grad()
def test_a_trained_encoder_becomes_one(tmp_path: Path) -> None:
    encoder = moved(Model(encoder_config()))
    made = [graph_former(encoder, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert all(
        torch.equal(a, b)
        for a, b in zip(made[0].state_dict().values(), made[1].state_dict().values(), strict=True)
    )
    inputs = graphs()
    alone = {name: value for name, value in inputs.items() if name != "nodes"}
    assert (made[0](**alone) - encoder(**alone)).abs().max() < 1e-5
    save_model(made[0], tmp_path)
    again = load_model(tmp_path)
    assert again.config == made[0].config
    assert torch.equal(again(**inputs), made[0].eval()(**inputs))


def test_what_does_not_fit() -> None:
    with pytest.raises(UserError, match="two layers"):
        graph_config(encoder_config(num_hidden_layers=1))
    causal = AttentionConfig(num_attention_heads=4, num_key_value_heads=4, head_dim=6)
    with pytest.raises(UserError, match="causal"):
        graph_config(encoder_config(mixer=causal))
    with pytest.raises(UserError, match="made of attention layers, not graph_attention"):
        graph_config(graph_config(encoder_config()))
    narrow = AttentionConfig(
        num_attention_heads=4, num_key_value_heads=4, head_dim=4, rope=None, causal=False
    )
    with pytest.raises(UserError, match="4 heads of 4 do not make a state of 24"):
        Model(graph_config(encoder_config(mixer=narrow)))
    model = Model(graph_config(encoder_config()))
    inputs = graphs()
    with pytest.raises(UserError, match=r"nodes of shape \(1, 4\) do not fit 8 texts"):
        model(**{**inputs, "nodes": inputs["nodes"][:1]})
    with pytest.raises(UserError, match="its centre"):
        model(**{**inputs, "nodes": ~inputs["nodes"]})
