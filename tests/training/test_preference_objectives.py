"""Objectives over preferences: micro-batches add up, references agree, and settings are checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training import preference_setup as setup

from lmworks.core.errors import UserError
from lmworks.training.objectives.base import build_objective
from lmworks.training.objectives.orpo import _log1mexp
from lmworks.training.objectives.sequence_logprobs import label_logprobs, token_logprobs
from lmworks.training.preferences.batches import Fit, JudgedAnswers, Pairs
from lmworks.training.preferences.reference import Referenced, choose, frozen_copy, store_reference
from lmworks.training.preferences.reward_batches import RewardPairs
from lmworks.training.preferences.rows import as_judged, as_pair
from lmworks.training.reward import reward_model
from lmworks.training.strategy import Compute, OneProcess


def pairs(count: int) -> list[Any]:
    rows = setup.rows(count)
    for number, row in enumerate(rows):
        row |= {"margin": number % 3, "helpful": number % 3 - 1, "honest": (number % 2) * 0.5}
    return [as_pair("x", row, ("margin", "helpful", "honest")) for row in rows]


def data_of(name: str, count: int = 7) -> Any:
    tokenizer, fit = setup.tiny_tokenizer(), Fit(length=127)
    if name == "kto":
        judged = [r for row in setup.judged_rows(count) for r in as_judged("x", row)]
        return JudgedAnswers(judged, tokenizer, fit, batch_size=count, seed=0)
    if name == "reward":
        heads = ("helpful", "honest")
        return RewardPairs(
            pairs(count), tokenizer, fit, batch_size=count, seed=0, heads=heads, margin=True
        )
    return Pairs(pairs(count), tokenizer, fit, batch_size=count, seed=0)


SETTINGS: dict[str, dict[str, Any]] = {
    "dpo": {"nll_weight": 0.5},
    "ipo": {},
    "simpo": {"nll_weight": 0.5},
    "orpo": {},
    "kto": {"desirable_weight": 2.0},
    "reward": {"centring": 0.1},
}


def model_for(name: str) -> Any:
    model = setup.tiny_model()
    return reward_model(model, 2, seed=1) if name == "reward" else model


def batch_for(name: str, model: Any, count: int = 7) -> Any:
    data = data_of(name, count)
    batch = data.collate(range(len(data)))
    if name in ("dpo", "ipo", "kto"):
        other = setup.tiny_model()
        setup.fill(other, seed=5)
        batch = Referenced(data, other).score(batch)
    return batch


def gradients(model: Any, objective: Any, batch: Any, size: int) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    figures = OneProcess().gradients(model, objective, batch, Compute(micro_batch_size=size))
    return figures.loss, torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", SETTINGS)
def test_micro_batches_give_the_same(name: str) -> None:
    model = model_for(name).double()
    batch = batch_for(name, model)
    settings = SETTINGS[name]
    whole = gradients(model, build_objective(name, settings), batch, 0)
    assert whole[1].abs().max() > 1e-3
    for size in (1, 3):
        inside = settings | {"rows_at_once": size} if name == "kto" else settings
        loss, gradient = gradients(model, build_objective(name, inside), batch, size)
        # The reference and the shares are float32.
        assert loss == pytest.approx(whole[0], rel=1e-6)
        torch.testing.assert_close(gradient, whole[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_every_way_to_have_the_reference_gives_the_same(name: str, tmp_path: Path) -> None:
    model, data = setup.tiny_model(), data_of(name, 12)
    rows = data.order(0)
    plain = data.collate(rows)
    frozen = Referenced(data, frozen_copy(model)).score(plain).reference
    at_once = Referenced(data, model, rows_at_once=0).score(plain).reference
    path = tmp_path / "reference.npz"
    store_reference(model, data, path)
    stored = data.collate(rows).reference
    again = data_of(name, 12)
    setup.fill(model, seed=9)  # it is read, not scored anew
    store_reference(model, again, path)
    for key, figures in frozen.items():
        torch.testing.assert_close(at_once[key], figures, rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(stored[key], figures, rtol=1e-6, atol=1e-5)
        assert again.collate(rows).reference[key].equal(stored[key])


def test_the_reference_is_scored_without_dropout_and_without_gradients() -> None:
    model = setup.tiny_model().train()
    found = Referenced(data_of("dpo"), model)(0).reference["chosen"]
    assert model.training and not found.requires_grad


def test_which_reference_is_chosen() -> None:
    model = setup.tiny_model()
    settings: dict[str, Any] = {"model": model, "num_rows": 100, "has_adapter": False}
    assert choose("auto", rows_seen=200, **settings) == "stored"
    assert choose("auto", rows_seen=50, **settings) == "frozen"
    assert choose("auto", rows_seen=50, **settings | {"has_adapter": True}) == "base"
    assert choose("stored", rows_seen=50, **settings) == "stored"
    with pytest.raises(UserError, match="needs an adapter"):
        choose("base", rows_seen=50, **settings)


def test_logits_in_slices_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmworks.training.objectives import in_parts

    model = setup.tiny_model().double()
    batch = data_of("dpo").collate(range(7)).chosen
    plain = token_logprobs(model, batch)
    plain.sum().backward()
    before = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    monkeypatch.setattr(in_parts, "_LOGIT_CELLS", 3 * model.config.vocab_size)
    sliced = token_logprobs(model, batch)
    sliced.sum().backward()
    torch.testing.assert_close(sliced, plain)
    for gradient, parameter in zip(before, model.parameters()):
        torch.testing.assert_close(parameter.grad, gradient)


def test_log_probabilities_are_those_of_the_softmax() -> None:
    model = setup.tiny_model()
    hidden, labels = torch.randn(5, 64), torch.tensor([0, 5, 2, 9, 1])
    expected = model.logits(hidden).log_softmax(-1)[torch.arange(5), labels]
    torch.testing.assert_close(label_logprobs(model, hidden, labels), expected)


def test_odds_near_certainty_stay_finite() -> None:
    x = torch.tensor([-1e-7, -1e-3, -0.6931, -0.6932, -5.0, -20.0, -80.0], requires_grad=True)
    found = _log1mexp(x)
    expected = torch.log1p(-torch.exp(x.double()))
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=0)
    found.sum().backward()
    assert torch.isfinite(x.grad).all()  # type: ignore[arg-type]


def test_swapped_answers_swap_the_signs() -> None:
    model = setup.tiny_model()
    batch = batch_for("dpo", model)
    turned = type(batch)(
        chosen=batch.rejected,
        rejected=batch.chosen,
        whole=batch.rejected.labels,
        answer_share=batch.answer_share,
        whole_share=batch.whole_share,
        reference={
            "chosen": batch.reference["rejected"],
            "rejected": batch.reference["chosen"],
        },
    )
    for name in ("dpo", "ipo", "simpo"):
        one, other = (build_objective(name)(model, x).metrics for x in (batch, turned))
        assert one["margin"] == pytest.approx(-other["margin"], abs=1e-4)
        assert one["accuracy"] == pytest.approx(1 - other["accuracy"])


def test_half_smoothed_preferences_pull_both_ways() -> None:
    """At a smoothing near one half, cDPO hardly prefers: its loss is symmetric in the margin."""
    model = setup.tiny_model()
    batch = batch_for("dpo", model)
    loss = build_objective("dpo", {"label_smoothing": 0.499999})(model, batch).value
    hard = build_objective("dpo")(model, batch).value
    turned = build_objective("dpo", {"beta": 0.1})
    margin = turned(model, batch).metrics["margin"]
    assert loss.item() == pytest.approx(hard.item() + margin / 2, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("dpo", {"beta": 0.0}, "dpo: beta = 0.0: give a number above 0"),
        ("dpo", {"label_smoothing": 0.5}, "from 0 up to below 0.5"),
        ("simpo", {"gama": 1}, "did you mean 'gamma'"),
        ("kto", {"desirable_weight": -1}, "desirable_weight = -1"),
        ("reward", {"centring": -0.1}, "centring = -0.1"),
        ("dpos", {}, "unknown objective 'dpos'"),
    ],
)
def test_settings_are_checked(name: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_objective(name, settings)


def test_heads_count_where_they_judged() -> None:
    batch = data_of("reward", 6).collate(range(5))
    assert batch.better.tolist() == [[-1, 0], [0, 1], [1, 0], [-1, 1], [1, 1]]
    assert batch.margin.tolist() == [[1, 0], [0, 0.5], [1, 0], [1, 0.5], [1, 0.5]]
    assert batch.num_targets == 7


def test_a_pair_that_nobody_judged_is_left_out() -> None:
    data = data_of("reward", 7)
    # Rows 4 (helpful 0, honest 0) has nothing to say.
    assert data.num_unjudged == 1 and len(data) == 6


def test_a_head_without_a_judgement_is_refused() -> None:
    rows = RewardPairs(
        pairs(6),
        setup.tiny_tokenizer(),
        Fit(length=127),
        batch_size=2,
        seed=0,
        heads=("helpful", "harmless"),
    )
    with pytest.raises(UserError, match="no row was judged in 'harmless'"):
        rows.check_heads()
    with pytest.raises(UserError, match="no row was judged in any of harmless"):
        RewardPairs(
            pairs(6),
            setup.tiny_tokenizer(),
            Fit(length=127),
            batch_size=2,
            seed=0,
            heads=("harmless",),
        )
