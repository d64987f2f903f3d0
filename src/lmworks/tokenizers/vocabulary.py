"""A tokenizer as data, whatever file it came from.

The model (bpe.py, unigram.py, wordpiece.py) knows tokens; the steps around it are written in the
field's own language, that of `tokenizer.json`, and built by normalizers.py, pre_tokenizers.py,
decoders.py and post_processors.py. Added tokens stand beside the model: their text is looked for
before anything is cut.

Byte-level files write bytes as printable characters, one each (GPT-2's alphabet); in memory a
token is its bytes.

Source: the alphabet: Radford et al. 2019, released code.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from lmworks.core.errors import UserError

if TYPE_CHECKING:
    from lmworks.tokenizers.bpe import BPE
    from lmworks.tokenizers.unigram import Unigram
    from lmworks.tokenizers.wordpiece import WordPiece

    Model: TypeAlias = "BPE | Unigram | WordPiece"

Step = Mapping[str, Any]  # one step of a tokenizer.json: {"type": "NFC"}

_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


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


@functools.cache
def _to_latin() -> dict[int, int]:
    """For str.translate: the alphabet to the characters of Latin-1, others of Latin-1 out of it."""
    return dict.fromkeys(range(256), 0xFFFF) | {ord(c): b for c, b in alphabet_bytes().items()}


def from_alphabet(token: str) -> bytes:
    """Printable characters back to bytes. Raises: KeyError for a character outside the alphabet."""
    try:
        return token.translate(_to_latin()).encode("latin-1")
    except UnicodeEncodeError as error:
        raise KeyError(token[error.start]) from error


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
    """Model, steps, added tokens and roles.

    Raises: UserError when the beginning, end, padding or unknown token is none of the tokens.
    """

    model: Model
    added_tokens: tuple[AddedToken, ...] = ()
    normalizer: Step | None = None
    pre_tokenizer: Step | None = None
    post_processor: Step | None = None  # what `encoding` adds around a text; `encode` adds nothing
    decoder: Step | None = None
    truncation: Step | None = None
    padding: Step | None = None
    bos_token: str | None = None
    eos_token: str | None = None
    pad_token: str | None = None
    unk_token: str | None = None
    chat_template: str | None = None

    def __post_init__(self) -> None:
        for role, text in self.roles().items():
            if role != "unk_token" and text not in self.added_ids:
                raise UserError(f"the {role} {text!r} is not one of the tokenizer's added tokens")

    @functools.cached_property
    def added_ids(self) -> dict[str, int]:
        """Ids of all added tokens by their text."""
        return {token.text: token.id for token in self.added_tokens}

    @functools.cached_property
    def tokens(self) -> tuple[bytes, ...]:
        """Every token by id, added ones as the UTF-8 of their text; b"" where an id is unused."""
        size = max((token.id for token in self.added_tokens), default=-1) + 1
        tokens = list(self.model.tokens) + [b""] * (size - len(self.model.tokens))
        for token in self.added_tokens:
            tokens[token.id] = token.text.encode("utf-8", "surrogatepass")
        return tuple(tokens)

    def roles(self) -> dict[str, str]:
        """`bos_token`, `eos_token`, `pad_token` and `unk_token`, as far as there are such."""
        named = {role: getattr(self, role) for role in _ROLES}
        return {role: text for role, text in named.items() if text is not None}

    @functools.cached_property
    def texts(self) -> tuple[str, ...]:
        """Every token as files write it: bytes in the byte alphabet, added tokens plain."""
        if getattr(self.model, "byte_level", False):
            texts = [to_alphabet(token) for token in self.tokens]
        else:
            texts = [token.decode("utf-8", "replace") for token in self.tokens]
        for token in self.added_tokens:
            texts[token.id] = token.text
        return tuple(texts)
