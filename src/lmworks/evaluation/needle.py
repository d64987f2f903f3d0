"""Stage `needle`: what a model still finds in a long text, by length and by depth.

A sentence that gives a key its value (the needle) is put into the user's own text (the haystack)
at a depth between its start and its end; the prompt ends in the beginning of the same sentence, and
the model is scored on the value. Keys and values are words of the haystack, drawn anew for each
trial, so that nothing can be known without the needle, and a small model that was trained on such
text can have learned to copy (`lmworks data needles` makes such text).

Two figures per cell of the grid: how often greedy decoding gives exactly the value, and by how many
nats per token the needle makes the value likelier than the same prompt without it. The second tells
a model that is helped from one that is not long before the first does.

Source: Kamradt 2023, "Needle in a haystack"; exact copies with drawn keys: Hsieh et al. 2024
(RULER), arXiv 2404.06654. Left out: several needles at once, and answers judged by a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage
from lmworks.data.needles import NEEDLE, check_needle

if TYPE_CHECKING:
    from lmworks.evaluation.needle_trials import Haystack, Trial
    from lmworks.evaluation.statistics import Interval
    from lmworks.models.model import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedleConfig:
    """Whether a model finds a sentence in a long text, over lengths and depths, with intervals.

    Examples:
        lmworks eval needle --model smollm2-135m --text runs/corpus --out runs/needle
        lmworks eval needle --model model.gguf --text book.txt --lengths '[1024, 4096]' \\
            --depths '[0, 0.5, 1]' --samples 10
        lmworks eval needle --model runs/base --text book.txt --needle '{key}: {value}'
    """

    model: str = option(role=REFERENCE, help="model folder, GGUF file or reference")
    text: str = option(role=REFERENCE, help="the haystack: corpus folder, .txt or .jsonl")
    lengths: list[int] = option([], help="tokens of a prompt; none: parts of the model's context")
    depths: list[float] = option([0.0, 0.25, 0.5, 0.75, 1.0], help="0: at the start, 1: at the end")
    samples: int = option(8, help="trials per length, each with its own key, value and text")
    needle: str = option(NEEDLE, help="the sentence, with {key} and then {value}")
    words: int = option(1, help="words of a value")
    seed: int = option(0, help="same seed, same bytes")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One length and depth."""

    length: int
    depth: float
    found: Interval  # share of exact values
    gain: Interval  # nats per token of the value, against the prompt without the needle


@stage("needle", makes="report")
def needle(config: NeedleConfig, run: Run) -> dict[str, Any]:
    """Read all prompts, write `report.json` and `report.html`; see NeedleConfig."""
    from lmworks.core.files import write_json, write_text
    from lmworks.evaluation.long_context_page import needle_page
    from lmworks.evaluation.needle_trials import read_haystack
    from lmworks.evaluation.report import plain_values
    from lmworks.models.load import load_language_model
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.threads import set_threads

    check(config)
    set_threads(config.threads)
    model = load_language_model(run.inputs["model"])
    haystack = read_haystack(run.inputs["text"], load_tokenizer(run.inputs["model"]))
    lengths = config.lengths or _parts_of(model.config.max_position_embeddings)
    cells = measure(model, haystack, config, lengths)
    title = f"Needle in a haystack: {Path(config.model).name}"
    write_json(run.folder / "report.json", {"title": title, "cells": plain_values(cells)})
    write_text(run.folder / "report.html", needle_page(title, cells, config))
    return {
        "summary": summary(cells),
        "found": {f"{c.length} at {c.depth:g}": round(c.found.estimate, 3) for c in cells},
    }


def check(config: NeedleConfig) -> None:
    """Raises: UserError for settings that make no trial."""
    if config.samples < 1 or config.words < 1:
        raise UserError("samples and words must be at least 1")
    if not config.depths or not all(0 <= depth <= 1 for depth in config.depths):
        raise UserError("depths must be numbers from 0 (the start) to 1 (the end)")
    if any(length < 1 for length in config.lengths):
        raise UserError("lengths are numbers of tokens, from 1 up")
    check_needle(config.needle)


def _parts_of(context: int) -> list[int]:
    return sorted({max(1, context // part) for part in (8, 4, 2, 1)})


def measure(
    model: Model, haystack: Haystack, config: NeedleConfig, lengths: Sequence[int]
) -> list[Cell]:
    """The cells, lengths first. Raises: UserError as `Haystack.trial` does."""
    from lmworks.core.progress import track
    from lmworks.evaluation.needle_trials import score

    cells = []
    total = sum(lengths) * config.samples * (len(config.depths) + 1)
    with track("reading prompts", total=total) as bar:
        for length in lengths:
            trials = [_trial(haystack, config, length, number) for number in range(config.samples)]
            without = []
            for trial in trials:
                without.append(score(model, trial.prompt(None), trial.answer))
                bar.advance(length)
            for depth in config.depths:
                scores = []
                for trial in trials:
                    scores.append(score(model, trial.prompt(depth), trial.answer))
                    bar.advance(length)
                cells.append(_cell(length, depth, scores, without))
    return cells


def _trial(haystack: Haystack, config: NeedleConfig, length: int, number: int) -> Trial:
    return haystack.trial(
        length, needle=config.needle, words=config.words, seed=(config.seed, length, number)
    )


def _cell(
    length: int,
    depth: float,
    scores: Sequence[tuple[float, bool]],
    without: Sequence[tuple[float, bool]],
) -> Cell:
    from lmworks.evaluation.statistics import mean_interval, share_interval

    gains = [nats - other for (nats, _), (other, _) in zip(scores, without, strict=True)]
    return Cell(
        length=length,
        depth=depth,
        found=share_interval(sum(exact for _, exact in scores), len(scores)),
        gain=mean_interval(gains),
    )


def summary(cells: Sequence[Cell]) -> str:
    """One sentence: the longest text in which it is found at every depth more often than not."""
    lengths = sorted({cell.length for cell in cells})
    good = [n for n in lengths if all(c.found.estimate > 0.5 for c in cells if c.length == n)]
    share = sum(cell.found.estimate for cell in cells) / len(cells)
    if not good:
        return f"Found in {share:.0%} of trials; at no length at every depth more often than not."
    return (
        f"Found in {share:.0%} of trials; at every depth more often than not up to "
        f"{good[-1]:,} tokens."
    )
