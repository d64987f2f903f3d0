"""What was loaded, tokenizers and models, by a short name."""

from __future__ import annotations

import dataclasses
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from lmworks.core import progress
from lmworks.core.errors import nearest
from lmworks.serving.errors import ApiError
from lmworks.tokenizers.bpe import BPE
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.unigram import Unigram

if TYPE_CHECKING:
    from lmworks.models.model import Model

T = TypeVar("T")


class Shelf(ABC, Generic[T]):
    """Things by name, in the order in which they came."""

    thing: ClassVar[str]  # what an error calls one

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, T]] = {}
        self._lock = threading.Lock()

    @abstractmethod
    def load(self, reference: str, say: Callable[[str], None]) -> T:
        """What a reference stands for. Raises: UserError when it can't be had or read."""

    @abstractmethod
    def described(self, item: T) -> dict[str, Any]:
        """What a page is told of one, beside its name and reference."""

    def add(self, reference: str, say: Callable[[str], None] = lambda line: None) -> str:
        """Load what a reference, or NAME=REFERENCE, stands for; once for each reference.

        Args:
            say: is told what is going on.
        Returns: the name.
        Raises: UserError when it can't be had or read.
        """
        name, reference = split_name(reference)
        with self._lock:
            for known, (held, _) in self._held.items():
                if held == reference and name in ("", known):
                    return known
        with progress.heard_by(say):
            item = self.load(reference, say)
        return self.put(name, reference, item)

    def put(self, name: str, reference: str, item: T) -> str:
        """Keep one. Returns: its name, made from the reference where none is given."""
        with self._lock:
            name = name or _short_name(reference, self._held)
            self._held[name] = reference, item
        return name

    def get(self, name: str) -> T:
        """Raises: ApiError (404) naming the nearest."""
        if name not in self._held:
            close = nearest(name, self._held)
            hint = f": did you mean {close!r}?" if close else ""
            raise ApiError(404, f"no {self.thing} {name!r} is loaded{hint}", code="not_loaded")
        return self._held[name][1]

    def about(self, name: str) -> dict[str, Any]:
        """What a page is told of one."""
        item = self.get(name)
        return {"name": name, "reference": self._held[name][0], **self.described(item)}

    def all(self) -> list[dict[str, Any]]:
        """`about` each of them."""
        return [self.about(name) for name in list(self._held)]


class TokenizerShelf(Shelf[PipelineTokenizer]):
    """The tokenizers that were loaded."""

    thing = "tokenizer"

    def load(self, reference: str, say: Callable[[str], None]) -> PipelineTokenizer:
        """With its tables made, so that the first text does not wait for them."""
        from lmworks.tokenizers.load import load_tokenizer

        tokenizer = load_tokenizer(reference)
        say("preparing its tables")
        tokenizer.kernels()
        return tokenizer

    def described(self, item: PipelineTokenizer) -> dict[str, Any]:
        """Its kind and size."""
        return {"kind": _kind(item), "vocab_size": item.vocab_size}


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model with its own tokenizer."""

    model: Model
    tokenizer: PipelineTokenizer


class ModelShelf(Shelf[LoadedModel]):
    """The models that were loaded."""

    thing = "model"

    def load(self, reference: str, say: Callable[[str], None]) -> LoadedModel:
        """Weights and tokenizer of one reference."""
        from lmworks.models.load import load_model
        from lmworks.tokenizers.load import load_tokenizer

        tokenizer = load_tokenizer(reference)
        say("reading its weights")
        return LoadedModel(load_model(reference), tokenizer)

    def described(self, item: LoadedModel) -> dict[str, Any]:
        """Its layers, and the heads of those with attention."""
        from lmworks.models.attention_trace import all_heads

        model = item.model.encoder or item.model
        heads = {layer: len(found) for layer, found in all_heads(model.config).items()}
        size = sum(parameter.numel() for parameter in item.model.parameters())
        return {"layers": model.config.num_hidden_layers, "heads": heads, "parameters": size}


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
