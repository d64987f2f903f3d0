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
)
def test_the_distribution_is_that_of_transformers(seed, temperature, top_k, top_p, min_p):
    from transformers import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    scores = torch.tensor(logits_of(seed))[None]
    warpers = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    for warper in warpers:
        scores = warper(None, scores)
    expected = torch.softmax(scores[0], 0).numpy()
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    weights = probabilities(logits_of(seed), sampling)
    np.testing.assert_allclose(weights / weights.sum(), expected, atol=2e-6)


def test_draws_follow_the_distribution():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    sampler = Sampler(Sampling(seed=0), 4)
    counts = np.bincount([sampler.pick(logits).token_id for _ in range(20_000)], minlength=4)
    expected = np.array([0.5, 0.3, 0.15, 0.05])
    chi_square = ((counts - 20_000 * expected) ** 2 / (20_000 * expected)).sum()
    assert chi_square < 16.3  # 0.999 quantile with 3 degrees of freedom


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
