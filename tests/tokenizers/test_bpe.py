"""Byte-level BPE: the ids and merges of Hugging Face, and every byte string there and back."""

from __future__ import annotations

import random
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.tokenizers.bpe import BPETokenizer, merge_long
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.patterns import PATTERNS, split
from lmworks.tokenizers.train import SPECIAL_TOKENS, train_bpe

TEXTS = [text for _, text in sorted(topics.items())]
TRAIN, HELDOUT = TEXTS[::2], TEXTS[1::2]
VOCAB_SIZE = 1500


@pytest.fixture(scope="module")
def tokenizer() -> BPETokenizer:
    return train_bpe(TRAIN, vocab_size=VOCAB_SIZE)


def hard_strings(count: int) -> list[str]:
    """Held-out text, code, emoji, every byte, random Unicode, broken UTF-8, special tokens."""
    draw = random.Random(7)
    strings = [chr(i) for i in range(256)] + [
        bytes([i]).decode("utf-8", "replace") for i in range(256)
    ]
    strings += ["", " ", "\n\n\n", "   a  b ", "don't DON'T we'll", "\t\tif x:\n\t\t\treturn 1\n"]
    strings += [
        "👩‍👩‍👧 🇩🇪 e\u0301 ﷽ \U000e0041",
        "你好，世界 こんにちは мир ١٢٣ ½",
        "a\u00a0b\u2003c\u200bd\x1cx\x85y",
    ]
    strings += [f"x{token}y {token}" for token in SPECIAL_TOKENS] + [
        "<|im_start|",
        "<|endoftext|><|pad|>",
    ]
    while len(strings) < count:
        kind = draw.randrange(4)
        if kind == 0:
            text = draw.choice(HELDOUT)
            start = draw.randrange(len(text))
            strings.append(text[start : start + draw.randrange(1, 200)])
        elif kind == 1:
            size = draw.randrange(1, 20)
            strings.append("".join(chr(draw.choice(_PLANES)(draw)) for _ in range(size)))
        elif kind == 2:
            strings.append(draw.randbytes(draw.randrange(1, 40)).decode("utf-8", "replace"))
        else:
            strings.append("".join(draw.choices(" \n\t'ab1_.é🙂", k=draw.randrange(1, 30))))
    return strings


_PLANES = [
    lambda draw: draw.randrange(32, 127),
    lambda draw: draw.randrange(0x20, 0xD800),
    lambda draw: draw.randrange(0xE000, 0x110000),
    lambda draw: draw.randrange(0x1F300, 0x1F700),
]


def test_saved_tokenizer_gives_the_same_ids_in_transformers(
    tokenizer: BPETokenizer, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in hard_strings(10_000):
        ids = tokenizer.encode(text, allow_special=True)
        assert ids == theirs(text, add_special_tokens=False)["input_ids"], repr(text)
        assert tokenizer.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (0, 0, 3)


def test_save_and_load_keep_everything(tokenizer: BPETokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.vocabulary.tokens == tokenizer.vocabulary.tokens
    assert again.vocabulary.merges == tokenizer.vocabulary.merges
    assert again.chat_template == tokenizer.chat_template
    assert [again.encode(t) for t in HELDOUT[:5]] == tokenizer.encode_batch(HELDOUT[:5])
    other = tmp_path / "again"
    again.save(other)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (other / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_training_learns_the_merges_of_hugging_face(pattern: str) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    theirs = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Split(Regex(e), "isolated") for e in PATTERNS[pattern]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([*steps, byte_level])
    theirs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator(TRAIN[:30], trainer)
    ours = train_bpe(TRAIN[:30], vocab_size=900, pattern=pattern)
    for text in [*HELDOUT[:10], *hard_strings(900)]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids or any(
            token in text for token in SPECIAL_TOKENS
        )
    assert ours.vocab_size == theirs.get_vocab_size()


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=80))
def test_every_byte_string_comes_back(data: bytes) -> None:
    assert small().decode_bytes(small().encode(data)) == data


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_streamed_pieces_join_to_the_whole(text: str) -> None:
    ids = small().encode(text)
    assert small().decode(ids) == text.encode("utf-8", "replace").decode() or not text.isprintable()
    decoder = small().stream_decoder()
    pieces = [decoder.push(i) for i in ids] + [decoder.finish()]
    assert "".join(pieces) == small().decode(ids)
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in small().decode(ids)


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(alphabet="ab \nthe'ré1", max_size=80), pattern=st.sampled_from(sorted(PATTERNS))
)
def test_words_join_to_the_text(text: str, pattern: str) -> None:
    assert "".join(split(text, PATTERNS[pattern])) == text


_SMALL: list[BPETokenizer] = []


def small() -> BPETokenizer:
    if not _SMALL:
        _SMALL.append(train_bpe(TRAIN[:20], vocab_size=600))
    return _SMALL[0]


def test_one_long_word_merges_as_many_short_ones_would() -> None:
    ranks = small()._ranks
    draw = random.Random(3)
    for _ in range(50):
        word = "".join(draw.choices("aeiothnrs", k=draw.randrange(2, 150)))
        symbols = small()._first_symbols(word.encode())
        assert merge_long(symbols, ranks) == small()._merge(symbols)
    assert small().decode(small().encode("ab" * 200_000)) == "ab" * 200_000


def test_special_tokens_in_text_stay_text_unless_allowed(tokenizer: BPETokenizer) -> None:
    assert 2 not in tokenizer.encode("a<|im_end|>b")
    assert 2 in tokenizer.encode("a<|im_end|>b", allow_special=True)
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>b")) == "a<|im_end|>b"
    assert tokenizer.decode([2, 300], skip_special=True) == tokenizer.decode([300])


def test_the_same_text_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        train_bpe(TRAIN[:10], vocab_size=500).save(tmp_path / name)
    one, two = (tmp_path / name / "tokenizer.json" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 200}, "vocab_size = 200: at least 260 are needed"),
        ({"vocab_size": 500, "pattern": "gpt3"}, "unknown pattern 'gpt3': did you mean 'gpt2'"),
    ],
)
def test_bad_settings_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_bpe(["some text"], **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no text to learn"):
        train_bpe([], vocab_size=500)


def test_ids_outside_the_vocabulary_are_named(tokenizer: BPETokenizer) -> None:
    for wrong in (-1, VOCAB_SIZE):
        with pytest.raises(UserError, match=f"token id {wrong} is outside the vocabulary"):
            tokenizer.decode([wrong])
