"""Pruning: what stays is what was there, sizes are those asked for, and refits beat bare cuts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training import preference_setup as setup
from tests.training.tiny import tiny_config, tiny_model

from lmworks.compression.pruning.contribution import (
    channel_contributions,
    group_contributions,
    largest,
    refitted,
)
from lmworks.compression.pruning.depth import influences, layers_to_keep, with_layers
from lmworks.compression.pruning.hidden import with_hidden_size
from lmworks.compression.pruning.stage import PruneConfig, mean_loss, prune_stage, pruned
from lmworks.compression.pruning.width import Widths, with_widths
from lmworks.core.config import from_mapping
from lmworks.core.errors import UserError
from lmworks.models.config import GatedLinearAttentionConfig
from lmworks.models.load import load_model
from lmworks.models.model import Model

SHAPE: dict[str, Any] = {"hidden_size": 32, "layers": 3, "heads": (4, 2), "inner": 48}


def rows(count: int = 12) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 60, size) for size in random.integers(4, 30, count)]


def model(**changes: Any) -> Model:
    made = tiny_model(60, **SHAPE | changes).eval()
    with torch.no_grad():  # layers that do something
        for parameter in made.layers.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    return made


def logits(made: Model) -> torch.Tensor:
    with torch.inference_mode():
        return made(torch.from_numpy(rows()[0])[None])


def test_contributions_are_the_mean_squares_of_what_is_added() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(500, 12, generator=random) @ torch.randn(12, 12, generator=random)
    weight = torch.randn(7, 12, generator=random)
    moment = x.T @ x / len(x)
    alone = torch.stack([(x[:, [j]] @ weight[:, [j]].T).square().sum(1).mean() for j in range(12)])
    torch.testing.assert_close(channel_contributions(weight, moment.diagonal()), alone)
    groups = [slice(0, 4), slice(4, 8), slice(8, 12)]
    together = torch.stack([(x[:, g] @ weight[:, g].T).square().sum(1).mean() for g in groups])
    torch.testing.assert_close(group_contributions(weight, moment, 4), together, rtol=1e-4, atol=0)


def test_a_refit_gives_nearest_outputs_and_leaves_what_is_whole() -> None:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(2000, 5, generator=random) @ torch.randn(5, 12, generator=random)  # rank 5
    x += 0.01 * torch.randn(2000, 12, generator=random)
    weight = torch.randn(7, 12, generator=random)
    moment, kept = x.T @ x / len(x), [0, 2, 3, 5, 7, 8, 11]
    wanted = x @ weight.T
    bare = (x[:, kept] @ weight[:, kept].T - wanted).square().mean()
    fitted = (x[:, kept] @ refitted(weight, moment, kept).T - wanted).square().mean()
    assert fitted < 0.02 * bare
    torch.testing.assert_close(refitted(weight, moment, range(12)), weight)
    assert largest(torch.tensor([1.0, 3.0, 2.0, 3.0]), 2).tolist() == [1, 3]


def test_layers_that_do_nothing_go_first() -> None:
    made = model()
    with torch.no_grad():
        made.layers[1].mixer.o_proj.weight.mul_(1e-3)  # type: ignore[union-attr, operator]
        made.layers[1].feed_forward.down_proj.weight.mul_(1e-3)  # type: ignore[union-attr, operator]
    far = influences(made, rows())
    assert far.argmin() == 1 and far[1] < 1e-3
    for way in ("influence", "run"):
        assert layers_to_keep(made, rows(), 2, way) == [0, 2]
    short = with_layers(made, [0, 2])
    torch.testing.assert_close(logits(short), logits(made), rtol=0.02, atol=0.02)
    assert influences(made, rows(), span=2).shape == (2,)


def test_nothing_cut_is_nothing_changed() -> None:
    made = model()
    for same in (
        with_layers(made, [0, 1, 2]),
        with_hidden_size(made, rows(), 32),
        with_widths(made, rows(), Widths(num_attention_heads=4, intermediate_size=48)),
    ):
        assert torch.equal(logits(same), logits(made))


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"num_attention_heads": 2}, (2, 2, 48)),
        ({"num_key_value_heads": 1}, (2, 1, 48)),
        ({"intermediate_size": 20}, (4, 2, 20)),
        ({"num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 7}, (1, 1, 7)),
    ],
)
def test_widths_are_those_asked_for(sizes: dict[str, int], said: tuple[int, ...]) -> None:
    made = model()
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    cut = with_widths(made, rows(), Widths(**sizes))
    for layer in cut.config.layers:
        mixer: Any = layer.mixer
        dense: Any = layer.feed_forward
        found = (mixer.num_attention_heads, mixer.num_key_value_heads, dense.intermediate_size)
        assert found == said
    assert torch.isfinite(logits(cut)).all()
    assert all(torch.equal(before[name], tensor) for name, tensor in made.state_dict().items())


def test_a_needless_neuron_and_channel_go_without_a_trace() -> None:
    made = model()
    with torch.no_grad():
        for layer in made.layers:
            layer.feed_forward.up_proj.weight[5] = 0  # type: ignore[union-attr, operator, index]
            layer.mixer.v_proj.weight[:8] = 0  # type: ignore[union-attr, operator, index]
    cut = with_widths(made, rows(), Widths(intermediate_size=47, num_key_value_heads=1))
    torch.testing.assert_close(logits(cut), logits(made), rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith(("embed_tokens.weight",)):
                parameter[:, 3] = 0
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter[3] = 0
    narrow = with_hidden_size(made, rows(), 31)
    assert narrow.config.hidden_size == 31
    # A zero channel counts in the mean of the squares; the norms take up that it is gone.
    torch.testing.assert_close(logits(narrow), logits(made), rtol=1e-3, atol=1e-3)


def test_cuts_that_look_at_text_beat_cuts_at_random() -> None:
    made = model()
    whole = logits(made)

    def off(cut: Model) -> float:
        return float((logits(cut) - whole).square().mean())

    cut = with_widths(made, rows(40), Widths(intermediate_size=24))
    bare = with_widths(made, rows(40), Widths(intermediate_size=24))
    with torch.no_grad():  # the same neurons, without the refit
        for mine, old in zip(bare.layers, made.layers, strict=True):
            rows_kept = [
                int((old.feed_forward.up_proj.weight == row).all(1).nonzero()[0, 0])  # type: ignore[union-attr]
                for row in mine.feed_forward.up_proj.weight  # type: ignore[union-attr]
            ]
            down = old.feed_forward.down_proj.weight[:, rows_kept]  # type: ignore[union-attr, index]
            mine.feed_forward.down_proj.weight.copy_(down)  # type: ignore[union-attr, operator]
    assert off(cut) < 0.9 * off(bare)


def test_what_can_not_be_cut_is_named() -> None:
    linear = tiny_config(60, **SHAPE)
    layer = linear.layers[0]
    gla = GatedLinearAttentionConfig(num_heads=2, key_size=8, value_size=8)
    mixed = dataclasses.replace(
        linear, layers=(dataclasses.replace(layer, mixer=gla), *linear.layers[1:])
    )
    other = Model(mixed)
    other.reset_parameters(torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match=r"layer 0 is of kind .*--layers"):
        with_hidden_size(other, rows(), 16)
    assert with_layers(other, [0, 2]).config.num_hidden_layers == 2
    for widths, said in (
        (Widths(num_attention_heads=3), "not a multiple of the 2"),
        (Widths(num_key_value_heads=5), "from 1 to 2"),
        (Widths(intermediate_size=99), "from 1 to 48"),
    ):
        with pytest.raises(UserError, match=said):
            with_widths(model(), rows(), widths)
    with pytest.raises(UserError, match="the model has 3"):
        pruned(model(), rows(), PruneConfig(model="", layers=9))


def test_the_stage_writes_a_model_that_loads(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    setup.write_tiny(folder)
    text = tmp_path / "text.txt"
    text.write_text("some words of a text to look at, again and again. " * 60)
    values = {"model": str(folder), "calibration": str(text), "layers": 1, "hidden_size": 48}
    config = from_mapping(PruneConfig, values | {"intermediate_size": 40, "threads": 1})
    artifact = prune_stage(config, tmp_path / "out")
    made = load_model(tmp_path / "out")
    assert (made.config.num_hidden_layers, made.config.hidden_size) == (1, 48)
    assert artifact.metrics["num_parameters"] == sum(p.numel() for p in made.parameters())
    assert artifact.metrics["num_parameters"] < artifact.metrics["num_parameters_before"]
    assert mean_loss(made, [np.arange(5, 30)]) > 0
    with pytest.raises(UserError, match="nothing to cut: say how much stays with --layers"):
        prune_stage(PruneConfig(model=str(folder)), tmp_path / "none")
    with pytest.raises(UserError, match="layers = -1"):
        prune_stage(PruneConfig(model=str(folder), layers=-1), tmp_path / "none")
