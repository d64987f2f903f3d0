"""The vocabulary in a GGUF file, both ways: the kinds that llama.cpp has and we can prove.

| `tokenizer.ggml.model` | is |
|---|---|
| gpt2 | byte-level BPE, its pattern by name (gguf_byte_level.py) |
| llama, t5, gemma4 | SentencePiece: BPE by scores, Unigram, BPE by merges (gguf_sentencepiece.py) |
| bert | WordPiece (gguf_wordpiece.py) |

Tokens it calls control are special here; user-defined ones are added tokens that are always found,
as in llama.cpp. What GGUF has no place for (lstrip, rstrip, single_word, other normalizers) is
refused rather than left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.gguf import read_gguf
from lmworks.core.tables import load_target
from lmworks.tokenizers.bpe import BPE
from lmworks.tokenizers.vocabulary import Vocabulary
from lmworks.tokenizers.wordpiece import WordPiece

_HERE = "lmworks.tokenizers"
KINDS = {
    "gpt2": f"{_HERE}.gguf_byte_level:read",
    "llama": f"{_HERE}.gguf_sentencepiece:read",
    "t5": f"{_HERE}.gguf_sentencepiece:read",
    "gemma4": f"{_HERE}.gguf_sentencepiece:read",
    "bert": f"{_HERE}.gguf_wordpiece:read",
}


def load(path: Path) -> Vocabulary:
    """Read the vocabulary of a GGUF file.

    Raises: UserError when it holds none, one of another kind, or a damaged one.
    """
    try:
        return from_metadata(read_gguf(path).metadata)
    except UserError as error:
        where = "" if str(path) in str(error) else f"{path}: "
        raise UserError(f"{where}{error}") from error


def from_metadata(metadata: dict[str, Any]) -> Vocabulary:
    """The vocabulary in the `tokenizer.*` keys. Raises: UserError as `load`."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None:
        raise UserError("the file holds no vocabulary")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(
            f"vocabularies of kind {str(kind)[:80]!r} can't be read; known: {', '.join(KINDS)}"
        )
    vocabulary: Vocabulary = load_target(KINDS[kind])(metadata)
    return vocabulary


def to_metadata(vocabulary: Vocabulary) -> dict[str, Any]:
    """The `tokenizer.*` keys for this vocabulary.

    Raises: UserError when llama.cpp has no name for how it cuts text, or no place for a flag.
    """
    from lmworks.tokenizers import gguf_byte_level, gguf_sentencepiece, gguf_wordpiece

    if isinstance(vocabulary.model, WordPiece):
        return gguf_wordpiece.write(vocabulary)
    if isinstance(vocabulary.model, BPE) and vocabulary.model.byte_level:
        return gguf_byte_level.write(vocabulary)
    try:
        return gguf_sentencepiece.write(vocabulary)
    except UserError as error:
        where = "" if "GGUF" in str(error) else "GGUF files can't hold this tokenizer: "
        raise UserError(f"{where}{error}") from error
