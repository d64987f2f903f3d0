"""Learning merges for a vocabulary: of all languages together, or fairly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lmworks.tokenizers import compiled_trainer
from lmworks.tokenizers.trainers.base import Counts, Wanted
from lmworks.tokenizers.trainers.fair import learn_fairly
from lmworks.tokenizers.word_counts import WordCounts

Pair = tuple[int, int]
Symbols = Callable[[WordCounts], WordCounts]


def learn_merges(
    counts: Counts,
    tokens: list[bytes],
    wanted: Wanted,
    *,
    protected: int,
    prefix: bytes = b"",
    longest: int = 0,
    symbols: Symbols = lambda words: words,
) -> list[Pair]:
    """Append merged tokens to `tokens` until there are enough; returns the merges.

    Args:
        protected: the first so many tokens are none that a merge may lead to.
        prefix: what the right one of a pair loses when it is joined (`##`).
        longest: characters of a token at most; 0: as many as there are.
        symbols: turns words into first symbols, where these are not bytes.
    """
    options: dict[str, Any] = {
        "vocab_size": wanted.vocab_size,
        "min_frequency": wanted.min_frequency,
        "protected": protected,
        "prefix": prefix,
        "longest": longest,
    }
    if counts.measured is None:
        return compiled_trainer.learn_merges(symbols(counts.words), tokens, **options)
    languages = {name: symbols(words) for name, words in counts.languages.items()}
    measured = [
        (languages[name] if words is counts.languages[name] else symbols(words), units)
        for name, (words, units) in counts.measured.items()
    ]
    return learn_fairly(list(languages.values()), measured, tokens, **options)
