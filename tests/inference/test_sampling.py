from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.inference.sampling import InvalidParameter, Sampler, Sampling, probabilities


def logits_of(seed: int, size: int = 300) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)


@settings(deadline=None)  # the first call imports transformers
@given(
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.2, 0.7, 1.0, 1.8]),
    top_k=st.sampled_from([0, 1, 5, 50, 300, 1000]),
    top_p=st.sampled_from([1.0, 0.99, 0.9, 0.5, 0.05]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    typical_p=st.sampled_from([1.0, 0.95, 0.5, 0.1]),
)
def test_the_distribution_is_that_of_transformers(
    seed, temperature, top_k, top_p, min_p, typical_p
):
    from transformers import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
        TypicalLogitsWarper,
    )

    scores = torch.tensor(logits_of(seed))[None]
    warpers = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    warpers += [TypicalLogitsWarper(typical_p)] if typical_p < 1 else []
    for warper in warpers:
        scores = warper(None, scores)
    expected = torch.softmax(scores[0], 0).numpy()
    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p
    )
    weights = probabilities(logits_of(seed), sampling)
    np.testing.assert_allclose(weights / weights.sum(), expected, atol=2e-6)


FILTERS = [
    {},
    {"temperature": 0.5},
    {"temperature": 1.7},
    {"top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"typical_p": 0.7},
    {"repetition_penalty": 1.6},
    {"repetition_penalty": 0.7},
    {"temperature": 1.4, "top_k": 12, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
]


def processed(logits, settings, prompt_ids):
    """What transformers draws from."""
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
        TypicalLogitsWarper,
    )

    kinds = {
        "repetition_penalty": RepetitionPenaltyLogitsProcessor,
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
        "typical_p": TypicalLogitsWarper,
    }
    steps = [kind(settings[name]) for name, kind in kinds.items() if name in settings]
    scores = LogitsProcessorList(steps)(torch.tensor([prompt_ids]), torch.tensor(logits)[None])
    return torch.softmax(scores[0].double(), 0).numpy()


@pytest.mark.parametrize("given", FILTERS, ids=str)
def test_draws_follow_the_distribution_of_transformers(given):
    """Chi-square over 20,000 draws, at the 0.999 quantile of its degrees of freedom."""
    from scipy.stats import chi2

    logits, prompt_ids, draws = logits_of(3, 24), [1, 5, 5, 9], 20_000
    expected = processed(logits, given, prompt_ids)
    counts = np.zeros(24)
    sampler = Sampler(Sampling(seed=0, **given), 24, prompt_ids)
    weights = probabilities(sampler.scores(logits), sampler._sampling)
    np.testing.assert_allclose(weights / weights.sum(), expected, atol=1e-6)
    sampler.count = lambda token_id: None  # the text stays as it is
    for _ in range(draws):
        counts[sampler.pick(logits).token_id] += 1
    assert not counts[expected == 0].any()
    often = expected * draws >= 5
    rest = draws * expected[~often].sum()
    statistic = ((counts - draws * expected)[often] ** 2 / (draws * expected[often])).sum()
    statistic += (counts[~often].sum() - rest) ** 2 / rest if rest else 0
    assert statistic < chi2.ppf(0.999, max(1, int(often.sum()) - 1 + bool(rest)))


def test_the_repetition_penalty_counts_prompt_and_answer():
    logits = np.array([3.0, 2.9, -1.0, 0.5], dtype=np.float32)
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=1.5), 4, [0, 7])
    assert [sampler.pick(logits).token_id for _ in range(2)] == [1, 0]  # 0 counts from the start


def test_a_mask_comes_before_all_filters():
    logits = logits_of(5, 50)
    mask = np.zeros(50, dtype=bool)
    mask[[3, 7]] = True
    sampler = Sampler(Sampling(top_k=1, seed=0), 50)
    assert sampler.pick(logits, mask).token_id == (3 if logits[3] > logits[7] else 7)
    drawn = {Sampler(Sampling(seed=i), 50).pick(logits, mask).token_id for i in range(60)}
    assert drawn <= {3, 7}


