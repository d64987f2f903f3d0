"""What pre-training objectives ask: properties of the questions, whatever the text."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.training.batches import IGNORED
from lmworks.training.objectives.base import build_objective
from lmworks.training.objectives.masked import MaskedLM
from lmworks.training.objectives.permutation import PermutationLM, drawn_order, two_streams
from lmworks.training.objectives.prefix import PrefixLM
from lmworks.training.objectives.replaced_token import ReplacedToken
from lmworks.training.objectives.span_corruption import SourceBatch, SpanCorruption
from lmworks.training.objectives.text import TokenFacts

VOCAB, SEPARATOR, MASK, SENTINELS = 60, 0, 1, tuple(range(40, 60))
SPECIAL = np.isin(np.arange(VOCAB), [SEPARATOR, MASK, *SENTINELS])
FACTS = TokenFacts(
    special=SPECIAL,
    separator=SEPARATOR,
    mask_id=MASK,
    sentinels=SENTINELS,
    word_begins=np.arange(VOCAB) % 3 > 0,
    word_ends=np.arange(VOCAB) % 5 > 0,
)
APART = dataclasses.replace(FACTS, apart=True)


@st.composite
def texts(draw: Any, least: int = 8) -> np.ndarray:
    """Windows (B, T + 1) with separators in them; sentinels and masks are in no text."""
    rows, length = draw(st.integers(1, 4)), draw(st.integers(least, 48))
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    ids = random.integers(2, 40, (rows, length + 1))
    ids[random.random(ids.shape) < draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))] = SEPARATOR
    return ids


seeds = st.integers(0, 10_000)
FEW = settings(max_examples=80, deadline=None)


@given(texts(), seeds, st.booleans(), st.sampled_from([0.15, 0.5, 1.0]))
@FEW
def test_masks_touch_text_alone(ids: np.ndarray, seed: int, words: bool, share: float) -> None:
    objective = MaskedLM(share=share, whole_words=words)
    batch = objective.corrupt(ids, np.random.default_rng(seed), FACTS)
    text = torch.from_numpy(ids[:, :-1])
    chosen = batch.labels != IGNORED
    assert torch.equal(batch.labels[chosen], text[chosen])
    assert torch.equal(batch.input_ids[~chosen], text[~chosen])
    assert not SPECIAL[text[chosen]].any()
    put_in = batch.input_ids[chosen]
    assert not SPECIAL[put_in[put_in != MASK]].any()
    wanted = max(1, round(share * text.shape[1]))
    plain = (~SPECIAL[text]).sum(axis=1)
    if not words:
        assert chosen.sum(1).tolist() == np.minimum(wanted, plain).tolist()
    else:
        numbers = torch.from_numpy(FACTS.words(ids[:, :-1]))
        for row in range(len(text)):
            touched = numbers[row][chosen[row]].unique()
            # The last word that fits may be the only one, and then larger than its share.
            assert int(chosen[row].sum()) <= wanted or len(touched) == 1
            assert chosen[row].any() == bool(plain[row])
            whole = torch.isin(numbers[row], touched)
            assert torch.equal(whole, chosen[row])
    again = objective.corrupt(ids, np.random.default_rng(seed), FACTS)
    assert torch.equal(again.input_ids, batch.input_ids)


@given(texts(), seeds, st.sampled_from([1 / 6, 0.5, 1.0]), st.booleans())
@FEW
def test_every_order_asks_for_each_token_once_and_never_gives_it_away(
    ids: np.ndarray, seed: int, share: float, apart: bool
) -> None:
    facts = APART if apart else FACTS
    batch = PermutationLM(share=share).corrupt(ids, np.random.default_rng(seed), facts)
    text = torch.from_numpy(ids[:, :-1])
    length = text.shape[1]
    assert torch.equal(batch.input_ids[:, :length], text)
    assert (batch.input_ids[:, length:] == MASK).all()
    assert (batch.labels[:, :length] == IGNORED).all()
    asked = batch.labels[:, length:] != IGNORED
    wanted = max(1, round(share * length))
    assert asked.sum(1).tolist() == np.minimum(wanted, (~SPECIAL[text]).sum(axis=1)).tolist()
    documents = facts.documents(ids[:, :-1])
    visible = batch.inputs["visible"]
    order = drawn_order(ids[:, :-1], np.random.default_rng(seed), facts, share=share)
    for row in range(len(text)):
        ranks = sorted(order[row][order[row] > 0])
        assert ranks == list(range(1, len(ranks) + 1))
        # Whatever any number of layers could carry there: the closure of who looks at whom.
        reach = visible[row].float()
        for _ in range(6):
            reach = ((reach @ reach) > 0).float()
        places = _places(order[row], asked.shape[1])
        assert len(set(places)) == len(places)
        for question in range(asked.shape[1]):
            seen = reach[length + question, :length] > 0
            place = places[question]
            if not asked[row, question]:
                continue
            assert batch.labels[row, length + question] == text[row, place]
            assert not seen[place]
            before = order[row] < order[row][place]
            if apart:
                before &= documents[row] == documents[row][place]
            assert torch.equal(seen, torch.from_numpy(before))
        assert not (reach[:length, length:] > 0).any()  # nobody looks at a question
    told = batch.inputs["positions"]
    if not apart:
        assert torch.equal(told[:, :length], torch.arange(length).expand(len(text), -1))


def _places(order: np.ndarray, count: int) -> list[int]:
    """The places of the questions, left to right; a row that has fewer takes others to fill up."""
    asked = [i for i, rank in enumerate(order) if rank]
    rest = [i for i, rank in enumerate(order) if not rank]
    return sorted(asked + rest[: count - len(asked)])


def test_the_first_of_an_order_looks_at_its_own_question() -> None:
    order = np.array([[2, 1, 3]])
    batch = two_streams(np.array([[5, 6, 7]]), order, FACTS)
    assert batch.inputs["visible"][0, 3:].int().tolist() == [
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 0],
    ]
    assert batch.inputs["visible"][0, :3, :3].int().tolist() == [[1, 1, 0], [0, 1, 0], [1, 1, 1]]


@given(texts(), seeds)
@FEW
def test_beginnings_are_read_both_ways_and_not_asked_for(ids: np.ndarray, seed: int) -> None:
    batch = PrefixLM().corrupt(ids, np.random.default_rng(seed), FACTS)
    length = ids.shape[1] - 1
    for row in range(len(ids)):
        first = int((batch.labels[row] == IGNORED).sum())  # labels before the first that counts
        assert batch.labels[row, first:].tolist() == ids[row, first + 1 :].tolist()
        prefix = first + 1
        expected = torch.ones(length, length).tril().bool()
        expected[:, :prefix] = True
        assert torch.equal(batch.inputs["visible"][row], expected)


def restored(source: list[int], answer: list[int]) -> list[int]:
    """The text of a corrupted one: each sentinel replaced by what the answer says of it."""
    spans: dict[int, list[int]] = {}
    for token in answer:
        if token in SENTINELS:
            spans[token] = []
            last = token
        else:
            spans[last].append(token)
    return [t for token in source for t in spans.get(token, [token])]


@given(texts(), seeds, st.sampled_from([0.15, 0.3, 0.5]), st.sampled_from([1.0, 3.0, 8.0]))
@FEW
def test_spans_can_be_put_back(ids: np.ndarray, seed: int, share: float, mean: float) -> None:
    objective = SpanCorruption(share=share, mean_span=mean)
    length = ids.shape[1] - 1
    taken, spans = objective.counts(length)
    if spans > len(SENTINELS):
        with pytest.raises(UserError, match=f"{spans} spans need as many sentinels, .* has 20"):
            objective.corrupt(ids, np.random.default_rng(seed), FACTS)
        return
    batch = objective.corrupt(ids, np.random.default_rng(seed), FACTS)
    assert isinstance(batch, SourceBatch)
    assert batch.source_ids.shape == (len(ids), length - taken + spans + 1)
    assert batch.labels.shape == (len(ids), taken + spans + 1)
    for row in range(len(ids)):
        source, answer = batch.source_ids[row].tolist(), batch.labels[row].tolist()
        assert source[-1] == answer[-1] == SEPARATOR
        assert batch.input_ids[row].tolist() == [SEPARATOR, *answer[:-1]]
        assert [t for t in answer if t in SENTINELS] == list(SENTINELS[:spans])
        assert restored(source[:-1], answer[:-1]) == ids[row, :-1].tolist()


@given(texts(least=12), seeds, st.booleans())
@FEW
def test_a_decoder_gets_text_and_answer_in_its_context(
    ids: np.ndarray, seed: int, both_ways: bool
) -> None:
    objective = SpanCorruption(both_ways=both_ways).for_architecture("decoder")
    context = ids.shape[1] - 1
    batch = objective.corrupt(ids, np.random.default_rng(seed), FACTS)
    text = objective.text_length(context)
    taken, spans = objective.counts(text)
    assert context - 3 <= batch.input_ids.shape[1] <= context
    assert int((batch.labels != IGNORED).sum()) == len(ids) * (taken + spans + 1)
    for row in range(len(ids)):
        seen, labels = batch.input_ids[row].tolist(), batch.labels[row].tolist()
        cut = text - taken + spans
        answer = labels[cut - 1 :]
        assert seen[cut:] == answer[:-1]
        assert restored(seen[:cut], answer[:-1]) == ids[row, :text].tolist()
    assert ("visible" in batch.inputs) == both_ways
    if both_ways:
        assert batch.inputs["visible"][:, :cut, :cut].all()
        assert not batch.inputs["visible"][:, :cut, cut:].any()


@given(texts(), seeds)
@FEW
def test_what_a_generator_gets(ids: np.ndarray, seed: int) -> None:
    batch = ReplacedToken().corrupt(ids, np.random.default_rng(seed), FACTS)
    chosen = batch.labels != IGNORED
    assert (batch.input_ids[chosen] == MASK).all()
    assert batch.noise.shape == batch.labels.shape
    assert ((batch.noise >= 0) & (batch.noise < 1)).all()
    half = ReplacedToken(share=1.0, mask_share=0.5).corrupt(ids, np.random.default_rng(1), FACTS)
    assert torch.equal(half.labels.where(half.labels != IGNORED, half.input_ids), _text(ids))


def _text(ids: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(ids[:, :-1])


@given(texts(), seeds)
@FEW
def test_documents_are_told_where_they_are_apart(ids: np.ndarray, seed: int) -> None:
    for name in ("masked", "prefix", "replaced_token"):
        objective: Any = build_objective(name)
        batch = objective.corrupt(ids, np.random.default_rng(seed), APART)
        assert torch.equal(batch.inputs["documents"], (_text(ids) == SEPARATOR).cumsum(1))
    with pytest.raises(UserError, match="packing=stream"):
        SpanCorruption().corrupt(ids, np.random.default_rng(seed), APART)


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("masked", {"share": 0}, "share = 0"),
        ("masked", {"share": 1.5}, "share = 1.5"),
        ("masked", {"mask_share": 0.9, "random_share": 0.2}, "not above 1 together"),
        ("permutation", {"share": -1}, "share = -1"),
        ("replaced_token", {"temperature": 0}, "temperature = 0"),
        ("replaced_token", {"generator_size": 2}, "generator_size = 2"),
        ("span_corruption", {"mean_span": 0.5}, "mean_span = 0.5"),
        ("span_corruption", {"share": 0.95}, "share = 0.95"),
        ("span_corruption", {"mean": 3}, "unknown key 'mean'.*mean_span"),
    ],
)
def test_settings_that_make_no_sense(name: str, values: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        build_objective(name, values)


def test_a_window_too_short_for_spans() -> None:
    with pytest.raises(UserError, match="too short to take spans out"):
        SpanCorruption().text_length(1)
