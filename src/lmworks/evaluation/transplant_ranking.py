"""The leaderboard of a transplant: figures of each method, their intervals, a table, a sentence.

Intervals are each method's own; that the best was picked out of several is not counted in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lmworks.evaluation.report import GainRow, GainTable
from lmworks.evaluation.statistics import Interval, paired_interval, ratio_interval

if TYPE_CHECKING:
    from lmworks.data.documents import Document
    from lmworks.evaluation.scores import Scores
    from lmworks.tokenizers.base import Tokenizer

BEFORE = "before"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One line: figures of all passages; differences in bits per byte, below zero is better."""

    name: str
    bits_per_byte: Interval
    perplexity_per_byte: float
    perplexity_per_word: float
    bytes_per_token: float
    versus_before: Interval | None = None
    versus_best: Interval | None = None


def rank(
    scores: Mapping[str, Scores],
    passages: Sequence[Document],
    own: Mapping[str, Tokenizer],
    new: Tokenizer,
    *,
    seed: int = 0,
) -> list[Entry]:
    """The model before, then the methods from best to worst.

    Args:
        own: the tokenizer of each name that was not measured with the new one.
    """
    methods = sorted((n for n in scores if n != BEFORE), key=lambda n: scores[n].bits_per_byte)
    num_words = max(1, sum(len(p.text.split()) for p in passages))
    texts = [p.text for p in passages]
    entries = []
    for name in (BEFORE, *methods):
        found = scores[name]
        num_tokens = sum(map(len, own.get(name, new).encode_batch(texts)))
        entries.append(
            Entry(
                name=name,
                bits_per_byte=_level(found, seed),
                perplexity_per_byte=float(2**found.bits_per_byte),
                perplexity_per_word=float(2 ** (found.bits.sum() / num_words)),
                bytes_per_token=float(found.num_bytes.sum() / max(1, num_tokens)),
                versus_before=_paired(found, scores[BEFORE], seed) if name != BEFORE else None,
                versus_best=_paired(found, scores[methods[0]], seed)
                if name not in (BEFORE, methods[0])
                else None,
            )
        )
    return entries


def _level(scores: Scores, seed: int) -> Interval:
    return ratio_interval(scores.bits, scores.num_bytes, scores.groups, seed=seed)


def _paired(scores: Scores, other: Scores, seed: int) -> Interval:
    return paired_interval(scores.bits, other.bits, scores.num_bytes, scores.groups, seed=seed)


def sentence(entries: Sequence[Entry]) -> str:
    """Which method is best, by how much, and whether chance can be ruled out."""
    methods = entries[1:]
    if not methods:
        return "No method was measured."
    best = methods[0]
    level = f"{best.name} begins best: {best.bits_per_byte.estimate:.3f} bits per byte"
    assert best.versus_before is not None
    level += f" ({best.versus_before.estimate:+.3f} to the model before)"
    if len(methods) < 2:
        return level + "."
    second = methods[1]
    assert second.versus_best is not None
    lead = second.versus_best
    told = f"{abs(lead.estimate):.3f} less than {second.name}"
    if lead.excludes_zero:
        return f"{level}, {told} (95 % interval {lead.low:.3f} to {lead.high:.3f})."
    return f"{level}; no difference to {second.name} is shown."


def table(entries: Sequence[Entry]) -> str:
    """The leaderboard as a Markdown table."""
    head = (
        "| | bits/byte | 95 % | to before | 95 % | to the best | 95 % "
        "| perplexity/byte | perplexity/word | bytes/token |\n|---|" + "---:|" * 9 + "\n"
    )
    return head + "".join(_line(entry) for entry in entries) + "\n" + sentence(entries) + "\n"


def _line(entry: Entry) -> str:
    cells = [entry.name, f"{entry.bits_per_byte.estimate:.3f}", _ends(entry.bits_per_byte)]
    for difference in (entry.versus_before, entry.versus_best):
        cells += [f"{difference.estimate:+.3f}", _ends(difference)] if difference else ["", ""]
    cells += [f"{entry.perplexity_per_byte:.3f}", f"{entry.perplexity_per_word:,.1f}"]
    return "| " + " | ".join([*cells, f"{entry.bytes_per_token:.2f}"]) + " |\n"


def _ends(interval: Interval) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}" if interval.known else "too few groups"


def plain(entry: Entry) -> dict[str, Any]:
    """An entry as JSON values; an end of an interval that is not known is null."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(entry):
        value = getattr(entry, field.name)
        if isinstance(value, Interval):
            ends = (value.low, value.high) if value.known else (None, None)
            value = {"estimate": value.estimate, "low": ends[0], "high": ends[1]}
        found[field.name] = value
    return found


def gains(entries: Sequence[Entry], passages: Sequence[Document]) -> GainTable:
    """The leaderboard as the report's own table."""
    rows = tuple(
        GainRow(
            name=entry.name,
            bits_per_byte=entry.bits_per_byte,
            versus_previous=entry.versus_before,
            previous=BEFORE if entry.versus_before else "",
            note=f"{entry.bytes_per_token:.2f} bytes per token",
        )
        for entry in entries
    )
    num_bytes = sum(p.num_bytes for p in passages)
    num_groups = len({p.group for p in passages})
    note = f"{len(passages):,} passages in {num_groups:,} groups, {num_bytes / 1e3:,.0f} kB."
    return GainTable(title="Held-out passages", note=note, rows=rows)
