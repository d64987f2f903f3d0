"""Byte-level BPE: the ids of Hugging Face, and every byte string there and back."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.merging import merge, merge_long
from lmworks.tokenizers.patterns import PATTERNS
from lmworks.tokenizers.pre_tokenizers import Cut, PreTokenizer
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.train import train_bpe

TEXTS = [text for _, text in sorted(topics.items())]
# 600 entries; module level, since Hypothesis calls a test many times with the same fixture.
TOKENIZER = train_bpe(TEXTS[:20], vocab_size=600)


def words_of(text: str, expressions: tuple[str, ...]) -> list[str]:
    return list(PreTokenizer(cuts=tuple(map(Cut, expressions))).words(text))


def test_saved_tokenizer_gives_the_same_ids_in_transformers(
    trained: PipelineTokenizer, hard: list[str], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    trained.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    fast = theirs.backend_tokenizer
    for allow_special in (True, False):
        fast.encode_special_tokens = not allow_special
        expected = fast.encode_batch(hard, add_special_tokens=False)
        for text, found in zip(hard, expected):
            ids = trained.encode(text, allow_special=allow_special)
            assert ids == found.ids, repr(text)
            assert trained.decode(ids) == text.encode("utf-8", "replace").decode()
    for text in hard[::20]:
        ids = trained.encode(text, allow_special=True)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"]
        assert trained.decode(ids) == theirs.decode(ids)
        expected = theirs.decode(ids, skip_special_tokens=True)
        assert trained.decode(ids, skip_special=True) == expected
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 0, 3)


def test_save_and_load_keep_everything(trained: PipelineTokenizer, tmp_path: Path) -> None:
    trained.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.vocabulary == trained.vocabulary
    assert again.encode_batch(TEXTS[1:9:2]) == trained.encode_batch(TEXTS[1:9:2])
    again.save(tmp_path / "again")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_every_character_is_cut_as_hugging_face_cuts_it(pattern: str) -> None:
    from tokenizers import Regex, pre_tokenizers

    steps = [pre_tokenizers.Split(Regex(e), "isolated") for e in PATTERNS[pattern]]
    theirs = pre_tokenizers.Sequence(steps)
    # Of the long runs of alike characters (Han, Hangul, private use) every 61st.
    dull = [(0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xF8FF)]
    dull += [(0x17000, 0x18CFF), (0x20000, 0x10FFFF)]
    for code in range(0x110000):
        if code % 61 and any(low <= code <= high for low, high in dull):
            continue
        character = chr(code)
        if unicodedata.category(character) in ("Cn", "Cs"):
            continue
        text = f"a{character}b1{character} .{character}{character}\n {character}"
        assert words_of(text, PATTERNS[pattern]) == [
            word for word, _ in theirs.pre_tokenize_str(text)
        ], hex(code)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=80))
def test_every_byte_string_comes_back(data: bytes) -> None:
    ids = TOKENIZER.encode(data)
    assert TOKENIZER.decode_bytes(ids) == data
    assert TOKENIZER.decode(ids) == data.decode("utf-8", "replace")


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_every_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    assert TOKENIZER.encode(text) == TOKENIZER.encode(text.encode())


def test_invalid_bytes_leave_the_words_around_them_whole() -> None:
    around = TOKENIZER.encode("the value")
    ids = TOKENIZER.encode(b"the value\xff\xfe\n")
    assert ids[: len(around)] == around
    assert TOKENIZER.decode_bytes(ids) == b"the value\xff\xfe\n"
    half = TOKENIZER.encode("a half \ud83d of a pair \udc80")
    assert TOKENIZER.decode(half).startswith("a half \ufffd")


ANY_IDS = st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=40)


@settings(max_examples=300, deadline=None)
@given(ids=ANY_IDS)
def test_streamed_pieces_join_to_the_whole(ids: list[int]) -> None:
    decoder = TOKENIZER.stream_decoder()
    pieces = [decoder.push(i) for i in ids] + [decoder.finish()]
    assert "".join(pieces) == TOKENIZER.decode(ids, skip_special=True)


def test_streaming_never_splits_a_character() -> None:
    text = "naïve 🙂 你好"
    decoder = TOKENIZER.stream_decoder()
    pieces = [decoder.push(i) for i in TOKENIZER.encode(text)]
    assert "".join(pieces) == text and decoder.finish() == ""
    assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(alphabet="ab \nthe'ré1", max_size=80), pattern=st.sampled_from(sorted(PATTERNS))
)
def test_words_join_to_the_text(text: str, pattern: str) -> None:
    words = list(words_of(text, PATTERNS[pattern]))
    assert "".join(words) == text and all(words)


def test_what_lies_between_matches_is_a_word() -> None:
    assert words_of("ab12cd", (r"[a-z]+",)) == ["ab", "12", "cd"]
    assert words_of("ab12cd", (r"([a-z])(\d)",)) == ["a", "b1", "2cd"]
    assert words_of("ab", (r"x*",)) == ["a", "b"]  # empty matches cut, as there
    assert words_of("ab", ()) == ["ab"] and words_of("", ()) == []


def test_one_long_word_merges_as_many_short_ones_would() -> None:
    ranks = TOKENIZER.vocabulary.model.ranked
    draw = random.Random(3)
    for _ in range(50):
        word = "".join(draw.choices("aeiothnrs", k=draw.randrange(2, 150)))
        symbols = [TOKENIZER.vocabulary.model.byte_ids[byte] for byte in word.encode()]
        assert merge_long(symbols, ranks) == merge(symbols, ranks)
    assert TOKENIZER.decode(TOKENIZER.encode("ab" * 200_000)) == "ab" * 200_000


def test_remembered_words_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmworks.tokenizers.tokenizer._CACHED_WORDS", 10)
    tokenizer = PipelineTokenizer(TOKENIZER.vocabulary)
    for number in range(100):
        text = f" w{number}"
        assert tokenizer.encode(text) == TOKENIZER.encode(text)
        assert len(tokenizer._words) <= 10


def test_special_tokens_in_text_stay_text_unless_allowed() -> None:
    text = "a<|im_end|>b"
    assert 2 not in TOKENIZER.encode(text)
    assert TOKENIZER.encode(text, allow_special=True).count(2) == 1
    assert TOKENIZER.encode(text.encode(), allow_special=True).count(2) == 1
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    assert TOKENIZER.decode([2, 300], skip_special=True) == TOKENIZER.decode([300])


def test_ids_outside_the_vocabulary_are_named() -> None:
    for wrong in (-1, TOKENIZER.vocab_size):
        with pytest.raises(UserError, match=f"token id {wrong} is outside the vocabulary of 600"):
            TOKENIZER.decode([wrong])
        with pytest.raises(UserError, match=f"token id {wrong} is outside"):
            TOKENIZER.stream_decoder().push(wrong)
