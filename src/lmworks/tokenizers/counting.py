"""Counting the words that a tokenizer's steps make of texts: what every trainer begins with.

Kept tokens are cut out first, text is normalised and changed, then cut; the kernels count, or
plain Python where a pattern is no automaton.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.progress import track
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.vocabulary import Vocabulary
from lmworks.tokenizers.word_counts import WordCounter, WordCounts, from_words


def count_texts(
    tokenizer: PipelineTokenizer | Vocabulary, texts: Iterable[str], *, allow_special: bool = False
) -> WordCounts:
    """How often each word occurs.

    Args:
        allow_special: the text of special tokens is no part of words.
    Raises: UserError when there is no text, or a pattern takes time without end.
    """
    counter = TextCounter(tokenizer, allow_special=allow_special)
    with track("counting words") as bar:
        for text in texts:
            counter.add(text)
            bar.advance()
    return checked(counter.finish())


def checked(words: WordCounts) -> WordCounts:
    """The words. Raises: UserError when there are none."""
    if not len(words):
        raise UserError("there is no text to learn a tokenizer from")
    return words


class TextCounter:
    """Counts the words of texts, as the steps of a tokenizer make them."""

    def __init__(
        self,
        tokenizer: PipelineTokenizer | Vocabulary,
        *,
        allow_special: bool = False,
        **options: Any,
    ) -> None:
        """`options`: of WordCounter."""
        from lmworks.tokenizers.automaton import Unsupported
        from lmworks.tokenizers.mapped import mapping_of

        if isinstance(tokenizer, Vocabulary):
            tokenizer = PipelineTokenizer(tokenizer)
        self._tokenizer, self._allow_special = tokenizer, allow_special
        self._normalize = mapping_of(tokenizer).normalized
        self._plain = tokenizer.vocabulary.normalizer is None
        self.words: Counter[str] = Counter()  # where the kernels can't count
        self.counter: WordCounter | None = None
        with contextlib.suppress(Unsupported):
            self.counter = WordCounter(tokenizer.pre_tokenizer.cuts, **options)

    def add(self, text: str) -> None:
        """Count the words of a text."""
        for piece in self._pieces(text):
            if self.counter is not None:
                self.counter.add(piece)
            else:
                self.words.update(self._tokenizer.pre_tokenizer.words(piece))

    def _pieces(self, text: str) -> Iterator[str]:
        """What lies between kept tokens, as it is cut."""
        tokenizer = self._tokenizer
        text = text.encode("utf-8", "replace").decode()  # no lone surrogates
        normalize = None if self._plain else self._normalize
        split = tokenizer.added_tokens.split(
            text, allow_special=self._allow_special, normalize=normalize
        )
        for piece, token_id, begins in split:
            if token_id is None:
                yield tokenizer.pre_tokenizer.change(piece, at_start=begins)

    def finish(self, **options: Any) -> WordCounts:
        """What was counted; `options`: of WordCounter.finish."""
        if self.counter is not None:
            return self.counter.finish(**options)
        return from_words(self.words)
