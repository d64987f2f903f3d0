"""Tokenizers side by side on the user's text: tokens, bytes per token, fertility, what it costs.

Text is judged passage by passage, so that every difference between two tokenizers carries a paired
interval: the same passages are drawn for both. Fertility is tokens per word (a run without white
space); parity is how many tokens a language takes for each one of the first language, on texts
that say the same.

Sources: fertility: Rust et al. 2021, arXiv 2012.15613, section 3; parity: Petrov et al. 2023, arXiv
2305.15425, section 2.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lmworks.core.errors import UserError
from lmworks.core.progress import track
from lmworks.data.documents import read_documents
from lmworks.evaluation.statistics import Interval, paired_interval, ratio_interval
from lmworks.evaluation.tokenizer_fairness import read_parallel_text
from lmworks.tokenizers.tokenizer import PipelineTokenizer

_PASSAGE = 2000  # characters
_WORD = re.compile(r"\S+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passage:
    """A piece of text and where it comes from."""

    text: str
    source: str  # the file: passages of one file are alike and are drawn together
    language: str  # the folder, or the file where there is none


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerRow:
    """What one tokenizer makes of a text."""

    name: str
    vocab_size: int
    tokens: int
    bytes_per_token: Interval
    fertility: float  # tokens per word
    used: float  # share of the vocabulary that occurs
    failures: int  # passages that do not come back as they were
    first_failure: str | None
    saved: Interval | None  # tokens saved against the first tokenizer, share of its tokens
    context_share: float | None  # tokens / context window
    price: float | None  # for these tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageRow:
    """One language under one tokenizer."""

    tokenizer: str
    language: str
    tokens: int
    bytes_per_token: float
    fertility: float
    parity: float  # tokens / tokens of the first language


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChangedWord:
    """A word that two tokenizers cut differently."""

    word: str
    count: int
    before: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def saved(self) -> int:
        """Tokens saved over all its occurrences."""
        return self.count * (len(self.before) - len(self.after))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """The tables of a comparison."""

    passages: tuple[Passage, ...]
    rows: tuple[TokenizerRow, ...]
    languages: tuple[LanguageRow, ...]


def read_passages(path: Path, yardstick: str = "") -> list[Passage]:
    """Passages of held-out text, of a text file, or of all text files of a folder.

    Of a corpus and of parallel text, the held-out side is read, the latter sentence by sentence.
    Sub-folders, or files, name languages.

    Args:
        yardstick: of parallel text, the language that comes first.
    Raises: UserError when there is no text.
    """
    if path.suffix == ".jsonl" or (path / "heldout.jsonl").is_file():
        found = _documents(path if path.is_file() else path / "heldout.jsonl")
    elif parallel := read_parallel_text(path, yardstick):
        found = [
            Passage(text=text, source=group, language=language)
            for language, lines in parallel.sentences.items()
            for text, group in zip(lines, parallel.groups)
        ]
    else:
        found = _files(path)
    if not found:
        raise UserError(f"{path} holds no UTF-8 text to compare tokenizers on")
    return found


def _documents(path: Path) -> list[Passage]:
    return [
        Passage(text=part, source=document.group, language="")
        for document in read_documents(path)
        for part in passages_of(document.text)
    ]


def _files(path: Path) -> list[Passage]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    found = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue  # pictures and the like
        inner = file.relative_to(path).parts if path.is_dir() else ()
        language = inner[0] if len(inner) > 1 else file.stem
        found += [
            Passage(text=part, source=str(file), language=language) for part in passages_of(text)
        ]
    return found


def passages_of(text: str) -> list[str]:
    """A text in parts of some 2,000 characters that end with a line where they can."""
    parts, at = [], 0
    while at < len(text):
        end = at + _PASSAGE
        line = text.rfind("\n", at + _PASSAGE // 2, end)
        end = line + 1 if line > 0 and end < len(text) else end
        parts.append(text[at:end])
        at = end
    return [part for part in parts if part.strip()]


def compare(
    tokenizers: Mapping[str, PipelineTokenizer],
    passages: Sequence[Passage],
    *,
    context: int | None = None,
    price: float | None = None,
) -> Comparison:
    """The first tokenizer is what the others are compared with.

    Args:
        context: tokens of a context window.
        price: of a million tokens.
    Raises: UserError when there is nothing to compare.
    """
    if not passages or not tokenizers:
        raise UserError("comparing takes a text and a tokenizer at least")
    rows, languages = [], list[LanguageRow]()
    with track("encoding", total=len(tokenizers)) as bar:
        for row, own in compared(tokenizers, passages, context=context, price=price):
            rows.append(row)
            languages += own
            bar.advance()
    return Comparison(passages=tuple(passages), rows=tuple(rows), languages=tuple(languages))


def compared(
    tokenizers: Mapping[str, PipelineTokenizer],
    passages: Sequence[Passage],
    *,
    context: int | None = None,
    price: float | None = None,
    allow_special: bool = False,
) -> Iterator[tuple[TokenizerRow, list[LanguageRow]]]:
    """`compare`, one tokenizer after the other, for those who show each when it is done.

    Args:
        allow_special: read the text of special tokens as those tokens.
    """
    texts = [passage.text for passage in passages]
    first: list[int] | None = None
    for name, tokenizer in tokenizers.items():
        ids = tokenizer.encode_batch(texts, allow_special=allow_special)
        row = _row(name, tokenizer, passages, ids, first, context, price)
        first = first or [len(some) for some in ids]
        yield row, _languages(name, passages, ids)


def _row(
    name: str,
    tokenizer: PipelineTokenizer,
    passages: Sequence[Passage],
    ids: list[list[int]],
    first: list[int] | None,
    context: int | None,
    price: float | None,
) -> TokenizerRow:
    counts = [len(some) for some in ids]
    total, sources = sum(counts), _groups(passages)
    sizes = [len(passage.text.encode()) for passage in passages]
    failures = [p.text for p, some in zip(passages, ids) if tokenizer.decode(some) != p.text]
    saved = None
    if first is not None:
        base = [float(max(1, count)) for count in first]
        saved = paired_interval(base, [float(c) for c in counts], base, sources)
    return TokenizerRow(
        name=name,
        vocab_size=tokenizer.vocab_size,
        tokens=total,
        bytes_per_token=ratio_interval(
            # A passage of nothing but bytes that are dropped counts as one token.
            [float(s) for s in sizes],
            [float(max(1, c)) for c in counts],
            sources,
        ),
        fertility=total / max(1, sum(len(_WORD.findall(p.text)) for p in passages)),
        used=len({i for some in ids for i in some}) / max(1, tokenizer.vocab_size),
        failures=len(failures),
        first_failure=failures[0][:80] if failures else None,
        saved=saved,
        context_share=total / context if context else None,
        price=total * price / 1e6 if price is not None else None,
    )


def _groups(passages: Sequence[Passage]) -> list[str]:
    """Files; the passages themselves where there are too few files for an interval."""
    sources = [passage.source for passage in passages]
    return sources if len(set(sources)) >= 6 else [str(number) for number in range(len(passages))]


def _languages(name: str, passages: Sequence[Passage], ids: list[list[int]]) -> list[LanguageRow]:
    languages = list(dict.fromkeys(passage.language for passage in passages))
    if len(languages) < 2:
        return []
    tokens: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for passage, some in zip(passages, ids):
        tokens[passage.language] += len(some)
        sizes[passage.language] += len(passage.text.encode())
        words[passage.language] += len(_WORD.findall(passage.text))
    return [
        LanguageRow(
            tokenizer=name,
            language=language,
            tokens=tokens[language],
            bytes_per_token=sizes[language] / max(1, tokens[language]),
            fertility=tokens[language] / max(1, words[language]),
            parity=tokens[language] / max(1, tokens[languages[0]]),
        )
        for language in languages
    ]


def changed_words(
    before: PipelineTokenizer, after: PipelineTokenizer, texts: Iterable[str]
) -> list[ChangedWord]:
    """Words, with the space before them, that the two cut into another number of tokens.

    Those that save or cost the most come first.
    """
    counts = Counter(word for text in texts for word in re.findall(r" ?\S+", text))
    words = list(counts)
    changed = []
    for word, old, new in zip(words, before.encode_batch(words), after.encode_batch(words)):
        if len(old) != len(new):
            changed.append(
                ChangedWord(
                    word=word,
                    count=counts[word],
                    before=pieces(before, old),
                    after=pieces(after, new),
                )
            )
    return sorted(changed, key=lambda w: (-abs(w.saved), w.word))


def pieces(tokenizer: PipelineTokenizer, ids: Iterable[int]) -> tuple[str, ...]:
    """Each token's text; bytes that are no character on their own as U+FFFD."""
    return tuple(tokenizer.token_bytes(i).decode("utf-8", "replace") for i in ids)
