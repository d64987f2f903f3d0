"""Whole pipelines against the tools that define them: ids, offsets, decoding, special tokens."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from lmworks.core.errors import UserError
from lmworks.tokenizers import tiktoken as rank_files
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.patterns import PATTERNS
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.train import train_bpe

TEXTS = [text for _, text in sorted(topics.items())]
ODD = [
    "",
    " ",
    "  two  spaces  ",
    "ΑΣ İstanbul ẞ ﬁ Å Ａ①",
    "ﷺ ㍿ ｶﾞ",
    "कि क्षि",
    "مَرْحَبًا",
    "각 \u1100\u1161",
]
ODD += [
    "▁a ▁▁b",
    "a\u0301\u0300\u0323",
    "\r\n\r x\n",
    "<unk> x </s>",
    "[CLS]a[SEP]",
    "\u200d\u200c\ufeff",
    "\x00\ufffd",
]


def pipelines() -> dict[str, Callable[[], Any]]:
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    def learnt(model: Any, trainer: Any, **steps: Any) -> Callable[[], Any]:
        def make() -> Any:
            from tokenizers import Tokenizer

            found = Tokenizer(model())
            for name, step in steps.items():
                setattr(found, name, step)
            found.train_from_iterator(TEXTS[::4], trainer)
            return found

        return make

    size = {"vocab_size": 700, "show_progress": False}
    pair = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> $B:1 </s>:1",
        special_tokens=[("<s>", 1), ("</s>", 2)],
    )
    special = ["<unk>", "<s>", "</s>"]
    marks = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    return {
        "unigram": learnt(
            models.Unigram,
            trainers.UnigramTrainer(unk_token="<unk>", special_tokens=special, **size),
            normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
            pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first"),
            decoder=decoders.Metaspace(prepend_scheme="first"),
            post_processor=pair,
        ),
        "wordpiece": learnt(
            lambda: models.WordPiece(unk_token="<unk>"),
            trainers.WordPieceTrainer(special_tokens=special, **size),
            normalizer=normalizers.BertNormalizer(),
            pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
            decoder=decoders.WordPiece(),
            post_processor=processors.BertProcessing(("</s>", 2), ("<s>", 1)),
        ),
        "llama": learnt(
            lambda: models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True),
            trainers.BpeTrainer(special_tokens=[*special, *byte_tokens], **size),
            normalizer=normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            ),
            decoder=marks,
            post_processor=pair,
        ),
        "unknown": learnt(
            lambda: models.BPE(unk_token="<unk>"),
            trainers.BpeTrainer(special_tokens=special, limit_alphabet=40, **size),
            normalizer=normalizers.Sequence(
                [normalizers.NFD(), normalizers.StripAccents(), normalizers.Strip()]
            ),
            pre_tokenizer=pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Whitespace(),
                    pre_tokenizers.Digits(True),
                    pre_tokenizers.Punctuation(),
                ]
            ),
            decoder=decoders.BPEDecoder(),
        ),
        "roberta": learnt(
            models.BPE,
            trainers.BpeTrainer(
                special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **size
            ),
            pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True),
            decoder=decoders.ByteLevel(),
            post_processor=processors.RobertaProcessing(("</s>", 2), ("<s>", 1)),
        ),
        "clip": learnt(
            lambda: models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"),
            trainers.BpeTrainer(
                special_tokens=special,
                end_of_word_suffix="</w>",
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                **size,
            ),
            normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()]),
            pre_tokenizer=pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(" ", "removed"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            ),
            decoder=decoders.ByteLevel(),
        ),
    }


NAMES = ("unigram", "wordpiece", "llama", "unknown", "roberta", "clip")


@pytest.fixture(scope="module", params=NAMES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A pipeline as Hugging Face tokenizers has it, and as read here."""
    theirs = pipelines()[request.param]()
    path = tmp_path_factory.mktemp(request.param) / "tokenizer.json"
    theirs.save(str(path))
    return request.param, theirs, load_tokenizer(path)


def test_ids_and_offsets(both: Any, hard: list[str]) -> None:
    _, theirs, ours = both
    for text in [*hard[::8], *ODD, TEXTS[1]]:
        for add in (False, True):
            expected = theirs.encode(text, add_special_tokens=add)
            found = ours.encoding(text, add_special_tokens=add)
            assert found.ids == expected.ids, repr(text)
            assert found.offsets == expected.offsets, repr(text)
            assert found.special_tokens_mask == expected.special_tokens_mask
            assert found.word_ids == expected.word_ids, repr(text)
            assert found.sequence_ids == expected.sequence_ids


