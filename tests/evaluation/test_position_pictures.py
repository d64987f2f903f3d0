"""Pictures of positions against the formulas of the papers, and the page and command."""

from __future__ import annotations

import json
import math
import typing

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lmworks.cli.explain_positions import command
from lmworks.core.errors import UserError
from lmworks.evaluation import positions_page
from lmworks.evaluation.position_pictures import (
    Parameters,
    model_parameters,
    model_pictures,
    position_pictures,
)
from lmworks.evaluation.position_schemes import SCHEMES, scalings, stretched, with_scheme
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
from lmworks.models.config.positions import RoPEScaling
from lmworks.models.model import Model

P = Parameters(length=40, dimensions=16, heads=4, theta=100.0, context=32, factor=4.0)


@pytest.fixture(scope="module")
def found():
    return position_pictures(P)


def picture(found, name):
    return next(p.values for p in found.pictures if p.name == name)


def test_sinusoids_are_those_of_the_paper(found):
    values = picture(found, "sinusoidal")
    for position in (0, 7, 39):
        for i in range(8):
            angle = position / 100.0 ** (2 * i / 16)
            assert values[position, 2 * i] == pytest.approx(math.sin(angle), abs=1e-5)
            assert values[position, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-5)
    alike = picture(found, "similarity")
    wanted = np.mean([math.cos(5 / 100.0 ** (2 * i / 16)) for i in range(8)])
    assert alike[10, 15] == pytest.approx(wanted, abs=1e-5)
    assert np.allclose(np.diagonal(alike), 1, atol=1e-5)


def test_rotary_waves_under_each_scaling(found):
    waves = {w.name: w for w in found.waves}
    plain = [2 * math.pi * 100.0 ** (2 * i / 16) for i in range(8)]
    assert waves["rope"].lengths == pytest.approx(plain, rel=1e-5)
    assert waves["rope, linear"].lengths == pytest.approx([4 * w for w in plain], rel=1e-5)
    # NTK (YaRN paper, 3.1): the longest wave grows by the factor, the shortest not at all.
    ntk = waves["rope, ntk"].lengths
    assert ntk[0] == pytest.approx(plain[0]) and ntk[-1] == pytest.approx(4 * plain[-1], rel=1e-4)
    # The dynamic one grows with the sequence: at the stretched length it is the same.
    assert waves["rope, dynamic"].lengths == pytest.approx(ntk, rel=1e-4)
    assert waves["rope, yarn"].attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    cosines = picture(found, "rope, linear")
    assert cosines[9, 3] == pytest.approx(math.cos(9 / 4 / 100.0 ** (6 / 16)), abs=1e-5)
    assert np.abs(picture(found, "rope, yarn")).max() <= 1 + 1e-6  # the factor is told apart


def test_every_scaling_of_the_config_is_drawn_that_can_be(found):
    kinds = {kind.kind for kind in typing.get_args(RoPEScaling)} - {"longrope"}
    assert {w.name.partition(", ")[2] for w in found.waves} - {""} == kinds
    assert set(scalings(32, 128)) == kinds


def test_alibi_is_that_of_the_paper(found):
    assert [s.slope for s in found.slopes] == pytest.approx([2**-2, 2**-4, 2**-6, 2**-8])
    assert picture(found, "alibi")[1, 10] == pytest.approx(math.exp(-10 / 16), abs=1e-6)
    assert found.slopes[0].halves_at == pytest.approx(math.log(2) * 4)


def test_relative_buckets_take_every_distance_once(found):
    buckets = picture(found, "relative")
    assert (buckets.sum(0) == 1).all()
    assert (buckets.argmax(0)[:16] == np.arange(16)).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"length": 1}, "length 1: from 2"), ({"dimensions": 7}, "even number"),
     ({"theta": 1e12}, "theta 1e"), ({"factor": 0.5}, "factor 0.5: from 1")],
)  # fmt: skip
def test_odd_parameters_are_told(changes, words):
    with pytest.raises(UserError, match=words):
        Parameters(**changes)


def plain_config():
    mixer = AttentionConfig(num_attention_heads=4, num_key_value_heads=4, head_dim=8)
    return ModelConfig.uniform(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, mixer=mixer,
        feed_forward=MLPConfig(intermediate_size=48),
    )  # fmt: skip


def new_model(scheme):
    model = Model(with_scheme(plain_config(), scheme, 96)).eval()
    model.reset_parameters(torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_tells_positions_and_nothing_else_does(scheme):
    """A causal model without positions gives the last token the same, however others are put."""
    model = new_model(scheme)
    ids = torch.tensor([[3, 9, 4, 17, 8, 30]])
    other = torch.tensor([[17, 4, 3, 8, 9, 30]])
    with torch.no_grad():
        # One layer: a causal stack counts what each token saw before it.
        first = model.layers[0]
        for part in (model,):
            part.layers = torch.nn.ModuleList([first])
        difference = (model(ids)[0, -1] - model(other)[0, -1]).abs().max()
    assert (difference < 1e-6) == (scheme == "none")


def test_a_stretched_model_shares_its_weights():
    model = new_model("rope")
    for scaling in scalings(32, 96).values():
        changed = stretched(model, scaling)
        assert changed.layers[1].mixer.config.rope.scaling == scaling
        mine, other = (m.layers[1].mixer.q_proj.weight for m in (model, changed))
        assert mine.data_ptr() == other.data_ptr()


def test_what_a_model_has_learned_is_drawn():
    model = new_model("learned")
    values, alike = model_pictures(model, 40)
    assert np.array_equal(values.values, model.embed_positions.weight[:40].detach().numpy())
    assert alike.values.shape == (40, 40)
    relative = new_model("relative")
    (bias,) = model_pictures(relative, 40)
    wanted = relative.bias(torch.tensor([[39]]), 40)[0, :, 0]
    assert np.array_equal(bias.values[:, 5], wanted[:, 39 - 5].detach().numpy())
    assert model_pictures(new_model("rope"), 40) == []
    assert model_parameters(new_model("rope"), 40).dimensions == 8


def test_the_page_loads_nothing(found):
    page = positions_page.render(found, model_pictures(new_model("learned"), 20), "<b>mine</b>")
    assert "<script" not in page and "<b>mine" not in page and "default-src 'none'" in page
    assert page.count("<img") == len(found.pictures) + 2 and page.count("<polyline") >= 12


def test_the_command(tmp_path):
    out = tmp_path / "positions.html"
    done = CliRunner().invoke(command, ["--out", str(out), "--factor", "8"], catch_exceptions=False)
    assert "rope, yarn" in done.stdout and out.is_file()
    done = CliRunner().invoke(command, ["--json", "--heads", "2"], catch_exceptions=False)
    assert len(json.loads(done.stdout)["slopes"]) == 2
    with pytest.raises(UserError, match=r"no \.html"):
        CliRunner().invoke(command, ["--out", "x.gif"], catch_exceptions=False)
