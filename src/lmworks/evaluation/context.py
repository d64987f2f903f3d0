"""Stage `context`: what a longer context is worth, before it was extended and after.

Two models with the same tokenizer, of which one had its context extended (`model extend-context`),
and was perhaps trained on after that. Over lengths from half of the shorter context to the whole of
the longer one, on the same prompts and the same held-out text:

- how often a sentence is found that was put into the text at a drawn depth (see `needle`);
- what a token costs in the last quarter of a text, in nats;
- up to the shorter context, whether both give every token the same probability, to the bit.

Units of the intervals are the trials and the sequences; differences are paired.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage
from lmworks.data.needles import NEEDLE, check_needle

if TYPE_CHECKING:
    import numpy as np

    from lmworks.evaluation.needle_trials import Haystack
    from lmworks.evaluation.statistics import Interval
    from lmworks.models.model import Model

_LEAST_DEPTH, _MOST_DEPTH = 0.05, 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """What an extended context gives: sentences found and loss by length, before and after.

    Examples:
        lmworks eval context --model runs/longer --compare-with runs/base --text runs/corpus
        lmworks eval context --model runs/longer --compare-with smollm2-135m --text book.txt \\
            --lengths '[8192, 16384]' --samples 20 --out runs/context
    """

    model: str = option(role=REFERENCE, help="the model whose context was extended")
    compare_with: str = option(role=REFERENCE, help="the model before that")
    text: str = option(role=REFERENCE, help="held-out text: corpus folder, .txt or .jsonl")
    lengths: list[int] = option(
        [], help="tokens; none: half the old context, doubled up to the new"
    )
    samples: int = option(16, help="trials per length, each with its own sentence, depth and text")
    max_sequences: int = option(8, help="texts whose loss is measured")
    needle: str = option(NEEDLE, help="the sentence to find, with {key} and then {value}")
    words: int = option(1, help="words of a value")
    seed: int = option(0, help="same seed, same bytes")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """One model at one length."""

    found: Interval  # share of exact values
    nats: Interval  # per token of the last quarter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """Both models at one length.

    Attributes:
        same: whether all probabilities are equal to the bit; None beyond the old context.
        found_change, nats_change: after less before, paired.
    """

    length: int
    before: Side
    after: Side
    found_change: Interval
    nats_change: Interval
    same: bool | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """All lengths.

    Attributes:
        native: the context before.
        nats_kept: what a token costs at the end of the longest texts after, less what it costs at
            the end of their first `native` tokens before; paired over texts.
    """

    native: int
    points: list[Point]
    nats_kept: Interval


@stage("context", makes="report")
def context(config: ContextConfig, run: Run) -> dict[str, Any]:
    """Ask, read, write `report.json` and `report.html`; see ContextConfig."""
    from lmworks.core.files import write_json
    from lmworks.evaluation.long_context_page import write_context_page
    from lmworks.evaluation.report import plain_values
    from lmworks.models.load import load_language_model
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.threads import set_threads

    _check(config)
    set_threads(config.threads)
    after, before = (load_language_model(run.inputs[name]) for name in ("model", "compare_with"))
    tokenizer = load_tokenizer(run.inputs["model"])
    if after.config.vocab_size != before.config.vocab_size:
        raise UserError(f"{config.compare_with} has another tokenizer: it can't read the same ids")
    found, losses = compare(before, after, run.inputs["text"], tokenizer, config)
    title = f"Longer context: {Path(config.model).name}"
    figures = {"title": title, "summary": summary(found), **plain_values(found)}
    write_json(run.folder / "report.json", figures)
    write_context_page(run.folder / "report.html", title, found, losses, config)
    return {
        "summary": summary(found),
        "found": {str(p.length): round(p.after.found.estimate, 3) for p in found.points},
        "nats": {str(p.length): round(p.after.nats.estimate, 4) for p in found.points},
    }


def _check(config: ContextConfig) -> None:
    if config.samples < 2 or config.max_sequences < 2:
        raise UserError("samples and max_sequences must be at least 2, so that there are intervals")
    if config.words < 1 or any(length < 8 for length in config.lengths):
        raise UserError("words must be at least 1, and lengths at least 8 tokens")
    check_needle(config.needle)


def compare(
    before: Model, after: Model, text: Path, tokenizer: Any, config: ContextConfig
) -> tuple[Comparison, dict[str, np.ndarray]]:
    """The comparison, and of each model the losses of the longest texts, (texts, positions) nats.

    Raises: UserError for a text too short for the lengths.
    """
    from lmworks.core.progress import track
    from lmworks.evaluation.needle_trials import read_haystack
    from lmworks.evaluation.position_perplexity import cut, token_stream_of
    from lmworks.evaluation.statistics import mean_interval

    native = before.config.max_position_embeddings
    lengths = sorted(set(config.lengths)) or _doubled(native, after.config.max_position_embeddings)
    haystack = read_haystack(text, tokenizer)
    stream = token_stream_of(text, tokenizer)
    texts = cut(stream, lengths[-1], config)
    begun = min(native, lengths[-1])
    points, first = [], None
    longest: dict[str, np.ndarray] = {}
    with track("reading", total=2 * sum(lengths) * (config.samples + len(texts))) as bar:
        for length in lengths:
            exact = {}
            for name, model in (("before", before), ("after", after)):
                exact[name] = [
                    _found(model, haystack, config, length, i) for i in range(config.samples)
                ]
                bar.advance(length * config.samples)
                longest[name] = _losses(model, texts[:, :length])
                bar.advance(length * len(texts))
            if length == begun:
                first = longest["before"]
            points.append(_point(length, exact, longest, native))
    if first is None:  # the old context is none of the lengths that were asked for
        first = _losses(before, texts[:, :begun])
    kept = mean_interval(_end(longest["after"]) - _end(first))
    return Comparison(native=native, points=points, nats_kept=kept), longest


def _doubled(native: int, longest: int) -> list[int]:
    lengths = [max(8, native // 2)]
    while 2 * lengths[-1] <= longest:
        lengths.append(2 * lengths[-1])
    return lengths


def _found(
    model: Model, haystack: Haystack, config: ContextConfig, length: int, number: int
) -> float:
    """1 if the value of trial `number` is found, else 0."""
    import numpy as np

    from lmworks.evaluation.needle_trials import score

    seed = (config.seed, length, number)
    trial = haystack.trial(length, needle=config.needle, words=config.words, seed=seed)
    spread = (number + np.random.default_rng([*seed, 1]).random()) / config.samples
    depth = _LEAST_DEPTH + (_MOST_DEPTH - _LEAST_DEPTH) * spread  # all depths, evenly
    return float(score(model, trial.prompt(depth), trial.answer)[1])


def _losses(model: Model, texts: np.ndarray) -> np.ndarray:
    """What each token but the first costs, (texts, length - 1) nats."""
    import numpy as np

    from lmworks.inference.logprobs import decoder_logprobs

    found: np.ndarray = -np.stack(decoder_logprobs(model, window=texts.shape[1])(list(texts)))
    return found


def _end(losses: np.ndarray) -> np.ndarray:
    """The mean of each text's last quarter."""
    ends: np.ndarray = losses[:, -(-3 * losses.shape[1] // 4) :].mean(1)
    return ends


def _point(
    length: int, exact: dict[str, list[float]], losses: dict[str, np.ndarray], native: int
) -> Point:
    import numpy as np

    from lmworks.evaluation.statistics import mean_interval, share_interval

    ends = {name: _end(values) for name, values in losses.items()}
    sides = {
        name: Side(
            found=share_interval(round(sum(values)), len(values)), nats=mean_interval(ends[name])
        )
        for name, values in exact.items()
    }
    found = np.subtract(exact["after"], exact["before"])
    same = bool(np.array_equal(losses["before"], losses["after"])) if length <= native else None
    return Point(
        length=length,
        before=sides["before"],
        after=sides["after"],
        found_change=mean_interval(found),
        nats_change=mean_interval(ends["after"] - ends["before"]),
        same=same,
    )


def summary(found: Comparison) -> str:
    """What was found at the longest length and within the old context, and what a token costs."""
    last, within = found.points[-1], [p for p in found.points if p.length <= found.native]
    text = f"At {last.length:,} tokens {last.after.found.estimate:.0%} of the sentences are found"
    if within:
        text += f" ({within[-1].before.found.estimate:.0%} at {within[-1].length:,} before)"
    kept = found.nats_kept
    word = "no more" if kept.low <= 0 else "more"
    text += f", and a token costs {word} than at the end of the old context ({kept.estimate:+.3f} "
    text += f"nats, {kept.low:+.3f} to {kept.high:+.3f})."
    if within and all(p.same for p in within):
        text += " Up to the old context both models say the same, to the bit."
    return text
