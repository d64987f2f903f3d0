"""Every kind of vocabulary in GGUF, both ways: equal after a round trip, ids as llama.cpp's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from lmworks.core.errors import UserError
from lmworks.core.gguf import write_gguf
from lmworks.tokenizers.gguf import from_metadata
from lmworks.tokenizers.gguf_patterns import NAMES
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.sentencepiece import from_bytes
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.train import train_bpe
from lmworks.tokenizers.vocab_txt import from_texts

LlamaCpp = Callable[[dict[str, Any]], Any]
TEXTS = [text for _, text in sorted(topics.items())]
PLAIN = [
    *("Hello, world! It's 2024-01-31, isn't it?", "  two  spaces \n\n\n and\ttabs \r\n", ""),
    *(
        "naïve café — Grüße, 日本語のテキスト 你好",
        "мир и война 12345 67",
        "def f(x):\n    return x",
    ),
    *("<sep>the other</sep> <sep> x", "a 🙂 b 🇩🇪", "don't WE'LL I'm", "x\n\n\n\n\ny", "...!!!???"),
]
SYMBOLS = ["<sep>", "</sep>", "▁▁", "▁▁▁▁", "\n", "\n\n", "\n\n\n"]


def sentencepiece_model(folder: Path, kind: str, **options: Any) -> bytes:
    """A model of 600 pieces."""
    import sentencepiece

    (folder / "corpus.txt").write_text("\n".join(TEXTS[:20]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / kind),
        vocab_size=600,
        model_type=kind,
        minloglevel=2,
        **options,
    )
    return (folder / f"{kind}.model").read_bytes()


def there_and_back(tokenizer: PipelineTokenizer, folder: Path) -> PipelineTokenizer:
    write_gguf(folder / "model.gguf", tokenizer.gguf_metadata(), {})
    return load_tokenizer(folder / "model.gguf")


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("symbols", [[], SYMBOLS])
def test_bpe_by_scores(
    tmp_path: Path, llama_cpp: LlamaCpp, hard: list[str], prefix: bool, symbols: list[str]
) -> None:
    data = sentencepiece_model(
        tmp_path,
        "bpe",
        byte_fallback=True,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=symbols,
    )
    ours = PipelineTokenizer(from_bytes(data))
    again = there_and_back(ours, tmp_path)
    assert dataclasses.replace(again.vocabulary, post_processor=None) == ours.vocabulary
    assert again.gguf_metadata() == ours.gguf_metadata() | {"tokenizer.ggml.add_bos_token": False}
    texts = [*PLAIN, *hard[::40]]
    assert again.encode_batch(texts) == ours.encode_batch(texts)
    theirs = llama_cpp(again.gguf_metadata())
    # It puts a space after every user-defined token, which SentencePiece doesn't.
    asked = (
        PLAIN if not (prefix and symbols) else [t for t in PLAIN if not any(map(t.count, SYMBOLS))]
    )
    assert len(asked) > 5
    for text in asked:
        assert theirs.encode(text) == again.encode(text), text


def test_unigram(tmp_path: Path, llama_cpp: LlamaCpp, hard: list[str]) -> None:
    ours = PipelineTokenizer(from_bytes(sentencepiece_model(tmp_path, "unigram")))
    again = there_and_back(ours, tmp_path)
    assert again.vocabulary.normalizer == ours.vocabulary.normalizer
    texts = [*PLAIN, *hard[::40]]
    assert again.encode_batch(texts) == ours.encode_batch(texts)
    theirs = llama_cpp(again.gguf_metadata())
    for text in texts:
        if max(text, default="") < "\ud800" or max(text) > "\udfff":
            assert theirs.encode(text) == again.encode(text), text


@pytest.mark.parametrize("lowercase", [True, False])
def test_word_piece(tmp_path: Path, llama_cpp: LlamaCpp, hard: list[str], lowercase: bool) -> None:
    texts = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    texts += ["the", "cat", "Hello", "world", "it", "is"]
    texts += [*"abcdefghijklmnopqrstuvwxyz,.!?'0123456789", *(f"##{c}" for c in "abcdest"), "##ing"]
    ours = PipelineTokenizer(from_texts(texts, lowercase=lowercase))
    again = there_and_back(ours, tmp_path)
    assert again.vocabulary == ours.vocabulary
    assert again.encode_batch(hard[::40]) == ours.encode_batch(hard[::40])
    theirs = llama_cpp(ours.gguf_metadata())
    for text in ["the cats!", "Hello, WORLD?", "thing é 日本", "it's 12 [CLS]", ""]:
        assert theirs.encode(text) == again.encode(text)
        special = again.encoding(text, allow_special=False).ids
        assert theirs.encode(text, add_special=True) == special


def test_bpe_by_merges_over_characters(tmp_path: Path, llama_cpp: LlamaCpp) -> None:
    data = sentencepiece_model(
        tmp_path,
        "bpe",
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=SYMBOLS[:2] + SYMBOLS[4:],
    )
    by_scores = PipelineTokenizer(from_bytes(data))
    texts = by_scores.vocabulary.texts
    metadata = by_scores.gguf_metadata() | {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.merges": [
            f"{texts[a]} {texts[b]}"
            for a, b in by_scores.vocabulary.model.merges  # type: ignore[union-attr]
        ],
    }
    del metadata["tokenizer.ggml.scores"], metadata["tokenizer.ggml.add_space_prefix"]
    ours = PipelineTokenizer(from_metadata(metadata))
    assert ours.gguf_metadata() == metadata
    theirs = llama_cpp(metadata)
    for text in PLAIN:
        assert ours.encode(text) == theirs.encode(text) == by_scores.encode(text)
        assert ours.encoding(text).ids == theirs.encode(text, add_special=True)


FIRST = {(pre.expressions, pre.ignore_merges): name for name, pre in reversed(NAMES.items())}


@pytest.mark.parametrize("name", sorted(FIRST.values()))
def test_names_of_patterns(name: str, llama_cpp: LlamaCpp) -> None:
    trained = train_bpe([*TEXTS[:6], *PLAIN * 4], vocab_size=500, pattern="gpt2")
    metadata = trained.gguf_metadata() | {"tokenizer.ggml.pre": name}
    ours = PipelineTokenizer(from_metadata(metadata))
    assert ours.gguf_metadata() == metadata
    theirs = llama_cpp(metadata)
    for text in [
        *PLAIN,
        "x1234567y 3.14 a1b22",
        "(a|b).c,d",
        *(text[:300] for text in TEXTS[1::9]),
    ]:
        assert ours.encode(text) == theirs.encode(text), text


def test_all_names_are_known_to_llama_cpp(llama_cpp: LlamaCpp, small: PipelineTokenizer) -> None:
    for name in NAMES:
        llama_cpp(small.gguf_metadata() | {"tokenizer.ggml.pre": name}).close()


def test_tokens_that_stand_for_nothing(small: PipelineTokenizer) -> None:
    metadata = small.gguf_metadata()
    metadata["tokenizer.ggml.tokens"] += ["[PAD280]", "[PAD281]"]
    metadata["tokenizer.ggml.token_type"] += [5, 5]
    tokenizer = PipelineTokenizer(from_metadata(metadata))
    assert tokenizer.vocabulary.tokens[-1] == b"" and tokenizer.vocab_size == small.vocab_size + 2
    assert tokenizer.gguf_metadata()["tokenizer.ggml.token_type"][-3:] == [1, 5, 5]


def test_flags_about_merges_go_with_the_name(small: PipelineTokenizer) -> None:
    """A pattern whose name says otherwise is written where the merges reach every token."""
    model: Any = small.vocabulary.model
    free = dataclasses.replace(
        small.vocabulary, model=dataclasses.replace(model, ignore_merges=True)
    )
    assert PipelineTokenizer(free).gguf_metadata()["tokenizer.ggml.pre"] == "gpt-2"
    lost = dataclasses.replace(model, ignore_merges=True, merges=model.merges[1:])
    with pytest.raises(UserError, match="whether a word that is a token skips the merges"):
        PipelineTokenizer(dataclasses.replace(free, model=lost)).gguf_metadata()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.scores": [0.0]}, "not as many scores"),
        ({"tokenizer.ggml.scores": [float("nan")] * 7}, "a score is no number"),
        ({"tokenizer.ggml.token_type": [9] * 7}, "a token is of an unknown type"),
        ({"tokenizer.ggml.add_bos_token": 1}, "add_bos_token = 1 is neither true nor false"),
        ({"tokenizer.ggml.unknown_token_id": True}, "unknown_token_id = True is none of 7"),
        ({"tokenizer.ggml.tokens": ["a"] * 7}, "stands in it twice"),
        ({"tokenizer.ggml.token_type": [5] * 7}, "the unused piece 'ab' is made by others"),
        (
            {"tokenizer.ggml.model": "t5", "tokenizer.ggml.precompiled_charsmap": ["x"]},
            "precompiled_charsmap is no list of bytes",
        ),
        (
            {"tokenizer.ggml.model": "t5", "tokenizer.ggml.precompiled_charsmap": [255] * 4},
            "the precompiled character map is damaged",
        ),
        ({"tokenizer.ggml.model": "bert", "tokenizer.ggml.unknown_token_id": None}, "no unknown"),
        ({"tokenizer.ggml.model": "gemma4"}, "merges is no list of strings"),
        ({"tokenizer.ggml.model": ["llama"]}, "vocabularies of kind .*llama.* can't be read"),
    ],
)
def test_damage_is_named(change: dict[str, Any], message: str) -> None:
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a", "b", "ab", "<0x0A>"],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0, -2.0, -3.0, 0.0],
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 6],
        "tokenizer.ggml.unknown_token_id": 0,
    }
    if change.get("tokenizer.ggml.token_type") == [5] * 7:
        change = {"tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 5, 6]}
    with pytest.raises(UserError, match=message) as caught:
        PipelineTokenizer(from_metadata(metadata | change))
    assert "\n" not in str(caught.value)
