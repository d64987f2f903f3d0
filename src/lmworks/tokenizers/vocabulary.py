"""What a byte-level BPE tokenizer is made of, whatever file it came from.

Files write bytes as printable characters, one each (GPT-2's alphabet); in memory a token is its
bytes. Added tokens stand beside the vocabulary: their text is looked for before anything is cut.

Source: the alphabet: Radford et al. 2019, released code.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

from lmworks.core.errors import UserError

Normalization = Literal["NFC", "NFD", "NFKC", "NFKD"]


@functools.cache
def byte_alphabet() -> tuple[str, ...]:
    """A printable character for each byte, as GPT-2's files write them; index = byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table, extra = {byte: chr(byte) for byte in plain}, 0x100
    for byte in range(256):
        if byte not in table:
            table[byte], extra = chr(extra), extra + 1
    return tuple(table[byte] for byte in range(256))


@functools.cache
def alphabet_bytes() -> dict[str, int]:
    """The inverse of `byte_alphabet`."""
    return {character: byte for byte, character in enumerate(byte_alphabet())}


def to_alphabet(data: bytes) -> str:
    """Bytes as GPT-2's printable characters."""
    table = byte_alphabet()
    return "".join(table[byte] for byte in data)


def from_alphabet(token: str) -> bytes:
    """Printable characters back to bytes. Raises: KeyError for a character outside the alphabet."""
    table = alphabet_bytes()
    return bytes(table[character] for character in token)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AddedToken:
    """A token that is found by its text, before the text is cut. Fields as in tokenizer.json."""

    id: int
    text: str
    special: bool = True  # found only when the caller allows it; others are found always
    lstrip: bool = False  # swallows the white space before it
    rstrip: bool = False  # swallows the white space after it
    single_word: bool = False  # not found inside a longer word
    normalized: bool = False  # looked for after normalisation, not before
    in_vocabulary: bool = True  # stands in the model's own vocabulary too, so a merge may make it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A byte-level BPE tokenizer as data.

    Raises: UserError when the beginning, end or padding token is none of the tokens.
    """

    tokens: tuple[bytes, ...]  # by id; added tokens as the UTF-8 of their text
    merges: tuple[tuple[int, int], ...]  # pairs of ids, lowest rank first
    added_tokens: tuple[AddedToken, ...]
    expressions: tuple[str, ...]  # pre-tokenisation, see patterns.py
    normalization: Normalization | None = None
    ignore_merges: bool = False  # a word that is a token is that token, whatever the merges say
    post_processor: Mapping[str, Any] | None = None  # kept for the file; `encode` adds nothing
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    chat_template: str | None = None

    def __post_init__(self) -> None:
        for role, text in self.roles().items():
            if text not in self.added_ids:
                raise UserError(f"the {role} {text!r} is not one of the tokenizer's added tokens")

    @functools.cached_property
    def added_ids(self) -> dict[str, int]:
        """Ids of all added tokens by their text."""
        return {token.text: token.id for token in self.added_tokens}

    def roles(self) -> dict[str, str]:
        """`bos_token`, `eos_token` and `pad_token`, as far as there are such."""
        named = {
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "pad_token": self.pad_token,
        }
        return {role: text for role, text in named.items() if text is not None}

    def texts(self) -> list[str]:
        """Every token as files write it: in the byte alphabet, added tokens plain."""
        texts = [to_alphabet(token) for token in self.tokens]
        for token in self.added_tokens:
            texts[token.id] = token.text
        return texts
