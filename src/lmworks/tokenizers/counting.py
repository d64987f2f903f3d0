"""Counting the words that a tokenizer's steps make of texts: what every trainer begins with.

Kept tokens are cut out first, text is normalised and changed, then cut; the kernels count, or
plain Python where a pattern is no automaton.

Counting the files of many languages can be killed and goes on: whenever so much text was read,
what is counted is written down with the place that was reached. That happens at the same places
whether a run was stopped or not, so the result is the same to the bit.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.files import read_json, write_json
from lmworks.core.progress import Bar, track
from lmworks.tokenizers.counting_threads import ThreadedCounter
from lmworks.tokenizers.texts import placed_texts
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.vocabulary import Vocabulary
from lmworks.tokenizers.word_counts import (
    WordCounts,
    from_words,
    load_counts,
    save_counts,
)

CHECKPOINT_CHARACTERS = 1 << 28  # of text between two
_PART = 1 << 20  # characters counted at once
_ONE_LINE = re.compile(r"(?<=\S)\n(?=\S)")
_MOST_WORDS = 1 << 24  # bytes of different words that a trainer is given, of all languages
_LEAST_WORDS = 1 << 20  # of one language
_NO_TEXT = "there is no text to learn a tokenizer from"


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
        raise UserError(_NO_TEXT)
    return words


def count_files(
    blank: Vocabulary, languages: Mapping[str, Sequence[Path]], *, work: Path | None = None
) -> dict[str, WordCounts]:
    """The words of each language's files.

    Args:
        work: folder for what a resume needs.
    Raises: UserError when a file can't be read, or all of them hold no text.
    """
    tokenizer = PipelineTokenizer(blank)
    most = max(_LEAST_WORDS, _MOST_WORDS // len(languages))
    total = sum(
        file.stat().st_size for files in languages.values() for file in files if file.is_file()
    )
    with track("counting words", total=total) as bar, _folder(work) as folder:
        found = {
            name: _Counting(tokenizer, files, folder / str(number)).finish(bar, most)
            for number, (name, files) in enumerate(languages.items())
        }
    for name, words in found.items():
        if not len(words):
            raise UserError(f"the language {name!r} has no text" if name else _NO_TEXT)
    return found


@contextlib.contextmanager
def _folder(work: Path | None) -> Iterator[Path]:
    if work is not None:
        yield work / "counts"
    else:
        with tempfile.TemporaryDirectory(prefix="lmworks-words-") as temporary:
            yield Path(temporary)


def parts_of(text: str) -> Iterator[str]:
    """A text in parts that begin where a line does; a very long line is parted between words."""
    at = 0
    while len(text) - at > _PART:
        place = _ONE_LINE.search(text, at + _PART // 2, at + _PART)
        space = text.rfind(" ", at + _PART // 2, at + _PART)
        end = place.end() if place else space if space > 0 else at + _PART
        yield text[at:end]
        at = end
    yield text[at:] if at else text


class _Counting:
    """The files of one language, and how far they are counted."""

    def __init__(self, tokenizer: PipelineTokenizer, files: Sequence[Path], folder: Path) -> None:
        self.tokenizer, self.files, self.folder = tokenizer, files, folder
        self.state = folder / "reached.json"
        self.done = folder / "counted.npz"

    def finish(self, bar: Bar, most: int) -> WordCounts:
        """Count what is left; at most so many bytes of words are kept."""
        if self.done.is_file():
            bar.advance(sum(file.stat().st_size for file in self.files))
            return load_counts(self.done)
        self.folder.mkdir(parents=True, exist_ok=True)
        reached: dict[str, Any] = {"file": 0, "place": 0, "runs": []}
        if self.state.is_file():
            reached = read_json(self.state)
        counter = TextCounter(self.tokenizer, folder=self.folder, runs=reached["runs"])
        since = 0
        for number in range(reached["file"], len(self.files)):
            before = start = reached["place"] if number == reached["file"] else 0
            bar.advance(before)
            for text, place in placed_texts(self.files[number], start):
                counter.add(text)
                since += len(text)
                bar.advance(_bytes_read(self.files[number], place - before, text))
                before = place
                if since >= CHECKPOINT_CHARACTERS and counter.counter is not None:
                    runs = counter.counter.checkpoint()
                    write_json(self.state, {"file": number, "place": place, "runs": runs})
                    since = 0
        words = counter.finish(most=most)
        save_counts(words, self.done)
        for run in self.folder.glob("*/run-*.npz"):
            run.unlink()
        return words


def _bytes_read(file: Path, places: int, text: str) -> int:
    return len(text) if file.suffix == ".parquet" else places


class TextCounter:
    """Counts the words of texts, as the steps of a tokenizer make them."""

    def __init__(
        self,
        tokenizer: PipelineTokenizer | Vocabulary,
        *,
        allow_special: bool = False,
        **options: Any,
    ) -> None:
        """`options`: of ThreadedCounter."""
        from lmworks.tokenizers.automaton import Unsupported
        from lmworks.tokenizers.mapped import Mapping

        if isinstance(tokenizer, Vocabulary):
            tokenizer = PipelineTokenizer(tokenizer)
        self._tokenizer, self._allow_special = tokenizer, allow_special
        self._normalize = Mapping(tokenizer).normalized
        self._plain = tokenizer.vocabulary.normalizer is None
        self.words: Counter[str] = Counter()  # where the kernels can't count
        self.counter: ThreadedCounter | None = None
        with contextlib.suppress(Unsupported):
            self.counter = ThreadedCounter(tokenizer.pre_tokenizer.cuts, **options)

    def add(self, text: str) -> None:
        """Count the words of a text, however long it is."""
        for part in parts_of(text):
            self._add(part)

    def _add(self, text: str) -> None:
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
        """What was counted; `options`: of ThreadedCounter.finish."""
        if self.counter is not None:
            return self.counter.finish(**options)
        return from_words(self.words)
