"""Fairness between languages: tokens for sentences that say the same.

Measured on parallel text, as `lmworks data parallel` makes it: a file a language, line n of one a
translation of line n of the others. Parity is the tokens that a language takes over those of the
yardstick, for the same sentences; 1 is fair. Its interval comes from drawing groups of sentences
anew, the same for both languages.

Source: Petrov et al. 2023, arXiv 2305.15425, section 2 (premium and parity).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from lmworks.core.errors import UserError
from lmworks.core.files import read_json
from lmworks.evaluation.statistics import Interval, ratio_interval
from lmworks.tokenizers.tokenizer import PipelineTokenizer

_GROUPS = "heldout_groups.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelText:
    """The same sentences in several languages, the yardstick first."""

    sentences: Mapping[str, Sequence[str]]  # by language, of one length
    groups: Sequence[str]  # of each sentence; those of one are drawn together


@dataclasses.dataclass(frozen=True, kw_only=True)
class FairnessRow:
    """What one tokenizer makes of one language."""

    tokenizer: str
    language: str
    tokens_per_sentence: Interval
    parity: Interval | None  # None for the yardstick itself


def read_parallel_text(path: Path, yardstick: str = "") -> ParallelText | None:
    """The held-out side of parallel text; None where `path` holds none.

    Args:
        yardstick: the language that comes first; empty takes the first by name.
    Raises: UserError when files do not agree, or the yardstick is none of the languages.
    """
    folder = path / "heldout"
    if not (path / _GROUPS).is_file() or not folder.is_dir():
        return None
    groups = read_json(path / _GROUPS, "groups of sentences")
    files = sorted(folder.glob("*.txt"))
    found = {file.stem: file.read_text(encoding="utf-8").splitlines() for file in files}
    if yardstick and yardstick not in found:
        raise UserError(f"{path} has no language {yardstick!r}: it has {', '.join(found)}")
    for language, lines in found.items():
        if not lines or not isinstance(groups, list) or len(lines) != len(groups):
            raise UserError(f"{folder}: {language}.txt has not the lines that the others have")
    order = sorted(found, key=lambda language: (language != yardstick, language))
    return ParallelText(
        sentences={name: found[name] for name in order}, groups=list(map(str, groups))
    )


def fairness(tokenizers: Mapping[str, PipelineTokenizer], text: ParallelText) -> list[FairnessRow]:
    """Tokens per sentence and parity of every tokenizer in every language."""
    rows = []
    ones = [1.0] * len(text.groups)
    for name, tokenizer in tokenizers.items():
        first: list[float] | None = None
        for language, lines in text.sentences.items():
            counts = [float(len(ids)) for ids in tokenizer.encode_batch(lines)]
            parity = None if first is None else ratio_interval(counts, first, text.groups)
            first = first or counts
            rows.append(
                FairnessRow(
                    tokenizer=name,
                    language=language,
                    tokens_per_sentence=ratio_interval(counts, ones, text.groups),
                    parity=parity,
                )
            )
    return rows
