"""Curricula: nothing lost, nothing remembered, and what each of them promises."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.config import from_mapping
from lmworks.core.errors import UserError
from lmworks.data.documents import Document
from lmworks.training.curriculum.base import (
    OrderedWindows,
    Windows,
    paced,
    with_curriculum,
)
from lmworks.training.curriculum.config import MixtureConfig, PacingConfig
from lmworks.training.curriculum.difficulty import perplexity, prose_quality, quality
from lmworks.training.curriculum.mixture import parts_of, weights_over_time
from lmworks.training.curriculum.orders import GrowingPool, Mixture
from lmworks.training.pretrain import PretrainConfig
from lmworks.training.tokens import PackedWindows

VOCAB, SEPARATOR, LENGTH, ROWS = 50, 0, 16, 4


class Tokenizer:
    """Ids are given; only the separator and the size are asked for."""

    bos_token_id, eos_token_id, vocab_size = SEPARATOR, None, VOCAB


def document(number: int, source: str = "", text: str = "") -> Document:
    name = source or f"{'ab'[number % 2]}/{number}.md"
    return Document(
        id=str(number), group=f"g{number}", source=name, title="", text=text or "x" * 40
    )


def corpus(count: int = 30, size: int = 40) -> tuple[list[Document], np.ndarray]:
    """Document n says n + 1 over and over, so that a window tells where it is from."""
    pieces = [np.array([SEPARATOR, *[n % (VOCAB - 1) + 1] * size]) for n in range(count)]
    stream = np.concatenate([*pieces, [SEPARATOR]]).astype(np.int32)
    return [document(n) for n in range(count)], stream


def build(work: Path, num_steps: int = 60, reference: Path | None = None, **values: Any) -> Windows:
    documents, stream = corpus()
    given = {"corpus": "c", "tokenizer": "t", "context_length": LENGTH, "batch_size": ROWS}
    config = from_mapping(PretrainConfig, given | values)
    plain = PackedWindows(stream, context_length=LENGTH, batch_size=ROWS, seed=config.seed)
    work.mkdir(exist_ok=True)
    return with_curriculum(
        config,
        plain,
        lambda: documents,
        stream,
        Tokenizer(),  # type: ignore[arg-type]
        num_steps=num_steps,
        reference=reference,
        work=work,
    )


CURRICULA: list[dict[str, Any]] = [
    {"curriculum": "uniform"},
    {"curriculum": "length"},
    {"curriculum": "quality"},
    {"curriculum": "perplexity"},
    {"curriculum": "mixture", "mixture": {"weights": {"a": 1, "b": 3}, "final_weights": {"a": 1}}},
]


@pytest.mark.parametrize("values", CURRICULA, ids=lambda v: v["curriculum"])
def test_a_batch_depends_on_seed_and_step_alone(values: dict[str, Any], tmp_path: Path) -> None:
    one, other = build(tmp_path / "one", **values), build(tmp_path / "two", **values)
    batches = [one.windows(step) for step in range(60)]
    for step in (59, 3, 0, 41, 59):  # another process, begun anywhere
        np.testing.assert_array_equal(other.windows(step), batches[step])
    resumed = build(tmp_path / "one", **values)  # reads what the first one kept
    np.testing.assert_array_equal(resumed.windows(30), batches[30])
    seed = build(tmp_path / "three", seed=1, **values)
    assert any((seed.windows(step) != batches[step]).any() for step in range(3))
    assert one.windows(400).size == batches[59].size  # a batch left out asks for one beyond the end


@pytest.mark.parametrize("values", CURRICULA, ids=lambda v: v["curriculum"])
def test_every_step_has_as_many_targets(values: dict[str, Any], tmp_path: Path) -> None:
    windows = build(tmp_path / "work", **values)
    assert {windows(step).num_targets for step in range(60)} == {ROWS * LENGTH}


def test_short_rows_are_the_tokens_of_long_ones(tmp_path: Path) -> None:
    plain = build(tmp_path / "a")
    short = build(tmp_path / "b", curriculum="length", pacing={"start": 0.5, "share": 0.5})
    lengths = [short(step).input_ids.shape[1] for step in range(60)]
    assert lengths == [8] * 30 + [16] * 30
    for step in (0, 29, 30, 59):
        whole, cut = plain(step), short(step)
        for field in ("input_ids", "labels"):
            a, b = getattr(whole, field), getattr(cut, field)
            assert sorted(a.flatten().tolist()) == sorted(b.flatten().tolist())
        pairs = zip(whole.input_ids.flatten().tolist(), whole.labels.flatten().tolist())
        cut_pairs = zip(cut.input_ids.flatten().tolist(), cut.labels.flatten().tolist())
        assert Counter(pairs) == Counter(cut_pairs)


def test_quality_opens_the_worst_first_and_all_at_the_end(tmp_path: Path) -> None:
    scores = tmp_path / "scores.jsonl"
    # Document n has quality n, so that tokens rise as text gets better.
    rows = [json.dumps({"id": str(n), "score": n}) for n in range(30)]
    scores.write_text("\n".join(rows))
    values = {"curriculum": "quality", "pacing": {"start": 0.2, "share": 0.5}}
    windows = build(tmp_path / "up", reference=scores, **values)
    values["pacing"] |= {"reverse": True}  # type: ignore[operator]
    reverse = build(tmp_path / "down", reference=scores, **values)
    assert windows.windows(0).max() <= 0.25 * 30
    assert reverse.windows(0)[reverse.windows(0) > 0].min() >= 0.75 * 30
    steps = 18  # one epoch: 30 * 41 tokens in rows of 16, four a step
    epoch = build(tmp_path / "epoch", num_steps=steps, reference=scores, **values)
    seen = {int(token) for step in range(steps) for token in np.unique(epoch.windows(step))}
    assert len(seen) >= 30


def test_perplexity_begins_with_what_the_other_half_foretells(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    documents, pieces = [], []
    for number in range(40):
        documents.append(document(number))
        hard = number % 2 == 1
        body = random.integers(1, VOCAB, 40) if hard else np.tile([3, 7, 9, 4], 10)
        pieces.append(np.array([SEPARATOR, *body]))
    found = perplexity(documents, pieces, Tokenizer(), None)  # type: ignore[arg-type]
    assert found[::2].max() < found[1::2].min()
    # Chance takes log2(49) bits a token, here a byte, from whoever has not read the document.
    assert found[1::2].min() > 5
    same = [dataclasses.replace(d, group="one") for d in documents]
    with pytest.raises(UserError, match="--curriculum-reference"):
        perplexity(same, pieces, Tokenizer(), None)  # type: ignore[arg-type]


def test_prose_is_better_than_a_list_of_names_and_that_than_noise() -> None:
    prose = "The wind rose in the night.\nNobody slept, and the boats lay still until it fell.\n"
    names = "alpha\nbeta\ngamma\nalpha\nalpha\nalpha\nbeta\n"
    noise = "0x3f 9921 --- ### 77 *** 0x3f 0x3f 9921 9921\n" * 4
    assert prose_quality(prose) > prose_quality(names) > prose_quality(noise)
    assert prose_quality("") == 0
    assert 0 <= prose_quality(noise) <= prose_quality(prose) <= 1


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 60),
    rows=st.integers(1, 9),
    start=st.floats(0.05, 1.0),
    seed=st.integers(0, 9),
)
def test_a_growing_pool_draws_from_what_is_open_and_evenly(
    count: int, rows: int, start: float, seed: int
) -> None:
    num_steps = 4 * -(-count // rows)
    opened = paced(PacingConfig(start=start), num_steps)
    order = GrowingPool(count, rows, opened, seed)
    uses: Counter[int] = Counter()
    for step in range(num_steps):
        drawn = order.rows(step)
        open_now = max(rows, -int(-opened(step) * count // 1))
        assert all(place.window < max(open_now, 1) for place in drawn)
        if rows <= count:
            assert len({place.window for place in drawn}) == rows
        for place in drawn:
            if rows <= count:
                assert place.use == uses[place.window]
            uses[place.window] += 1
    # All open for the second half of four epochs: nobody is left behind.
    assert set(uses) == set(range(count))


def test_one_epoch_of_a_pool_that_opens_in_time_sees_every_window_once() -> None:
    count, rows = 120, 4
    order = GrowingPool(count, rows, paced(PacingConfig(start=0.2, share=0.5), 30), seed=3)
    drawn = [place.window for step in range(30) for place in order.rows(step)]
    assert sorted(drawn) == list(range(count))
    assert drawn != sorted(drawn)
    assert np.mean(drawn[: count // 3]) < 0.75 * np.mean(drawn[count // 3 :])


@settings(max_examples=40, deadline=None)
@given(
    raw=st.lists(st.integers(0, 9), min_size=2, max_size=5).filter(lambda w: sum(w) > 0),
    last=st.integers(0, 4),
    rows=st.integers(1, 8),
)
def test_a_mixture_is_kept_to_within_a_row(raw: list[int], last: int, rows: int) -> None:
    names = [f"s{n}" for n in range(len(raw))]
    mixture = MixtureConfig(
        weights=dict(zip(names, map(float, raw))),
        final_weights={names[last % len(names)]: 1.0},
    )
    weights = weights_over_time(mixture, dict.fromkeys(names, 100), 50)
    order = Mixture([7] * len(raw), rows, weights, seed=0)
    wanted, got = np.zeros(len(raw)), np.zeros(len(raw))
    for step in range(50):
        wanted += rows * weights(step)
        for place in order.rows(step):
            got[place.part] += 1
        assert np.abs(wanted - got).max() < 1.5
    assert weights(0) == pytest.approx(np.array(raw) / sum(raw))
    assert weights(49)[last % len(names)] == 1


def test_a_part_is_gone_through_before_it_is_met_again() -> None:
    order = Mixture([5, 9], 2, lambda step: np.array([0.5, 0.5]), seed=1)
    places = [place for step in range(10) for place in order.rows(step)]
    first = [place for place in places if place.part == 0]
    assert [p.use for p in first] == [0] * 5 + [1] * 5
    assert sorted(p.window for p in first[:5]) == sorted(p.window for p in first[5:]) == [*range(5)]


def test_what_is_drawn_comes_from_its_part(tmp_path: Path) -> None:
    windows = build(tmp_path / "w", curriculum="mixture", mixture={"weights": {"a": 1}})
    seen = {int(t) for step in range(60) for t in np.unique(windows.windows(step))}
    assert seen == {SEPARATOR, *range(1, 31, 2)}  # documents of even numbers say odd tokens


def test_times_and_temperature_of_a_mixture() -> None:
    sizes = {"big": 900, "small": 100}
    even = weights_over_time(MixtureConfig(temperature=1.0), sizes, 10)(0)
    flat = weights_over_time(MixtureConfig(temperature=2.0), sizes, 10)(0)
    assert even == pytest.approx([0.9, 0.1])
    assert flat == pytest.approx([0.75, 0.25])
    late = MixtureConfig(final_weights={"small": 1}, change_from=0.8, change_to=1.0)
    weights = weights_over_time(late, sizes, 11)
    assert weights(8) == pytest.approx([0.9, 0.1])
    assert weights(9) == pytest.approx([0.45, 0.55])
    assert weights(10) == pytest.approx([0, 1])
    at_once = dataclasses.replace(late, change_from=0.5, change_to=0.5)
    assert weights_over_time(at_once, sizes, 11)(5) == pytest.approx([0, 1])


def test_sources_are_groups_files_folders_and_the_rest() -> None:
    names = ["manual/a.md", "manual/b.md", "manually.md", "pydoc:io", "pydoc:io.text"]
    documents = [document(n, name) for n, name in enumerate(names)]

    def found(*weights: str) -> dict[str, list[int]]:
        return parts_of(documents, MixtureConfig(weights=dict.fromkeys(weights, 1.0)))

    assert found("manual", "*") == {"manual": [0, 1], "*": [2, 3, 4]}
    assert found("manual", "manual/b.md", "pydoc:io", "*") == {
        "manual": [0],
        "manual/b.md": [1],
        "pydoc:io": [3, 4],
        "*": [2],
    }
    assert found("g3", "pydoc:") == {"g3": [3], "pydoc:": [4]}
    assert list(found()) == ["manual", "manually.md", "pydoc"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mixture": {"weights": {"a": 0, "b": 0}}}, "mixture.weights sum to 0"),
        ({"mixture": {"weights": {"a": 1, "b": -1}}}, "b = -1.0; a weight is 0 or more"),
        ({"mixture": {"weights": {"a/3.mx": 1, "*": 1}}}, "did you mean 'a/2.md'|the largest are"),
        ({"mixture": {"weights": {"a": 1}, "temperature": 2}}, "temperature says nothing beside"),
        ({"mixture": {"temperature": 0}}, "temperature = 0"),
        ({"mixture": {"change_from": 0.9, "change_to": 0.1}}, "change_from = 0.9"),
        ({"curriculum": "uniform", "mixture": {"weights": {"a": 1}}}, "without --curriculum mix"),
        ({"curriculum_reference": "x"}, "says nothing to --curriculum mixture"),
        ({"curriculum": "quality", "pacing": {"start": 0}}, "pacing.start = 0"),
        ({"curriculum": "length", "pacing": {"reverse": True}}, "lengths only grow"),
    ],
)
def test_what_makes_no_sense_is_said(values: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        build(tmp_path / "w", **({"curriculum": "mixture"} | values))


def test_scores_that_are_missing_or_none_are_named(tmp_path: Path) -> None:
    documents, _ = corpus(3)
    path = tmp_path / "scores.jsonl"
    for text, message in (
        (
            '{"id": "0", "score": 1}\n{"id": "1", "score": 2}',
            "no score for 1 of 3 documents, the f",
        ),
        ('{"id": "0", "score": 1}\n{"id": "1"}', "line 2: not"),
        ('{"id": "0", "score": NaN}', "line 1: the score of 0 is nan"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            quality(documents, path)


def test_a_source_shorter_than_a_window_is_named() -> None:
    with pytest.raises(UserError, match="tiny has 9 tokens, fewer than one window of 17"):
        OrderedWindows(np.zeros(109), [100, 109], names=["big", "tiny"], context_length=16, seed=0)