def test_a_filtered_token_is_never_drawn():
    logits = np.zeros(1000, dtype=np.float32)
    logits[123] = 0.5
    sampler = Sampler(Sampling(top_k=1, seed=0, temperature=9.0), 1000)
    assert {sampler.pick(logits).token_id for _ in range(500)} == {123}


def test_the_same_seed_draws_the_same_and_another_does_not():
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(seed=seed), 300)
        return [sampler.pick(logits_of(i)).token_id for i in range(50)]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert draw(-1) == draw(-1)
    assert draw(None) != draw(None)


def test_greedy_takes_the_first_of_the_best():
    logits = np.array([1, 5, 5, 2], dtype=np.float32)
    assert Sampler(Sampling(temperature=0), 4).pick(logits).token_id == 1


def test_penalties_and_bias_are_those_of_the_api():
    logits = np.array([3.0, 2.5, 2.0, -9.0], dtype=np.float32)
    before = logits.copy()
    sampling = Sampling(temperature=0, frequency_penalty=0.3, presence_penalty=0.4)
    sampler = Sampler(sampling, 4)
    # 0 falls to 2.3 once, 1 to 1.8, 0 to 2.0 (first of a tie with 2), and so on
    assert [sampler.pick(logits).token_id for _ in range(3)] == [0, 1, 0]
    biased = Sampler(Sampling(temperature=0, logit_bias={3: 100.0}), 4)
    assert biased.pick(logits).token_id == 3
    np.testing.assert_array_equal(logits, before)


def test_logprobs_come_before_temperature_and_filters():
    logits = logits_of(1)
    sampling = Sampling(temperature=5.0, top_k=3, seed=2, logprobs=5)
    choice = Sampler(sampling, 300).pick(logits)
    expected = torch.log_softmax(torch.tensor(logits).double(), 0)
    assert choice.logprob == pytest.approx(float(expected[choice.token_id]), abs=1e-9)
    values, indices = expected.topk(5)
    assert [i for i, _ in choice.top] == indices.tolist()
    assert [v for _, v in choice.top] == pytest.approx(values.tolist(), abs=1e-9)
    assert Sampler(Sampling(logprobs=0), 300).pick(logits).top == ()


def test_not_a_number_is_told():
    for bad in (math.nan, math.inf):
        logits = logits_of(0)
        logits[7] = bad
        with pytest.raises(FloatingPointError):
            Sampler(Sampling(), 300).pick(logits)


BAD = {
    "max_tokens": [0, -1, 1.5, "5", True],
    "temperature": [-0.1, math.nan, math.inf, "1", None, True],
    "top_p": [0, 1.1, -1, None],
    "top_k": [-1, 0.5, None],
    "min_p": [-0.1, 1.1],
    "typical_p": [0, 1.1, None],
    "repetition_penalty": [0, -1, 11, "x", None],
    "frequency_penalty": [2.1, "x"],
    "presence_penalty": [-2.1],
    "seed": [1.5, "1", 2**64],
    "logprobs": [-1, 21, True],
    "stop": ["", ["a", ""], [1], ["x"] * 17],
    "logit_bias": [{"a": 1}, {1: 101}, {1: "x"}, [1], {1: math.nan}],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, vs in BAD.items() for v in vs])
def test_a_bad_value_names_its_parameter(name, value):
    with pytest.raises(InvalidParameter, match=f"^{name}: ") as caught:
        Sampling.of({name: value})
    assert caught.value.param == name
    assert "\n" not in str(caught.value)


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(InvalidParameter, match="did you mean 'temperature'"):
        Sampling.of({"temprature": 1})


def test_good_values_pass():
    sampling = Sampling(max_tokens=1, temperature=0, seed=-5, stop=["a"], logit_bias={"7": 1})
    assert sampling.stops == ("a",)
    assert sampling.logit_bias == {7: 1.0}
    assert Sampling(stop="a").stops == ("a",)
