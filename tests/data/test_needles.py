"""Corpora with a sentence to find in every passage."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.data.documents import Document, read_documents, write_documents
from lmworks.data.needles import PlantNeedlesConfig, draw_needle, needle_words, plant_needles

TEXTS = [text for _, text in sorted(topics.items())[:12]]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for part, texts in (("train", TEXTS[:8]), ("heldout", TEXTS[8:])):
        rows = [
            Document(id=f"{part}{i}", group=f"g{i}", source="s", title="t", text=text)
            for i, text in enumerate(texts)
        ]
        write_documents(folder / f"{part}.jsonl", rows)
    return folder


def test_every_passage_says_its_value_twice_and_nothing_else_changes(
    corpus: Path, tmp_path: Path
) -> None:
    config = PlantNeedlesConfig(corpus=str(corpus), characters=400, words=2)
    plant_needles(config, tmp_path / "out")
    for part in ("train", "heldout"):
        whole = {d.title: d for d in read_documents(corpus / f"{part}.jsonl")}
        texts = [d.text for d in read_documents(corpus / f"{part}.jsonl")]
        planted = list(read_documents(tmp_path / "out" / f"{part}.jsonl"))
        assert len(planted) == sum(len(text) // 400 for text in texts)
        assert len({d.id for d in planted}) == len(planted) and whole
        places = set()
        for document in planted:
            sentence = document.text.rsplit("\n", 1)[1]
            assert sentence.startswith("The secret word of ") and sentence.endswith(".")
            assert document.text.count(sentence) == 2
            before, after = document.text.removesuffix(f"\n{sentence}").split(f"\n{sentence}\n")
            assert any(before + after in text for text in texts)
            assert len(before + after) == 400
            places.add(len(before))
        assert len(places) > 3


def test_lengths_are_drawn_evenly_on_a_logarithmic_scale(corpus: Path, tmp_path: Path) -> None:
    config = PlantNeedlesConfig(corpus=str(corpus), characters=1600, shortest=100)
    plant_needles(config, tmp_path / "out")
    texts = [d.text for d in read_documents(corpus / "train.jsonl")]
    lengths = []
    for document in read_documents(tmp_path / "out" / "train.jsonl"):
        sentence = document.text.rsplit("\n", 1)[1]
        passage = document.text.removesuffix(f"\n{sentence}").replace(f"\n{sentence}\n", "")
        assert any(passage in text for text in texts)
        lengths.append(len(passage))
    assert min(lengths) >= 100
    assert max(lengths) <= 1600
    assert 300 < np.median(lengths) < 540  # 400 is the middle of the scale


def test_the_same_seed_gives_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    made = []
    for number, seed in enumerate((1, 1, 2)):
        config = PlantNeedlesConfig(corpus=str(corpus), characters=500, seed=seed)
        plant_needles(config, tmp_path / str(number))
        made.append((tmp_path / str(number) / "train.jsonl").read_bytes())
    assert made[0] == made[1] != made[2]


@given(st.integers(1, 5), st.integers(0, 99))
def test_a_key_is_no_part_of_its_value(num_words: int, seed: int) -> None:
    words = needle_words(TEXTS)
    random = np.random.default_rng(seed)
    before, value, behind = draw_needle(random, "a {key} b {value} c {key}", words, num_words)
    key = before.removeprefix("a ").removesuffix(" b ")
    assert key in words and behind == f" c {key}"
    assert len(set(value.split()) | {key}) == num_words + 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"characters": 0}, "at least 1"),
        ({"words": 0}, "at least 1"),
        ({"shortest": 3000}, "from 0 to --characters"),
        ({"needle": "no place"}, "must hold"),
        ({"characters": 10**7}, "no document of train"),
    ],
)
def test_settings_that_plant_nothing_are_one_line(
    changes: dict[str, object], told: str, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told):
        plant_needles(PlantNeedlesConfig(corpus=str(corpus), **changes), tmp_path / "out")


def test_a_corpus_of_few_words_is_refused() -> None:
    with pytest.raises(UserError, match="different words"):
        needle_words(["a few words only"])
