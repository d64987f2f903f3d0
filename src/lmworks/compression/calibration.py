"""Calibration text: token rows of the user's own data, on which a quantiser looks at a model.

A quantiser keeps right what these rows show, so they should look like what the model will be used
for: conversations in its chat template for an assistant, code for a coder. Rows are drawn from all
over the source, so that a long book doesn't stand for everything after it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError
from lmworks.core.files import read_json_lines

if TYPE_CHECKING:
    import numpy as np

    from lmworks.models.config import ModelConfig
    from lmworks.tokenizers.base import Tokenizer

MIN_TOKENS = 256  # fewer say little about what a layer is given
DEFAULT = "Python's documentation"
_DEFAULT_CHARACTERS = 500_000
_ROW_TOKENS = 256
_CHARACTERS = 8  # that stand for a token at most, in text that a vocabulary was made for


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Something that becomes one row: a stretch of a text, or a conversation."""

    text: str = ""
    messages: Any = None


def row_length(config: ModelConfig, most: int = _ROW_TOKENS) -> int:
    """Tokens of a calibration row: `most`, or the model's context where that is shorter."""
    return min(most, config.max_position_embeddings)


def calibration_rows(
    sources: Path | Sequence[Path] | None,
    tokenizer: Tokenizer,
    *,
    max_tokens: int = 8192,
    length: int = _ROW_TOKENS,
    seed: int = 0,
) -> list[np.ndarray]:
    """About `max_tokens` tokens as the model reads them, in rows of at most `length`.

    Args:
        sources: files or folders: a corpus or dataset that a stage made (its `train.jsonl`), any
            folder of documents, a text, or a JSONL file with `text` or `messages` in each row;
            messages are put into the tokenizer's chat template. None: Python's documentation.
        seed: which stretches and conversations are taken.
    Returns: (T,) int64 each.
    Raises: UserError for a source that is missing, holds no text, or less than 256 tokens of it.
    """
    import numpy as np

    if max_tokens < MIN_TOKENS or length < 1:
        raise UserError(
            f"{max_tokens} calibration tokens in rows of {length}: take at least {MIN_TOKENS} "
            "tokens (better 8,000) and rows of 1 or more"
        )
    paths = [sources] if isinstance(sources, Path) else sources
    pieces = [piece for piece in _pieces(paths) for piece in _cut(piece, length * _CHARACTERS)]
    before = [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None][:1]
    rows: list[np.ndarray] = []
    count = 0
    for index in np.random.default_rng(seed).permutation(len(pieces)):
        piece = pieces[index]
        if piece.messages is None:
            ids = [*before, *tokenizer.encode(piece.text)]
        else:
            ids = tokenizer.encode_chat(piece.messages, add_generation_prompt=False)
        rows.append(np.array(ids[: min(length, max_tokens - count)], dtype=np.int64))
        count += len(rows[-1])
        if count >= max_tokens:
            break
    if count < MIN_TOKENS:
        where = DEFAULT if paths is None else " and ".join(str(path) for path in paths)
        raise UserError(
            f"{where} gives {count} tokens of calibration text; give at least {MIN_TOKENS}, "
            "better 8,000"
        )
    return rows


def _cut(piece: _Piece, size: int) -> Iterator[_Piece]:
    """Stretches of a text of about `size` characters, each beginning with a word."""
    if piece.messages is not None:
        yield piece
        return
    start = 0
    while start < len(piece.text):
        end = start + size
        space = piece.text.find(" ", end, end + 100)
        end = space if space > 0 else end
        if piece.text[start:end].strip():
            yield _Piece(text=piece.text[start:end])
        start = end


def _pieces(paths: Sequence[Path] | None) -> Iterator[_Piece]:
    if paths is None:
        from lmworks.data.python_docs import read_python_docs

        left = _DEFAULT_CHARACTERS
        for document in read_python_docs():
            yield _Piece(text=document.text)
            left -= len(document.text)
            if left < 0:  # its topics come first; the rest is parsed out of many files
                return
        return
    for path in paths:
        rows = path / "train.jsonl" if path.is_dir() else path
        if rows.suffix == ".jsonl" and rows.is_file():
            yield from _lines(rows)
        else:
            yield from _documents(path)


def _documents(path: Path) -> Iterator[_Piece]:
    from lmworks.data.documents import Document
    from lmworks.data.folder import FolderConfig, read_folder

    for document in read_folder(path, FolderConfig()):
        if isinstance(document, Document):
            yield _Piece(text=document.text)
        elif path.is_file():
            raise UserError(f"{path} gives no calibration text: {document.evidence}")


def _lines(path: Path) -> Iterator[_Piece]:
    """The rows of a JSONL file. Raises: UserError naming the line at fault."""
    for line in read_json_lines(path, errors="replace", fault=" is not valid JSON"):
        row = line.value
        text = row.get("text") if isinstance(row, dict) else None
        messages = row.get("messages") if isinstance(row, dict) else None
        if isinstance(messages, list) and messages:
            yield _Piece(messages=[_message(message, line.where) for message in messages])
        elif isinstance(text, str):
            yield _Piece(text=text)
        else:
            raise UserError(f"{line.where} has neither a `text` nor `messages`")


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise UserError(f"{where}: a message needs a role and a content")
    return message
