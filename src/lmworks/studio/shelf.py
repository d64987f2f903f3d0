"""The tokenizers that were loaded, by a short name."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

from lmworks.core import progress
from lmworks.core.errors import nearest
from lmworks.serving.errors import ApiError
from lmworks.tokenizers.bpe import BPE
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.unigram import Unigram


class Shelf:
    """Tokenizers by name, in the order in which they came."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, PipelineTokenizer]] = {}
        self._lock = threading.Lock()

    def add(self, reference: str, say: Callable[[str], None] = lambda line: None) -> str:
        """Load what a reference, or NAME=REFERENCE, stands for; once for each reference.

        Args:
            say: is told what is going on.
        Returns: the name.
        Raises: UserError when it can't be had or read.
        """
        from lmworks.tokenizers.load import load_tokenizer

        name, reference = split_name(reference)
        with self._lock:
            for known, (held, _) in self._held.items():
                if held == reference and name in ("", known):
                    return known
        with progress.heard_by(say):
            tokenizer = load_tokenizer(reference)
            say("preparing its tables")
            tokenizer.kernels()
        return self.put(name, reference, tokenizer)

    def put(self, name: str, reference: str, tokenizer: PipelineTokenizer) -> str:
        """Keep a tokenizer. Returns: its name, made from the reference where none is given."""
        with self._lock:
            name = name or _short_name(reference, self._held)
            self._held[name] = reference, tokenizer
        return name

    def get(self, name: str) -> PipelineTokenizer:
        """Raises: ApiError (404) naming the nearest."""
        if name not in self._held:
            close = nearest(name, self._held)
            hint = f": did you mean {close!r}?" if close else ""
            raise ApiError(404, f"no tokenizer {name!r} is loaded{hint}", code="not_loaded")
        return self._held[name][1]

    def about(self, name: str) -> dict[str, Any]:
        """What a page is told of a tokenizer."""
        tokenizer = self.get(name)
        return {
            "name": name,
            "reference": self._held[name][0],
            "kind": _kind(tokenizer),
            "vocab_size": tokenizer.vocab_size,
        }

    def all(self) -> list[dict[str, Any]]:
        """`about` each of them."""
        return [self.about(name) for name in list(self._held)]


def split_name(text: str) -> tuple[str, str]:
    """NAME=REFERENCE in two; the name is empty where there is none."""
    name, equals, reference = text.strip().partition("=")
    is_name = equals and reference and not reference.startswith("=") and not set("/:\\") & set(name)
    return (name.strip(), reference.strip()) if is_name else ("", text.strip())


def _short_name(reference: str, taken: dict[str, Any]) -> str:
    """The last parts of a path, as few as nobody else is called by."""
    parts = [part for part in re.split(r"[/\\]", reference) if part]
    names = ["/".join(parts[-count:]) for count in range(1, len(parts) + 1)]
    free = next((name for name in names if name not in taken), reference)
    numbered = (f"{reference} ({n})" for n in range(2, len(taken) + 3))
    return free if free not in taken else next(n for n in numbered if n not in taken)


def _kind(tokenizer: PipelineTokenizer) -> str:
    model = tokenizer.vocabulary.model
    if isinstance(model, BPE):
        return "byte-level BPE" if model.byte_level else "BPE"
    return "Unigram" if isinstance(model, Unigram) else "WordPiece"
