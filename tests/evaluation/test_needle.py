"""Needles: prompts of the right length with the needle where it should be, and who finds them."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.evaluation.needle import NeedleConfig, measure, needle, summary
from lmworks.evaluation.needle_trials import Haystack, score
from lmworks.evaluation.statistics import share_interval
from lmworks.models.config import AttentionConfig, LMHeadConfig, MLPConfig, ModelConfig
from lmworks.models.model import Model
from lmworks.models.save import save_model

TEXT = "\n".join(text for _, text in sorted(topics.items())[:25])
NEEDLE = "The word of {key} is {value}."


@pytest.fixture(scope="module")
def haystack(tokenizer: Any) -> Haystack:
    return Haystack(TEXT, tokenizer)


class Copier:
    """A scripted model: says what followed the longest run of tokens like the last ones."""

    def __init__(self, vocab_size: int, reach: int) -> None:
        self.vocab_size, self.reach = vocab_size, reach

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def hidden_states(self, ids: torch.Tensor) -> torch.Tensor:
        row = ids[0].tolist()
        said = torch.zeros(1, len(row), self.vocab_size)
        for at in range(len(row) - 20, len(row)):
            earlier = range(max(0, at - self.reach), at)
            said[0, at, row[max(earlier, key=lambda back: self._alike(row, back, at)) + 1]] = 9.0
        return said

    @staticmethod
    def _alike(row: list[int], back: int, at: int) -> int:
        shared = 0
        while shared < min(back, 30) and row[back - shared] == row[at - shared]:
            shared += 1
        return shared

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def config(**given: Any) -> NeedleConfig:
    return NeedleConfig(model="m", text="t", **{"needle": NEEDLE, "samples": 3} | given)


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(150, 900),
    depth=st.floats(0, 1),
    words=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_a_prompt_has_its_length_and_its_needle_at_its_depth(
    length: int, depth: float, words: int, seed: int, haystack: Haystack, tokenizer: Any
) -> None:
    trial = haystack.trial(length, needle=NEEDLE, words=words, seed=(seed,))
    prompt = trial.prompt(depth)
    assert len(prompt) == length
    said = tokenizer.decode(prompt[1:])
    value = tokenizer.decode(trial.answer).strip()
    assert len(value.split()) == words
    sentence = tokenizer.decode(trial.needle)
    assert f" {value}." in sentence and sentence.count("\n") == 2
    assert said.count(sentence.strip()) == 1
    assert said.endswith(tokenizer.decode(trial.question)) and value not in said[-20:]
    at = said.index(sentence) / max(1, len(said) - len(sentence) - 30)
    assert abs(at - depth) < 0.05 + 300 / len(said)
    assert (
        prompt == haystack.trial(length, needle=NEEDLE, words=words, seed=(seed,)).prompt(depth)
    ).all()
    without = trial.prompt(None)
    assert len(without) == length - len(trial.needle)
    assert sentence.strip() not in tokenizer.decode(without[1:])


def test_who_copies_finds_and_who_sees_half_finds_half(haystack: Haystack, tokenizer: Any) -> None:
    given = config(depths=[0.0, 1.0], words=2)
    all_seeing = measure(Copier(tokenizer.vocab_size, 10**6), haystack, given, [200])
    assert [cell.found.estimate for cell in all_seeing] == [1.0, 1.0]
    assert all(cell.gain.low > 1 for cell in all_seeing)
    near = measure(Copier(tokenizer.vocab_size, 100), haystack, given, [200, 400])
    assert [cell.found.estimate for cell in near] == [0.0, 1.0, 0.0, 1.0]
    assert near[0].gain.estimate < 0.5 < near[1].gain.estimate
    assert "at no length" in summary(near)
    assert "100% of trials" in summary(all_seeing) and "up to 200 tokens" in summary(all_seeing)


def test_a_score_is_that_of_each_token_given_those_before(make_decoder: Any) -> None:
    model = make_decoder(context=64)
    prompt, answer = np.arange(5, 25), [7, 9, 11]
    nats, exact = score(model, prompt, answer)
    expected = []
    for count in range(3):
        ids = torch.tensor([[*prompt, *answer[:count]]])
        expected.append(model(ids)[0, -1].log_softmax(-1)[answer[count]].item())
    assert nats == pytest.approx(np.mean(expected), abs=1e-4)
    greedy, ids = [], torch.from_numpy(prompt)[None]
    for _ in range(3):
        greedy.append(int(model(ids)[0, -1].argmax()))
        ids = torch.cat((ids, torch.tensor([[greedy[-1]]])), 1)
    assert not exact and score(model, prompt, greedy)[1]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"samples": 0}, "at least 1"),
        ({"depths": [0.5, 1.5]}, "from 0"),
        ({"depths": []}, "from 0"),
        ({"lengths": [0]}, "from 1 up"),
        ({"needle": "{value} is the word of {key}"}, r"\{key\} and, after it"),
        ({"needle": "nothing"}, r"\{key\}"),
        ({"lengths": [12]}, "has no room"),
        ({"lengths": [10**7]}, "too few for a prompt"),
    ],
)
def test_settings_that_make_no_trial_are_one_line(
    given: dict[str, Any], told: str, tmp_path: Path, model_folder: Path
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    settings_ = {"samples": 1, "lengths": [80]} | given
    with pytest.raises(UserError, match=told):
        needle(
            NeedleConfig(model=str(model_folder), text=str(tmp_path / "text.txt"), **settings_),
            tmp_path / "report",
        )


@pytest.fixture
def model_folder(tmp_path: Path, make_decoder: Any, tokenizer: Any) -> Path:
    save_model(make_decoder(vocab_size=tokenizer.vocab_size, context=128), tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    return tmp_path / "model"


def test_the_stage_writes_a_page_and_its_figures(tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    given = NeedleConfig(
        model=str(model_folder),
        text=str(tmp_path / "text.txt"),
        needle="<script>{key}</script> {value}!",
        lengths=[64, 128],
        depths=[0.0, 0.5],
        samples=2,
    )
    needle(given, tmp_path / "report")
    cells = json.loads((tmp_path / "report/report.json").read_text())["cells"]
    assert [(cell["length"], cell["depth"]) for cell in cells] == [
        (64, 0.0),
        (64, 0.5),
        (128, 0.0),
        (128, 0.5),
    ]
    assert all(0 <= cell["found"]["low"] <= cell["found"]["high"] <= 1 for cell in cells)
    page = (tmp_path / "report/report.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "128 tokens" in page


def test_an_encoder_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    model = Model(
        ModelConfig.uniform(
            vocab_size=tokenizer.vocab_size,
            hidden_size=8,
            num_hidden_layers=1,
            mixer=AttentionConfig(
                num_attention_heads=1, num_key_value_heads=1, head_dim=8, causal=False
            ),
            feed_forward=MLPConfig(intermediate_size=8),
            head=LMHeadConfig(),
        )
    )
    model.reset_parameters()
    save_model(model, tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    (tmp_path / "text.txt").write_text(TEXT)
    with pytest.raises(UserError, match="fills gaps in a text"):
        needle(
            NeedleConfig(model=str(tmp_path / "model"), text=str(tmp_path / "text.txt")),
            tmp_path / "report",
        )


def test_a_text_of_few_words_is_refused(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="different words"):
        Haystack("one word after another " * 100, tokenizer)


@given(trials=st.integers(1, 500), part=st.floats(0, 1))
def test_the_ends_of_a_share_are_where_it_would_be_as_far_off(trials: int, part: float) -> None:
    successes = round(part * trials)
    found = share_interval(successes, trials)
    assert 0 <= found.low <= found.estimate <= found.high <= 1
    for end in (found.low, found.high):  # Wilson's condition: |share - p| = z * sqrt(p(1-p)/n)
        off = abs(found.estimate - end)
        assert off == pytest.approx(1.959964 * (end * (1 - end) / trials) ** 0.5, abs=1e-6)