def test_from_characters_to_tokens_and_back(both: Any, hard: list[str]) -> None:
    _, theirs, ours = both
    for text, other in ((TEXTS[0][:90], "short one"), *zip(hard[5::400], hard[9::400])):
        expected, found = theirs.encode(text, other), ours.encoding(text, other)
        assert found.word_ids == expected.word_ids
        assert found.sequence_ids == expected.sequence_ids
        for number, part in enumerate((text, other)):
            for at in range(len(part) + 1):
                assert found.char_to_token(at, number) == expected.char_to_token(at, number)
                assert found.char_to_word(at, number) == expected.char_to_word(at, number)
            for word in range(max([w for w in found.word_ids if w is not None], default=0) + 2):
                assert found.word_to_tokens(word, number) == expected.word_to_tokens(word, number)
                assert found.word_to_chars(word, number) == expected.word_to_chars(word, number)
        for token in range(len(found)):
            assert found.token_to_chars(token) == expected.token_to_chars(token)


def test_pairs_truncation_and_padding(both: Any) -> None:
    _, theirs, ours = both
    for side in ("right", "left"):
        for room, stride in ((9, 0), (12, 3), (40, 5)):
            theirs.enable_truncation(room, stride=stride, direction=side)
            for text, other in ((TEXTS[0][:90], "short one"), ("a b", TEXTS[2][:60]), ("a", "b")):
                expected = theirs.encode(text, other)
                found = ours.encoding(
                    text, other, max_length=room, stride=stride, truncation_side=side
                )
                assert (found.ids, found.type_ids) == (expected.ids, expected.type_ids)
                assert found.sequence_ids == expected.sequence_ids
                assert found.word_ids == expected.word_ids
                one = theirs.encode(text)
                ours_one = ours.encoding(text, max_length=room, stride=stride, truncation_side=side)
                assert ours_one.ids == one.ids
                assert [o.ids for o in ours_one.overflowing] == [o.ids for o in one.overflowing]
    theirs.no_truncation()


def test_decoding_whole_and_token_by_token(both: Any, hard: list[str]) -> None:
    name, theirs, ours = both
    for text in [*hard[::40], *ODD, TEXTS[3][:300]]:
        ids = theirs.encode(text, add_special_tokens=False).ids
        whole = ours.decode(ids, skip_special=True)
        assert whole == theirs.decode(ids, skip_special_tokens=True), repr(text)
        stream = ours.stream_decoder()
        if name != "clip":  # its decoder looks at what comes after a token
            assert "".join(map(stream.push, ids)) + stream.finish() == whole, repr(text)


def test_what_is_saved_loads_in_transformers(both: Any, hard: list[str], tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    _, _, ours = both
    ours.save(tmp_path)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    again = load_tokenizer(tmp_path)
    for text in [*hard[::50], *ODD]:
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert again.encode(text, allow_special=True) == expected, repr(text)


def test_padding_to_one_length(both: Any) -> None:
    _, _, ours = both
    with pytest.raises(UserError, match="no padding token"):
        ours.encodings(["a", "b c d"], padding="longest")
    found = ours.encodings(["the statement", "a"], max_length=3)
    assert all(len(encoding) <= 3 for encoding in found)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("squeezed", [True, False])
def test_sentencepiece_models(kind: str, squeezed: bool, hard: list[str], tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(TEXTS[::4]).splitlines()),
        model_writer=model,
        vocab_size=800,
        model_type=kind,
        byte_fallback=not squeezed,
        remove_extra_whitespaces=squeezed,
        normalization_rule_name="nmt_nfkc" if squeezed else "identity",
        minloglevel=2,
    )
    path = tmp_path / "tokenizer.model"
    path.write_bytes(model.getvalue())
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ours = load_tokenizer(tmp_path)
    assert ours.vocab_size == theirs.vocab_size() and ours.unk_token_id == theirs.unk_id()
    ours.kernels()
    for text in [*hard[::8], *ODD]:
        expected = theirs.encode(text)
        assert ours.encode_readable(text) == expected, repr(text)
        assert ours.encode_array(text).tolist() == expected, repr(text)
        assert ours.encode_offsets(text)[0] == expected
        if "▁" not in text:
            assert ours.decode(expected) == theirs.decode(expected), repr(text)


