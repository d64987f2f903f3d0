"""What every tokenizer offers, and streaming decode on top of it."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lmworks.core.errors import UserError

Message = Mapping[str, Any]  # {"role": "user", "content": "..."} as in the OpenAI API


class Tokenizer(Protocol):
    """Text to ids and back. Ids are positions in a vocabulary of `vocab_size` entries."""

    vocab_size: int
    byte_level: bool  # the bytes of the tokens joined are the bytes of the text
    special_tokens: dict[str, int]
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    chat_template: str | None

    def encode(self, text: str | bytes, *, allow_special: bool = False) -> list[int]: ...

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]: ...

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str: ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes: ...

    def stream_decoder(self) -> StreamDecoder: ...

    def render_chat(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> str: ...

    def encode_chat(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True
    ) -> list[int]: ...

    def save(self, folder: str | Path) -> None: ...

    def gguf_metadata(self) -> dict[str, Any]: ...


class StreamDecoder:
    """Ids in one at a time, text out whenever whole characters are there.

    The pieces joined equal `decode` of all ids: a character that two tokens share is held back
    until its last byte, and bytes that are no UTF-8 come out as U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skipped = set(tokenizer.special_tokens.values()) if skip_special else set()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._context: list[int] = []  # ids whose text is out, kept for what follows them
        self._held: list[int] = []  # ids whose text is not whole yet

    def push(self, token_id: int) -> str:
        """The text that this id completes; empty while a character is unfinished."""
        if token_id in self._skipped:
            return ""
        if self._tokenizer.byte_level:
            return self._utf8.decode(self._tokenizer.decode_bytes([token_id]))
        self._held.append(token_id)
        return self._text(final=len(self._held) > _LONGEST_CHARACTER)

    def finish(self) -> str:
        """What is left when no id follows: U+FFFD for an unfinished character."""
        if self._tokenizer.byte_level:
            return self._utf8.decode(b"", final=True)
        return self._text(final=True) if self._held else ""

    def _text(self, *, final: bool) -> str:
        before = self._tokenizer.decode(self._context)
        text = self._tokenizer.decode([*self._context, *self._held])
        if text.endswith("\ufffd") and not final:
            return ""
        self._context, self._held = self._held, []  # it ends with a whole character
        return text[len(before) :]


_LONGEST_CHARACTER = 3  # bytes that may wait for a fourth


def check_id(token_id: int, vocab_size: int) -> int:
    """Raises: UserError for an id outside the vocabulary."""
    if not 0 <= token_id < vocab_size:
        raise UserError(f"token id {token_id} is outside the vocabulary of {vocab_size} entries")
    return token_id
