"""The seam: a trainer says how text is counted, and makes a vocabulary of the counts.

Counting is the same for all of them (counting.py): `Trainer.blank` gives the steps, and words are
what these make of text. What differs is what the first symbols are and how pieces are chosen.

Ids: special tokens first, in the order given, then reserved ones, then those to keep, then what
the trainer begins with (bytes, characters), then what it learns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from lmworks.core.errors import UserError
from lmworks.core.tables import look_up

if TYPE_CHECKING:
    from lmworks.tokenizers.vocabulary import AddedToken, Vocabulary
    from lmworks.tokenizers.word_counts import WordCounts

TRAINERS: dict[str, str] = {
    "bpe": "lmworks.tokenizers.trainers.byte_level:ByteLevelTrainer",
    "sentencepiece-bpe": "lmworks.tokenizers.trainers.sentencepiece:SentencePieceTrainer",
    "unigram": "lmworks.tokenizers.trainers.sentencepiece:UnigramTrainer",
    "wordpiece": "lmworks.tokenizers.trainers.wordpiece:WordPieceTrainer",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a vocabulary is to hold. Raises: UserError for numbers below 0."""

    vocab_size: int
    min_frequency: int = 2  # a pair seen less often is not merged; Unigram: no seed
    pattern: str = ""  # how text is cut; "" is the trainer's own way
    special_tokens: tuple[str, ...] | None = None  # None: the trainer's own
    keep: tuple[str, ...] = ()  # found whole in any text
    reserve: int = 0  # tokens that stand for nothing yet
    alphabet: float = 0.0  # from 1: characters kept; below: share of the text they make; 0: all

    def __post_init__(self) -> None:
        for name in ("reserve", "alphabet", "min_frequency"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} = {getattr(self, name)}: a number from 0 up")

    @property
    def reserved(self) -> tuple[str, ...]:
        """The texts of reserved tokens."""
        return tuple(f"<|reserved_{number}|>" for number in range(self.reserve))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """Counted words of each language, weights applied.

    `measured`: words of text by which languages are compared while merges are learnt, and how many
    units (sentences, or bytes) that text has; None where all languages are one.
    """

    languages: Mapping[str, WordCounts]
    measured: Mapping[str, tuple[WordCounts, int]] | None = None

    @property
    def words(self) -> WordCounts:
        """Those of all languages; a word of two of them is there twice."""
        from lmworks.tokenizers.word_counts import joined

        return joined(list(self.languages.values()))


class Trainer(Protocol):
    """One kind of vocabulary."""

    special_tokens: ClassVar[tuple[str, ...]]  # where the caller names none

    def __init__(self, wanted: Wanted) -> None:
        """Raises: UserError for what can't be."""

    def blank(self) -> Vocabulary:
        """Steps and added tokens, and no model yet: what text is counted with."""

    def learn(self, counts: Counts) -> Vocabulary:
        """The vocabulary. Raises: UserError when it would be too small for what it must hold."""


def trainer_for(name: str) -> type[Trainer]:
    """The trainer of a name. Raises: UserError with the nearest one."""
    found: type[Trainer] = look_up(TRAINERS, name, seam="trainer")
    return found


def leading_tokens(
    wanted: Wanted, special: Sequence[str], *, normalized: bool = False
) -> tuple[AddedToken, ...]:
    """Special, reserved and kept tokens, with the first ids.

    Args:
        normalized: kept tokens are looked for in normalised text.
    Raises: UserError for tokens that are in each other's way.
    """
    from lmworks.tokenizers.vocabulary import AddedToken

    apart = [*special, *wanted.reserved]
    _check({"special": special, "reserved": wanted.reserved, "kept": wanted.keep})
    added = [AddedToken(id=i, text=text) for i, text in enumerate(apart)]
    return tuple(
        added
        + [
            AddedToken(id=len(apart) + i, text=text, special=False, normalized=normalized)
            for i, text in enumerate(wanted.keep)
        ]
    )


def _check(tokens: Mapping[str, Iterable[str]]) -> None:
    kinds: dict[str, str] = {}
    for kind, texts in tokens.items():
        for text in texts:
            before = kinds.get(text)
            if not text or text != text.encode("utf-8", "replace").decode():
                raise UserError(f"the {kind} token {text!r} is no text: give it characters")
            if before == kind:
                raise UserError(f"the {kind} token {text!r} is named twice: name it once")
            if before:
                raise UserError(
                    f"{text!r} can't be a {before} token and a {kind} one: name it once"
                )
            kinds[text] = kind


def check_size(wanted: Wanted, needed: Mapping[str, int], *, advice: str = "") -> None:
    """Raises: UserError when `vocab_size` has no room for what must be in it.

    Args:
        needed: how many tokens of each kind ("bytes", "special tokens").
    """
    smallest = sum(needed.values())
    if wanted.vocab_size < smallest:
        parts = [f"{number:,} for {what}" for what, number in needed.items() if number]
        listed = ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]
        raise UserError(
            f"vocab_size = {wanted.vocab_size}: at least {smallest} are needed, {listed}{advice}"
        )