def test_sampled_cuts_follow_their_probability() -> None:
    import random

    from lmworks.tokenizers.unigram import Unigram

    model = Unigram(tokens=(b"<unk>", b"a", b"b", b"ab"), scores=(0.0, -1.0, -1.5, -2.0), unk_id=0)
    draw = random.Random(0)
    drawn = [tuple(model.sample("ab", alpha=1.0, draw=draw)) for _ in range(4000)]
    share = drawn.count((3,)) / len(drawn)
    assert set(drawn) == {(3,), (1, 2)} and abs(share - 1 / (1 + 2.718281828**-0.5)) < 0.03
    assert model.encode_piece("ab") == [3]


def test_rank_files_both_ways(hard: list[str], tmp_path: Path) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    ours = train_bpe(TEXTS[::4], vocab_size=900, pattern="cl100k", special_tokens=["<|endoftext|>"])
    path = tmp_path / "own.tiktoken"
    rank_files.save(ours.vocabulary, path)
    lines = (line.split() for line in path.read_text().splitlines())
    ranks = {base64.b64decode(token): int(rank) - 1 for token, rank in lines}
    theirs = tiktoken.Encoding(
        "own", pat_str=PATTERNS["cl100k"][0], mergeable_ranks=ranks, special_tokens={}
    )
    again = PipelineTokenizer(rank_files.from_ranks(ranks, PATTERNS["cl100k"], {}))
    for text in [*hard[::8], *ODD]:
        expected = theirs.encode_ordinary(text)
        assert again.encode(text) == expected == [i - 1 for i in ours.encode(text)], repr(text)


def test_tekken_and_vocab_txt(tmp_path: Path) -> None:
    entries = [
        {"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode()} for i in range(256)
    ]
    entries.append({"rank": 256, "token_bytes": base64.b64encode(b"ab").decode()})
    config = {
        "pattern": PATTERNS["tekken"][0],
        "default_vocab_size": 261,
        "default_num_special_tokens": 4,
    }
    (tmp_path / "tekken.json").write_text(json.dumps({"config": config, "vocab": entries}))
    tekken = load_tokenizer(tmp_path)
    assert tekken.encode("ab c") == [260, 36, 103] and tekken.bos_token_id == 1
    assert tekken.encoding("ab").ids == [1, 260]
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nhello\n##s\n")
    bert = load_tokenizer(folder)
    assert bert.encoding("Hellos you").ids == [2, 4, 5, 1, 3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.model", b"", "no pieces or no trainer settings"),
        ("x.model", bytes(range(256)), "is not a SentencePiece model|no pieces"),
        ("x.model", b"\x0a\xff\xff\xff\xff", "is not a SentencePiece model"),
        ("x.tiktoken", b"IQ== 0\nnonsense\n", "line 2 is not a token in base64"),
        ("x.tiktoken", b"IQ== 0\nIg== 900000\n", "the ranks have gaps"),
        ("x.tiktoken", b"", "there is no token in it"),
        ("x.tiktoken", b"\xff\xfe", "line 1 is not a token in base64"),
        ("tekken.json", b"{}", "is no tekken.json"),
        ("vocab.txt", b"a\nb\n", "not a BERT vocabulary"),
        ("vocab.txt", b"[UNK]\na\na\n", "'a' stands in it twice"),
        ("vocab.txt", b"\xff", "can't be read as UTF-8"),
        ("tokenizer.json", b'{"model": {"type": "WordLevel", "vocab": {}}}', "type 'WordLevel'"),
        (
            "tokenizer.json",
            b'{"model": {"type": "Unigram", "unk_id": 9, "vocab": [["a", 0]]}}',
            "unk_id = 9 is none of 1",
        ),
        (
            "tokenizer.json",
            b'{"model": {"type": "Unigram", "vocab": [["a", 0], ["a", 0]]}}',
            "'a' stands in the vocabulary twice",
        ),
        (
            "tokenizer.json",
            b'{"model": {"type": "WordPiece", "vocab": {"a": 0}}}',
            "the unknown token '.UNK.' is not in the vocabulary",
        ),
        (
            "tokenizer.json",
            b'{"model": {"type": "Unigram", "vocab": [["a", 0]]}, '
            b'"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAA="}}',
            "character map is damaged",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)
