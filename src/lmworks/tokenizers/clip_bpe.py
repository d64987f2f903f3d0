"""CLIP's `bpe_simple_vocab_16e6.txt.gz`: merges, a line each, after a line of title.

The vocabulary follows from them: every byte, every byte at the end of a word (`</w>`), what each
merge makes, two special tokens. Text is composed, its white space squeezed, and lowered, as in
Hugging Face's CLIP tokenizer; CLIP's own code also mends broken text (ftfy) and HTML entities
before that, which is left to whoever wants it.

Source: Radford et al. 2021, arXiv 2103.00020, released code and file.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.tokenizers.vocabulary import Vocabulary, byte_alphabet

_END, _SPECIAL = "</w>", ("<|startoftext|>", "<|endoftext|>")
_MERGES = 49152 - 256 - len(_SPECIAL)  # the file has more; these were used
_MOST = 1 << 26  # bytes; the file has 3 MB
_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def load(path: Path) -> Vocabulary:
    """Read the file. Raises: UserError when it is damaged."""
    from lmworks.tokenizers.huggingface import from_json

    try:
        with gzip.open(path) as file:
            data = file.read(_MOST)
        lines = data.decode().split("\n")[1 : _MERGES + 1]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no gzip file of merges ({error})") from error
    merges = [line.split(" ") for line in lines if line]
    wrong = next((n for n, pair in enumerate(merges, 2) if len(pair) != 2), None)
    if wrong is not None or not merges:
        raise UserError(f"{path}: line {wrong or 2} is not two tokens with a space between them")
    try:
        return from_json(_tokenizer(merges))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _tokenizer(merges: list[list[str]]) -> dict[str, Any]:
    """What a tokenizer.json of it holds."""
    letters = sorted(byte_alphabet())  # plain characters first, as in the file's own alphabet
    texts = [*letters, *(letter + _END for letter in letters), *map("".join, merges), *_SPECIAL]
    ids: dict[str, int] = {text: i for i, text in enumerate(texts)}
    start, end = ([text, ids[text]] for text in _SPECIAL)
    return {
        "added_tokens": [{"id": ids[text], "content": text, "special": True} for text in _SPECIAL],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "NFC"},
                {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
                {"type": "Lowercase"},
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": _WORDS},
                    "behavior": "Removed",
                    "invert": True,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
            ],
        },
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": end,
            "cls": start,
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "unk_token": _SPECIAL[1],
            "end_of_word_suffix": _END,
            "vocab": ids,
            "merges": merges,
        },
    }
