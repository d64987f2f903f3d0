"""Several languages in one vocabulary: weights for the small ones, and how each one fares.

The weight of a language with the share q of all bytes is (q_max / q) ** (1 - 1 / T): as if texts
were drawn with probability p ~ q ** (1 / T), exponentially smoothed as in mBERT (T = 1 / 0.7) and
XLM-R (T = 1 / 0.3). Counts are multiplied and rounded, nothing is drawn, so the result is the same
every time. The largest language keeps its counts; at T = 1 all do.

Sources: Devlin et al. 2018, released multilingual models' notes; Conneau et al. 2020, arXiv
1911.02116, section 3.1; parity: Petrov et al. 2023, arXiv 2305.15425, section 2.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError, nearest
from lmworks.core.progress import track
from lmworks.tokenizers.texts import read_texts

if TYPE_CHECKING:
    from lmworks.tokenizers.tokenizer import PipelineTokenizer
    from lmworks.tokenizers.word_counts import WordCounts

_PARALLEL_BYTES = 1 << 28
MEASURED_BYTES = 2_000_000  # of each language's text


def weights(sizes: Mapping[str, int], temperature: float) -> dict[str, float]:
    """What each language's counts are multiplied with.

    Args:
        sizes: bytes of text.
    Raises: UserError for a temperature below 1.
    """
    if not temperature >= 1:
        raise UserError(f"temperature = {temperature}: from 1 (counts as they are) up")
    largest = max(sizes.values())
    return {name: (largest / max(1, size)) ** (1 - 1 / temperature) for name, size in sizes.items()}


def weighted(
    languages: Mapping[str, WordCounts], temperature: float
) -> tuple[dict[str, WordCounts], dict[str, float]]:
    """Counts times weights, and the weights."""
    import numpy as np

    sizes = {
        name: int((np.diff(words.ends, prepend=0) * words.counts).sum())
        for name, words in languages.items()
    }
    by_name = weights(sizes, temperature)
    return {
        name: dataclasses.replace(
            words, counts=np.rint(words.counts * by_name[name]).astype(np.int64)
        )
        for name, words in languages.items()
    }, by_name


def sentences(languages: Mapping[str, Sequence[Path]]) -> int | None:
    """How many lines every language has, or None when they differ: then nothing is parallel.

    Files of many megabytes are not looked at, nor are Parquet files.
    """
    files = [file for some in languages.values() for file in some]
    if len(languages) < 2 or sum(file.stat().st_size for file in files) > _PARALLEL_BYTES:
        return None
    if any(file.suffix == ".parquet" for file in files):
        return None
    numbers = {_lines(files) for files in languages.values()}
    return numbers.pop() if len(numbers) == 1 else None


def _lines(files: Iterable[Path]) -> int:
    count = 0
    for file in files:
        last = b"\n"
        with open(file, "rb") as stream:
            while part := stream.read(1 << 20):
                count += part.count(b"\n")
                last = part[-1:]
        count += last != b"\n"
    return count


def check_parallel(
    languages: Mapping[str, Sequence[Path]], parallel: Mapping[str, Sequence[Path]], where: Path
) -> dict[str, Sequence[Path]]:
    """The parallel files of the corpus's languages, in their order.

    Raises: UserError for a language that is missing, or lines that are not parallel.
    """
    for name in languages:
        if name not in parallel:
            close = nearest(name, parallel)
            hint = f"did you mean {close!r}? " if close else ""
            raise UserError(
                f"{where} has nothing for the language {name!r}: {hint}it has "
                f"{', '.join(parallel) or 'no files'}"
            )
    chosen = {name: parallel[name] for name in languages}
    if sentences(chosen) is None:
        lines = ", ".join(f"{name} {_lines(files):,}" for name, files in chosen.items())
        raise UserError(f"{where} is not parallel line by line: {lines}")
    return chosen


def compression(
    tokenizer: PipelineTokenizer, languages: Mapping[str, Sequence[Path]], num_sentences: int | None
) -> dict[str, Any]:
    """Bytes per token of each language, and tokens per sentence where lines are parallel.

    Text beyond MEASURED_BYTES is passed over, unless sentences are counted. `worst_to_best` is how
    many times more tokens (per sentence; else per byte) the worst language takes than the best.
    """
    found: dict[str, Any] = {}
    with track("measuring", total=len(languages)) as bar:
        for name, files in languages.items():
            texts = itertools.chain.from_iterable(map(read_texts, files))
            size, tokens = measure(tokenizer, texts, whole=num_sentences is not None)
            found[name] = {"bytes_per_token": size / max(1, tokens)}
            if num_sentences:
                found[name]["tokens_per_sentence"] = tokens / num_sentences
            bar.advance()
    costs = [
        row.get("tokens_per_sentence", 1 / max(1e-9, row["bytes_per_token"]))
        for row in found.values()
    ]
    return {"languages": found, "worst_to_best": max(costs) / max(1e-9, min(costs))}


def measure(
    tokenizer: PipelineTokenizer, texts: Iterable[str], *, whole: bool = False
) -> tuple[int, int]:
    """Bytes of text and tokens, of the first MEASURED_BYTES or of all."""
    num_bytes = num_tokens = 0
    for text in texts:
        for start in range(0, len(text), MEASURED_BYTES):
            part = text[start : start + MEASURED_BYTES]
            num_bytes += len(part.encode("utf-8", "replace"))
            num_tokens += len(tokenizer.encode(part))
            if num_bytes >= MEASURED_BYTES and not whole:
                return num_bytes, num_tokens
    return num_bytes, num_tokens
