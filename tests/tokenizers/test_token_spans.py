"""Spans of a part of a text are those that `encode_offsets` gives for the whole."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.tokenizers import token_spans, vocab_txt
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.token_spans import IndexedText, TokenizedText, joined_ids, units_of
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.train import train_bpe

PROSE = "\n".join(topics[name] for name in sorted(topics))[:60_000]
MIXED = (
    PROSE[:9000]
    + "\n\n\n   Grüße — naïve cafe\u0301\n日本語のテキスト。これは長い文章です。\nمرحبا بالعالم\n"
    + "👩‍👩‍👧 🇩🇪 e\u0301\u0302 ½ ﬁ \t\ttabs <|endoftext|> <think>\n"
    + PROSE[9000:20_000]
    + "日本語" * 3000
    + "x" * 9000
    + "  \n\n"
)


def _unigram(folder: Path, normalizer: dict[str, object] | None) -> PipelineTokenizer:
    characters = sorted({c for c in PROSE if c.isalnum()} | set(".,:()"))
    words = ["▁the", "▁a", "▁is", "ing", "tion", "▁statement", "▁of", "er", "▁"]
    vocab = [["<unk>", 0.0]] + [[word, -3.0] for word in words] + [[c, -6.0] for c in characters]
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    data = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": space,
        "post_processor": None,
        "decoder": space,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": False},
    }
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[str, PipelineTokenizer]:
    squeeze = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    words = ["[UNK]", *sorted({w.lower() for w in PROSE.split() if w.isalpha()})[:3000]]
    letters = [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"] + list("abcdefghijklmnopqrstuvwxyz")
    return {
        "bytes": train_bpe([PROSE], vocab_size=900),
        "unigram": _unigram(tmp_path_factory.mktemp("u"), None),
        "squeezing": _unigram(tmp_path_factory.mktemp("s"), squeeze),
        "wordpiece": PipelineTokenizer(vocab_txt.from_texts([*words, *letters], lowercase=True)),
    }


KINDS = ["bytes", "unigram", "squeezing", "wordpiece"]


def _tokens(units):  # gaps may be cut where sections meet
    return [unit for unit in units if unit.ids]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [MIXED, " leading", "", "\n\n", "x", PROSE[:5000] * 3])
def test_the_whole_text(tokenizers, kind, text):
    tokenizer = tokenizers[kind]
    found = TokenizedText(tokenizer, IndexedText(text))
    ids, spans = tokenizer.encode_offsets(text)
    assert found.ids.tolist() == ids
    units = found.units(0, len(text))
    assert joined_ids(units) == ids
    assert _tokens(units) == _tokens(units_of(ids, spans, 0, len(text)))
    assert "".join(text[unit.start : unit.end] for unit in units) == text
    assert found.verbatim or kind != "bytes"


@pytest.fixture(scope="module")
def mixed(tokenizers):
    """MIXED under each, and all its units."""
    texts = {kind: TokenizedText(made, IndexedText(MIXED)) for kind, made in tokenizers.items()}
    return {kind: (text, text.units(0, len(MIXED))) for kind, text in texts.items()}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, len(MIXED)), size=st.integers(1, 2000))
def test_a_part_is_the_part_of_the_whole(mixed, kind, start, size):
    found, whole = mixed[kind]
    expected = [u for u in whole if u.end > start and u.start < start + size]
    assert found.units(start, start + size) == expected


def test_a_long_text_is_read_in_sections(tokenizers, monkeypatch):
    read = []
    tokenizer = tokenizers["squeezing"]
    true = tokenizer.encode_offsets
    monkeypatch.setattr(
        tokenizer, "encode_offsets", lambda text, **o: (read.append(len(text)), true(text, **o))[1]
    )
    found = TokenizedText(tokenizer, IndexedText(PROSE))
    found.units(30_000, 30_100)
    assert 0 < sum(read) < 3 * token_spans._SECTION


@pytest.mark.parametrize("kind", KINDS)
def test_sections_within_a_word(tokenizers, kind, monkeypatch):
    monkeypatch.setattr(token_spans, "_SECTION", 64)
    tokenizer, text = tokenizers[kind], "a  is " + "日" * 3000 + " the statement\n" + PROSE[:2000]
    ids, spans = tokenizer.encode_offsets(text)
    units = TokenizedText(tokenizer, IndexedText(text)).units(0, len(text))
    assert _tokens(units) == _tokens(units_of(ids, spans, 0, len(text)))


def test_tokens_that_reach_across_characters():
    # Many characters that end with the byte a5, before many that begin with e6: a5 e6 is a token.
    text = "".join(chr(0x4E25 + 64 * n) + chr(0x6000 + 5 * n) for n in range(200))
    tokenizer = train_bpe([text], vocab_size=264)
    found = TokenizedText(tokenizer, IndexedText(text))
    assert b"\xa5\xe6" in tokenizer.vocabulary.tokens and found.verbatim
    whole = found.units(0, len(text))
    assert whole == units_of(*tokenizer.encode_offsets(text), 0, len(text))
    for start in range(0, 60):
        part = found.units(start, start + 2)
        assert part == [u for u in whole if u.end > start and u.start < start + 2]


def test_a_text_that_no_section_fits_is_read_whole(tokenizers, monkeypatch):
    tokenizer = tokenizers["squeezing"]
    monkeypatch.setattr(token_spans, "_SECTION", 64)
    found = TokenizedText(tokenizer, IndexedText(PROSE[:2000]))
    monkeypatch.setattr(TokenizedText, "_next_section", _only_the_whole)
    assert _tokens(found.units(0, 2000)) == _tokens(
        units_of(*tokenizer.encode_offsets(PROSE[:2000]), 0, 2000)
    )


def _only_the_whole(self, start, token, size):
    whole = start == 0 and size >= len(self.source.text)
    return self._fitting(0, len(self.source.text), 0) if whole else None


def test_special_tokens_are_read_on_request(tokenizers):
    tokenizer = tokenizers["bytes"]
    name = next(iter(tokenizer.special_tokens))
    text = IndexedText(f"a {name} b")
    plain, read = (TokenizedText(tokenizer, text, allow_special=a) for a in (False, True))
    special = tokenizer.special_tokens[name]
    assert special not in plain.ids and special in read.ids
    unit = next(unit for unit in read.units(0, 99) if unit.ids == (special,))
    assert text.text[unit.start : unit.end] == name


def test_tokens_that_share_a_character_are_one_unit(tokenizers):
    found = TokenizedText(tokenizers["bytes"], IndexedText("a🙂b"))
    assert [(u.start, u.end) for u in found.units(0, 3)] == [(0, 1), (1, 2), (2, 3)]
    assert len(found.units(1, 2)[0].ids) == 4
