"""How BPE puts a word together: what the merge loop did, step by step, as records.

The merges are those of `merging.merge`, recorded while it runs, and not told a second time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from lmworks.core.errors import UserError
from lmworks.tokenizers.bpe import BPE, utf8
from lmworks.tokenizers.merging import Merge, merge
from lmworks.tokenizers.tokenizer import PipelineTokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class PieceTrace:
    """One piece of a text, as the pre-tokenizer cut it."""

    piece: str
    symbols: tuple[int, ...]  # ids of its bytes or characters; of the one token if it is known
    merges: tuple[Merge, ...]

    def states(self) -> Iterator[tuple[Merge | None, tuple[int, ...]]]:
        """The symbols at the start (with None), and after each merge."""
        symbols = list(self.symbols)
        yield None, tuple(symbols)
        for step in self.merges:
            symbols[step.place : step.place + 2] = [step.id]
            yield step, tuple(symbols)

    @property
    def ids(self) -> tuple[int, ...]:
        """What it becomes."""
        return list(self.states())[-1][1]


def trace(tokenizer: PipelineTokenizer, text: str) -> list[PieceTrace]:
    """Every piece of `text`, with its merges; added tokens are one symbol.

    Raises: UserError for a tokenizer that has no merges.
    """
    model = tokenizer.vocabulary.model
    if not isinstance(model, BPE):
        raise UserError(
            f"{type(model).__name__} has no merges: it chooses among whole tokens at once"
        )
    found = []
    for part, token_id, begins in tokenizer.added_tokens.split(text, allow_special=False):
        if token_id is not None:
            found.append(PieceTrace(piece=part, symbols=(token_id,), merges=()))
            continue
        for piece in tokenizer.pre_tokenizer.words(
            tokenizer.pre_tokenizer.change(part, at_start=begins)
        ):
            found.append(_traced(model, piece))
    return found


def _traced(model: BPE, piece: str) -> PieceTrace:
    whole = model.ids.get(utf8(piece)) if model.ignore_merges else None
    if whole is not None:
        return PieceTrace(piece=piece, symbols=(whole,), merges=())
    symbols, done = model.first_symbols(piece), list[Merge]()
    merge(symbols, model.ranked, done)
    return PieceTrace(piece=piece, symbols=tuple(symbols), merges=tuple(done))
