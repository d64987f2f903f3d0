"""The kernels give the ids of the readable path, whatever the tokenizer and the text."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.tokenizers.compiled import CompiledEncoder
from lmworks.tokenizers.compiled_tables import joined_pairs, plain_cut
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.pre_tokenizers import Cut
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.train import train_bpe

TEXTS = [text for _, text in sorted(topics.items())]
LONG = ["ab" * 3000, "你好世界我们" * 300, "a" * 5000, " " * 3000 + "x", "é" * 700, "x\ufffd" * 99]
KINDS = ("bpe", "cl100k", "o200k", "deepseek", "unigram", "squeezed", "words", "bytes", "wordpiece")
LONG += [
    "a \x04\ufffd b  c",
    " ▁a ▁b\u3000c ",
    "\x1d \t a\x7f \x05 ",
]  # spaces meet, words are marked


@functools.cache
def tokenizer(kind: str, folder: Path) -> PipelineTokenizer:
    """A tokenizer of each kind, learnt from the same text."""
    if kind == "bpe":
        return train_bpe(TEXTS[::2], vocab_size=1500)
    if kind in ("cl100k", "o200k", "deepseek"):
        return train_bpe(TEXTS[::2], vocab_size=900, pattern=kind)
    return load_tokenizer(learnt_elsewhere(kind, folder))


def learnt_elsewhere(kind: str, folder: Path) -> Path:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    options = {"vocab_size": 1200, "show_progress": False}
    if kind == "wordpiece":
        theirs = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        theirs.normalizer = normalizers.BertNormalizer()
        theirs.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        theirs.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(special_tokens=["[UNK]", "[CLS]", "[SEP]"], **options)
    else:
        theirs = Tokenizer(models.Unigram())
        theirs.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Nmt()])
        if kind == "squeezed":
            steps = [normalizers.Nmt(), normalizers.NFKC()]
            steps.append(normalizers.Replace(Regex(" {2,}"), " "))
            theirs.normalizer = normalizers.Sequence(steps)
        theirs.pre_tokenizer = pre_tokenizers.Metaspace()
        if kind == "words":
            steps = [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
            theirs.pre_tokenizer = pre_tokenizers.Sequence(steps)
        theirs.decoder = decoders.Metaspace()
        special = ["<unk>", "<s>"]
        if kind == "bytes":
            special += [f"<0x{byte:02X}>" for byte in range(256)]
        trainer = trainers.UnigramTrainer(unk_token="<unk>", special_tokens=special, **options)
    theirs.train_from_iterator(TEXTS[::2], trainer)
    path = folder / f"{kind}.json"
    theirs.save(str(path))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


@pytest.mark.parametrize("kind", KINDS)
def test_the_ids_of_the_readable_path(kind: str, folder: Path, hard: list[str]) -> None:
    ours = tokenizer(kind, folder)
    kernels = CompiledEncoder.of(ours)
    assert kernels is not None
    for allow_special in (False, True):
        for text in [*hard[::6], *hard[:600], *LONG]:
            expected = ours.encode_readable(text, allow_special=allow_special)
            assert kernels.encode(text, allow_special=allow_special).tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_any_text(kind: str, folder: Path) -> None:
    ours = tokenizer(kind, folder)

    @settings(max_examples=60, deadline=None)
    @given(st.text(max_size=60), st.integers(0, 40))
    def same(text: str, spaces: int) -> None:
        text = text + " " * spaces + text[::-1]
        if not any("\ud800" <= c <= "\udfff" for c in text):
            assert ours.encode_array(text).tolist() == ours.encode_readable(text)

    same()


@pytest.mark.parametrize("kind", KINDS)
def test_batches_on_all_cores(
    kind: str, folder: Path, hard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmworks.tokenizers.compiled._WORTH_THREADS", 0)
    ours = tokenizer(kind, folder)
    ours.kernels()
    texts = [*hard[::30], "", *LONG, "", TEXTS[1]]
    assert ours.encode_batch(texts) == [ours.encode_readable(text) for text in texts]


def test_remembered_words_and_output_are_bounded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmworks.tokenizers.compiled._WORDS", 1 << 6)
    monkeypatch.setattr("lmworks.tokenizers.compiled._OUT_AT_ONCE", 1 << 8)
    ours = tokenizer("bpe", folder)
    kernels = CompiledEncoder.of(ours)
    assert kernels is not None
    draw = random.Random(5)
    text = " ".join(str(draw.random()) + draw.choice(TEXTS)[:30] for _ in range(3000))
    assert kernels.encode(text).tolist() == ours.encode_readable(text)


def test_a_pattern_that_looks_ahead_without_end_is_given_up() -> None:
    trained = train_bpe(["ab ab"], vocab_size=262)
    from dataclasses import replace

    from lmworks.tokenizers.pre_tokenizers import byte_level_step

    odd = PipelineTokenizer(
        replace(trained.vocabulary, pre_tokenizer=byte_level_step((r"a*b|a|[^a]",)))
    )
    assert odd.encode_array("aaab aab ca").tolist() == odd.encode_readable("aaab aab ca")
    with pytest.raises(UserError, match="takes time with the square of the text"):
        odd.encode_array("a" * 3_000_000)
    kernels = CompiledEncoder.of(odd)
    assert kernels is not None
    with pytest.raises(UserError, match="takes time with the square of the text"):
        kernels._many(["ab", "a" * 3_000_000], False)
    assert kernels.encode("aaab aab").tolist() == odd.encode_readable("aaab aab")  # none is left


def test_bytes_and_surrogates(folder: Path) -> None:
    ours = tokenizer("bpe", folder)
    for data in (b"caf\xc3\xa9", b"\xff\xfe caf\xc3", "a\udc80b".encode("utf-8", "surrogatepass")):
        assert ours.encode_array(data).tolist() == ours.encode_readable(data)
        assert ours.decode_bytes(ours.encode_array(data).tolist()) == data


def test_merged_neighbours_have_an_expression_of_their_own() -> None:
    assert plain_cut(Cut("▁", "MergedWithNext"))[0] == "▁[^\\U00002581]*|[^\\U00002581]+"
    assert plain_cut(Cut(r"\ ", "MergedWithPrevious"))[0].startswith("[^\\U00000020]*")


def test_places_that_no_token_reaches_across() -> None:
    pairs, coarse = joined_pairs([b"ab", "é".encode(), "xé".encode()[:2], b"\xa9z"])
    assert pairs.any() and coarse.any()
    empty, none = joined_pairs([b"a", "é".encode()])
    assert not empty.any() and not none.any()
