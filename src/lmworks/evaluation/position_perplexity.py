"""Stage `position_perplexity`: how well a model reads on, by how much text it has read before.

Held-out text is cut into sequences of one length, and the loss is averaged over spans of positions
that double in width. A model that uses its context gets better from span to span; one that is led
beyond the lengths it learned gets worse, and the curve shows where. The last span is compared with
the one before half of the sequence, sequence by sequence, so that it can be said whether the second
half of the context still helps.

Each sequence is one unit of the intervals (Student's). Sequences that are cut from one document
are alike, so that with few documents the intervals are too narrow.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage

if TYPE_CHECKING:
    import numpy as np

    from lmworks.evaluation.context import ContextConfig
    from lmworks.evaluation.statistics import Interval

_FIRST_SPAN = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionPerplexityConfig:
    """Perplexity by position in long texts: how much context helps, and where a model breaks.

    Examples:
        lmworks eval position-perplexity --model runs/base --text runs/corpus --out runs/positions
        lmworks eval position-perplexity --model smollm2-135m --text book.txt --length 4096 \\
            --compare-with runs/longer
    """

    model: str = option(role=REFERENCE, help="model folder, GGUF file or reference")
    text: str = option(role=REFERENCE, help="text to read: corpus folder, .txt or .jsonl")
    compare_with: str = option("", role=REFERENCE, help="another model with the same tokenizer")
    length: int = option(0, help="tokens of a sequence; 0 takes the model's context")
    max_sequences: int = option(32, help="read this many sequences; 0 takes all")
    seed: int = option(0, help="same seed, same bytes")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
    """Positions first .. last (tokens read before, from 1 on) and the loss there."""

    first: int
    last: int
    nats: Interval
    perplexity: Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """One model's spans.

    `second_half` is the loss of the last span less that of the span before half of the sequence,
    paired; below zero: the second half of the context helps.
    """

    name: str
    spans: list[Span]
    second_half: Interval | None


@stage("position_perplexity", makes="report")
def position_perplexity(config: PositionPerplexityConfig, run: Run) -> dict[str, Any]:
    """Read all sequences, write `report.json` and `report.html`; see PositionPerplexityConfig."""
    from lmworks.core.files import write_json, write_text
    from lmworks.evaluation.long_context_page import position_page
    from lmworks.evaluation.report import plain_values
    from lmworks.training.threads import set_threads

    if config.length < 0 or config.length == 1 or config.max_sequences < 0:
        raise UserError("length must be 0 (the model's) or at least 2, max_sequences 0 or more")
    set_threads(config.threads)
    references = {"model": config.model, "compare_with": config.compare_with}
    sequences: np.ndarray | None = None
    readings = []
    for field in (name for name in references if name in run.inputs):
        nats, sequences = _read(run.inputs[field], run.inputs["text"], config, sequences)
        readings.append(reading(Path(references[field]).name, nats))
    title = f"Perplexity by position: {Path(config.model).name}"
    write_json(run.folder / "report.json", {"title": title, "models": plain_values(readings)})
    write_text(run.folder / "report.html", position_page(title, readings, len(nats)))
    return {
        "summary": summary(readings[0]),
        "perplexity": {str(s.last): round(s.perplexity.estimate, 4) for s in readings[0].spans},
    }


def _read(
    path: Path, text: Path, config: PositionPerplexityConfig, sequences: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The loss of each token but the first, (sequences, length - 1) nats, and the sequences."""
    import numpy as np

    from lmworks.inference.logprobs import decoder_logprobs
    from lmworks.models.load import load_language_model
    from lmworks.tokenizers.load import load_tokenizer

    model = load_language_model(path)
    if sequences is None:
        length = config.length or model.config.max_position_embeddings
        stream = token_stream_of(text, load_tokenizer(path))
        sequences = cut(stream, length, config)
    elif int(sequences.max()) >= model.config.vocab_size:
        raise UserError(f"{config.compare_with} has another tokenizer: it can't read the same ids")
    logprobs = decoder_logprobs(model, window=sequences.shape[1])
    return -np.stack(logprobs(list(sequences))), sequences


def token_stream_of(path: Path, tokenizer: Any) -> np.ndarray:
    """The ids of a corpus folder's held-out documents, or of the texts of a file, in a row."""
    from lmworks.data.documents import Document, read_documents
    from lmworks.tokenizers.train import read_texts
    from lmworks.training.tokens import token_stream

    if path.is_dir():
        return token_stream(read_documents(path / "heldout.jsonl"), tokenizer)
    documents = (
        Document(id=str(number), group="", source=str(path), title=path.name, text=text)
        for number, text in enumerate(read_texts(path))
    )
    return token_stream(documents, tokenizer)


def cut(
    stream: np.ndarray, length: int, config: PositionPerplexityConfig | ContextConfig
) -> np.ndarray:
    """(tokens,) -> (sequences, length), a fixed draw of them in their order.

    Raises: UserError if there are not two.
    """
    import numpy as np

    count = len(stream) // length
    if count < 2:
        raise UserError(
            f"the text has {len(stream):,} tokens: too few for two sequences of {length:,}; "
            "give more text, or a smaller length"
        )
    whole = np.asarray(stream[: count * length]).reshape(count, length)
    if not config.max_sequences or config.max_sequences >= count:
        return whole
    if config.max_sequences < 2:
        raise UserError("max_sequences must be at least 2, so that there is an interval")
    picked = np.random.default_rng(config.seed).choice(count, config.max_sequences, replace=False)
    return whole[np.sort(picked)]


def reading(name: str, nats: np.ndarray) -> Reading:
    """Spans of the losses (sequences, positions)."""
    from lmworks.evaluation.statistics import mean_interval

    bounds = spans_of(nats.shape[1])
    spans = []
    for first, last in bounds:
        loss = mean_interval(nats[:, first - 1 : last].mean(1))
        spans.append(Span(first=first, last=last, nats=loss, perplexity=_exponential(loss)))
    second_half = None
    if len(bounds) > 1:
        late, early = (nats[:, first - 1 : last].mean(1) for first, last in bounds[:-3:-1])
        second_half = mean_interval(late - early)
    return Reading(name=name, spans=spans, second_half=second_half)


def spans_of(num_positions: int) -> list[tuple[int, int]]:
    """Spans 1..16, 17..32, 33..64 and so on; a rest of under half a span joins the last."""
    spans, first, last = [], 1, _FIRST_SPAN
    while first <= num_positions:
        spans.append((first, min(last, num_positions)))
        first, last = last + 1, 2 * last
    if len(spans) > 1 and 2 * (spans[-1][1] - spans[-1][0] + 1) < spans[-1][0] - 1:
        (first, _), (_, last) = spans[-2:]
        spans[-2:] = [(first, last)]
    return spans


def _exponential(interval: Interval) -> Interval:
    from lmworks.evaluation.statistics import Interval

    def finite(value: float) -> float:
        return math.exp(value) if value < 700 else math.inf

    return Interval(finite(interval.estimate), finite(interval.low), finite(interval.high))


def summary(found: Reading) -> str:
    """One sentence: the perplexity at the end, and whether the second half of the context helps."""
    last, change = found.spans[-1], found.second_half
    text = f"Perplexity {last.perplexity.estimate:.2f} at positions {last.first} to {last.last}"
    if change is None or not change.excludes_zero:
        return text + "; no difference to the span before is shown."
    word = "lower" if change.high < 0 else "higher"
    return text + f", {word} than in the span before ({change.estimate:+.3f} nats per token)."
