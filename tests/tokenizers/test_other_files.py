"""Files of a single project: CLIP's merges, Qwen's ranks, Anthropic's JSON, XLM-R's cuts."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lmworks.core.errors import UserError
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.vocabulary import byte_alphabet

MERGES = ["t h", "th e</w>", "c a", "ca t</w>", "i n", "in g</w>"]
TEXTS = ["The  CAT's \n naïve cat, <|endoftext|> in 12", "e\u0301 日本 the\u2003cat", "", "  "]


def clip_file(folder: Path, lines: list[str]) -> Path:
    path = folder / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress("\n".join(['"a title"', *lines, ""]).encode()))
    return path


def test_clip(tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    ours = load_tokenizer(clip_file(tmp_path, MERGES))
    letters = sorted(byte_alphabet())
    merged = ["".join(merge.split()) for merge in MERGES]
    texts = [*letters, *(letter + "</w>" for letter in letters), *merged]
    texts += ["<|startoftext|>", "<|endoftext|>"]
    theirs = CLIPTokenizer(
        vocab={text: i for i, text in enumerate(texts)},
        merges=[tuple(merge.split()) for merge in MERGES],
    ).backend_tokenizer
    for text in TEXTS:
        found = theirs.encode(text)
        assert ours.encoding(text).ids == found.ids
        assert ours.encoding(text).offsets == found.offsets


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"garbage", "is no gzip file of merges"),
        (gzip.compress(b"title\na b\n", mtime=0)[:-9], "is no gzip file of merges"),
        (gzip.compress(b"title\na b c\n", mtime=0), "line 2 is not two tokens"),
        (gzip.compress(b"", mtime=0), "line 2 is not two tokens"),
        (gzip.compress(b"title\nzz b\n", mtime=0), "merge 0 uses"),
        (gzip.compress(b"\xff\xfe\n", mtime=0), "is no gzip file of merges"),
    ],
)
def test_damaged_clip_files(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message):
        load_tokenizer(path)


def ranks() -> list[bytes]:
    return [*(bytes([byte]) for byte in range(256)), b"th", b"the", " né".encode()]


def test_qwen_composes_text(tmp_path: Path) -> None:
    lines = [f"{base64.b64encode(token).decode()} {i}" for i, token in enumerate(ranks())]
    for name in ("qwen", "own"):
        (tmp_path / f"{name}.tiktoken").write_text("\n".join(lines))
    qwen, own = (load_tokenizer(tmp_path / f"{name}.tiktoken") for name in ("qwen", "own"))
    assert qwen.special_tokens["<|im_start|>"] == 151644
    assert qwen.encode(" ne\u0301") == own.encode(" n\u00e9") != own.encode(" ne\u0301")


def test_anthropics_json(tmp_path: Path) -> None:
    tokens = " ".join(base64.b64encode(token).decode() for token in ranks())
    data = {
        "explicit_n_vocab": 261,
        "pat_str": r" ?\p{L}+|\s+",
        "special_tokens": {"<EOT>": 0, "<META>": 1},
        "bpe_ranks": f"! 2 {tokens}",
    }
    path = tmp_path / "claude.json"
    path.write_text(json.dumps(data))
    ours = load_tokenizer(path)
    assert ours.encode("the<EOT>", allow_special=True) == [259, 0]
    for key, value in (
        ("bpe_ranks", "? 2 aaaa"),
        ("bpe_ranks", ""),
        ("bpe_ranks", "! x aaaa"),
        ("bpe_ranks", "! 0 a*aa"),
        ("special_tokens", {"a": "b"}),
        ("special_tokens", {"<EOT>": 5}),
        ("pat_str", "(a"),
        ("bpe_ranks", None),
    ):
        path.write_text(json.dumps(data | {key: value}))
        with pytest.raises(UserError, match=r"claude\.json") as caught:
            load_tokenizer(path)
        assert "\n" not in str(caught.value)


FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def xlm_roberta() -> dict[str, Any]:
    texts = ["<s>", "<pad>", "</s>", "<unk>", "▁", "a", "b", "▁a", "▁b", "ab", "▁▁", "."]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}
    return {
        "added_tokens": [
            {"id": 0, "content": "<s>", "special": True} | dict.fromkeys(FLAGS, False)
        ],
        "normalizer": {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace],
        },
        "post_processor": None,
        "decoder": metaspace,
        "model": {
            "type": "Unigram",
            "unk_id": 3,
            "vocab": [[text, -1.0 - i / 10] for i, text in enumerate(texts)],
        },
    }


def test_white_space_and_then_a_mark_before_every_word(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(xlm_roberta()))
    theirs, ours = Tokenizer.from_file(str(path)), load_tokenizer(path)
    for text in ("a  b", " ab\t\nb ", "▁a ▁ b▁", "a▁▁b", "\u3000a.b\u2028", "", " ", "<s> a<s>b"):
        found = theirs.encode(text)
        assert ours.encode(text, allow_special=True) == found.ids, text
        assert ours.encode_array(text, allow_special=True).tolist() == found.ids
        assert ours.encoding(text).offsets == found.offsets, text


def test_saved_as_it_came(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(xlm_roberta()))
    ours: PipelineTokenizer = load_tokenizer(tmp_path)
    ours.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").vocabulary == ours.vocabulary
