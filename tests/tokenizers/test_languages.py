"""Several languages: weights, parity-aware merges, what the stage says of each."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest

from lmworks.core.errors import UserError
from lmworks.tokenizers.languages import weights
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.train import TrainTokenizerConfig, train_tokenizer
from lmworks.tokenizers.trainers.fair import learn_fairly
from lmworks.tokenizers.word_counts import WordCounts

TEXTS = [text for _, text in sorted(topics.items())]
GREEK = str.maketrans("abcdefghijklmnopqrstuvwxyz", "αβψδεφγηιξκλμνοπϟρστθωςχυζ")
ENGLISH = [line for text in TEXTS[::3] for line in text.splitlines() if line.strip()]


def folder_of(folder: Path, **languages: list[str]) -> Path:
    folder.mkdir()
    for name, lines in languages.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def greek(lines: list[str]) -> list[str]:
    return [line.lower().translate(GREEK) for line in lines]


def test_weights_are_those_of_the_papers() -> None:
    sizes = {"en": 8000, "de": 1000, "sw": 10}
    for temperature in (1.0, 1 / 0.7, 1 / 0.3, 5.0):
        found = weights(sizes, temperature)
        drawn = {name: size * found[name] for name, size in sizes.items()}
        share = {name: size / sum(sizes.values()) for name, size in sizes.items()}
        wanted = {name: q ** (1 / temperature) for name, q in share.items()}
        for name in sizes:
            expected = wanted[name] / sum(wanted.values())
            assert drawn[name] / sum(drawn.values()) == pytest.approx(expected)
        assert found["en"] == 1
    with pytest.raises(UserError, match=r"temperature = 0.5: from 1"):
        weights(sizes, 0.5)


Words = list[tuple[list[str], int]]


def worst_language(states: list[Words], checks: list[tuple[Words, int]]) -> Counter[Any]:
    """The pairs, counted anew, of the language with the most tokens per unit."""
    costs = [sum(len(w) * n for w, n in words) / units for words, units in checks]
    for index in sorted(range(len(states)), key=lambda i: -costs[i]):
        counts: Counter[Any] = Counter()
        for word, number in states[index]:
            for pair in itertools.pairwise(word):
                counts[pair] += number
        if counts and max(counts.values()) >= 2:
            return counts
    return Counter()


def merge_everywhere(all_words: list[Words], pair: tuple[str, str]) -> None:
    for word, _ in itertools.chain.from_iterable(all_words):
        at = 0
        while at < len(word) - 1:
            if (word[at], word[at + 1]) == pair:
                word[at : at + 2] = ["".join(pair)]
            at += 1


def as_words(words: dict[str, int]) -> Words:
    return [(list(word), number) for word, number in words.items()]


def counted(lines: list[str]) -> dict[str, int]:
    return dict(Counter(word for line in lines for word in line.split()))


@pytest.mark.parametrize("own_text", [True, False])
def test_fair_merges_are_those_of_the_paper(own_text: bool) -> None:
    english, other = ENGLISH[:60], greek(ENGLISH[40:60])
    languages = [counted(english), counted(other)]
    dev = languages if own_text else [counted(ENGLISH[60:90]), counted(greek(ENGLISH[60:90]))]
    units = [60, 20] if own_text else [30, 30]
    states = [as_words(one) for one in languages]
    checks = states if own_text else [as_words(one) for one in dev]
    characters = sorted({c for one in (*languages, *dev) for word in one for c in word})
    ids = {c: i for i, c in enumerate(characters)}
    words = [characters_of(one, ids) for one in languages]
    measured = words if own_text else [characters_of(one, ids) for one in dev]
    tokens = [c.encode() for c in characters]
    merges = learn_fairly(
        words, list(zip(measured, units)), tokens, vocab_size=len(ids) + 90, min_frequency=2
    )
    assert len(merges) == 90
    for left, right in merges:
        pair = tokens[left].decode(), tokens[right].decode()
        counts = worst_language(states, list(zip(checks, units)))
        order = {token.decode(): i for i, token in enumerate(tokens)}
        assert pair == min(counts, key=lambda p: (-counts[p], order[p[0]], order[p[1]]))
        merge_everywhere([*states, *(checks if not own_text else [])], pair)


def test_fair_merges_are_those_of_hugging_face() -> None:
    """Theirs is always a most frequent pair of our worst language; ties go another way there."""
    from tokenizers.trainers import ParityBpeTrainer

    from tokenizers import Tokenizer, models, pre_tokenizers

    train, dev = [ENGLISH[:600], greek(ENGLISH[:100])], [ENGLISH[600:700], greek(ENGLISH[600:700])]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    trainer = ParityBpeTrainer(num_merges=100, show_progress=False)
    trainer.train_from_iterator(tokenizer, train_iterators=train, dev_iterators=dev)
    theirs = json.loads(tokenizer.to_str())["model"]["merges"]
    states, checks = ([as_words(counted(lines)) for lines in texts] for texts in (train, dev))
    for left, right in theirs:
        counts = worst_language(states, [(words, 100) for words in checks])
        assert counts[left, right] == max(counts.values())
        merge_everywhere([*states, *checks], (left, right))
    assert len(theirs) == 100


def characters_of(words: dict[str, int], ids: dict[str, int]) -> WordCounts:
    return WordCounts(
        np.array([ids[c] for word in words for c in word], dtype=np.int32),
        np.cumsum([len(word) for word in words], dtype=np.int64),
        np.array(list(words.values()), dtype=np.int64),
    )


def trained(tmp_path: Path, name: str, **options: Any) -> dict[str, Any]:
    config = TrainTokenizerConfig(vocab_size=900, **options)
    return train_tokenizer(config, tmp_path / name).metrics


def test_fair_training_is_fairer(tmp_path: Path) -> None:
    corpus = folder_of(tmp_path / "corpus", en=ENGLISH[:1500], el=greek(ENGLISH[:150]))
    lines = folder_of(tmp_path / "lines", en=ENGLISH[1500:1700], el=greek(ENGLISH[1500:1700]))
    options = {"corpus": str(corpus), "parallel": str(lines)}
    plain = trained(tmp_path, "plain", **options)
    fair = trained(tmp_path, "fair", fair=True, **options)
    warm = trained(tmp_path, "warm", temperature=5.0, **options)
    assert fair["worst_to_best"] < 1.05 < plain["worst_to_best"]
    assert fair["worst_to_best"] < warm["worst_to_best"] < plain["worst_to_best"]
    assert warm["weights"]["en"] == 1 < warm["weights"]["el"]
    tokenizer = load_tokenizer(tmp_path / "fair")
    text = (lines / "el.txt").read_text()
    found = fair["languages"]["el"]
    assert found["tokens_per_sentence"] == len(tokenizer.encode(text)) / 200
    assert found["bytes_per_token"] == len(text.encode()) / len(tokenizer.encode(text))


@pytest.mark.parametrize("kind", ["sentencepiece-bpe", "wordpiece"])
def test_fair_training_of_other_kinds(kind: str, tmp_path: Path) -> None:
    corpus = folder_of(tmp_path / "corpus", en=ENGLISH[:900], el=greek(ENGLISH[:90]))
    lines = folder_of(tmp_path / "lines", en=ENGLISH[900:1000], el=greek(ENGLISH[900:1000]))
    options = {"corpus": str(corpus), "parallel": str(lines), "model": kind}
    plain = trained(tmp_path, "plain", **options)
    fair = trained(tmp_path, "fair", fair=True, **options)
    costs = [made["languages"]["el"]["tokens_per_sentence"] for made in (fair, plain)]
    assert costs[0] < 0.95 * costs[1]
    assert fair["vocab_size"] == plain["vocab_size"] == 900


def test_languages_are_sub_folders_or_files(tmp_path: Path) -> None:
    corpus = folder_of(tmp_path / "corpus", en=ENGLISH[:50])
    (corpus / "el").mkdir()
    (corpus / "el" / "a.txt").write_text("\n".join(greek(ENGLISH[:20])))
    (corpus / "el" / "b.jsonl").write_text(json.dumps({"text": greek(ENGLISH[30:31])[0]}))
    (corpus / ".hidden").write_bytes(b"\xff")
    found = trained(tmp_path, "tok", corpus=str(corpus))
    assert list(found["languages"]) == ["el", "en"]
    assert "tokens_per_sentence" not in found["languages"]["el"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fair": True}, "fair needs several languages"),
        ({"temperature": 2.0}, "temperature needs several languages"),
        ({"several": True, "fair": True, "model": "unigram"}, "a Unigram vocabulary has no merges"),
        ({"several": True, "fair": True, "temperature": 2.0}, "leave out temperature"),
        ({"several": True, "temperature": 0.0}, "temperature = 0.0: from 1"),
        ({"several": True, "parallel": "wrong"}, "has nothing for the language 'el'"),
        ({"several": True, "parallel": "uneven"}, "not parallel line by line: el 3, en 2"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    lines = ["some text", "and more"]
    folder_of(tmp_path / "wrong", en=lines, de=lines)
    folder_of(tmp_path / "uneven", en=lines, el=[*lines, "x"])
    languages = {"en": lines, "el": lines} if options.pop("several", False) else {"en": lines}
    corpus = folder_of(tmp_path / "corpus", **languages)
    if "parallel" in options:
        options["parallel"] = str(tmp_path / options["parallel"])
    with pytest.raises(UserError, match=message):
        trained(tmp_path, "out", corpus=str(corpus), **options)


def test_a_language_without_text(tmp_path: Path) -> None:
    corpus = folder_of(tmp_path / "corpus", en=["some text"])
    (corpus / "de.txt").write_text("")
    with pytest.raises(UserError, match="the language 'de' has no text"):
        trained(tmp_path, "out", corpus=str(corpus))
