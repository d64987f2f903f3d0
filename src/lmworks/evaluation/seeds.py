"""Stage `compare_seeds`: models that were trained in several ways, each from several seeds.

    lmworks eval seeds --models '{alone/0: A, alone/1: B, taught/0: C, taught/1: D}' --corpus CORPUS

What stands before the last slash is the way, the first way is the baseline. A way's bits per byte
are the mean over its models. Differences are paired by document, with the documents' interval, and
by seed, with Student's; better or worse is said where both leave out zero. Models may have
different tokenizers, since bytes are what is counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage

if TYPE_CHECKING:
    import numpy as np

    from lmworks.data.documents import Document
    from lmworks.evaluation.statistics import Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareSeedsConfig:
    """Ways of training side by side on held-out text, each over its seeds, with intervals.

    Examples:
        lmworks eval seeds --corpus runs/corpus --out runs/report --models \\
            '{alone/0: runs/a0, alone/1: runs/a1, distilled/0: runs/d0, distilled/1: runs/d1}'
    """

    models: dict[str, str] = option(
        role=REFERENCE, help="models by way/seed; the first way is the baseline"
    )
    corpus: str = option(role=REFERENCE, help="corpus folder (heldout.jsonl)")
    teacher: str = option(
        "", role=REFERENCE, help="also say what share of the way to this model was gone"
    )
    max_documents: int = option(100, help="measure this many texts; 0 takes all")
    window: int = option(0, help="tokens read at once; 0 takes each model's context")
    seed: int = option(0, help="same seed, same bytes")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """One way against the baseline, in bits per byte; below zero is better.

    Attributes:
        over_documents, over_seeds: intervals of the difference; of the baseline None.
        closed: the share of the baseline's distance to the teacher; None without one.
    """

    name: str
    num_seeds: int
    bits_per_byte: Interval
    over_documents: Interval | None = None
    over_seeds: Interval | None = None
    closed: Interval | None = None
    verdict: str = ""


@stage("compare_seeds", makes="report")
def compare_seeds(config: CompareSeedsConfig, run: Run) -> dict[str, Any]:
    """Measure all, compare ways; see CompareSeedsConfig."""
    import numpy as np

    from lmworks.core.files import write_json
    from lmworks.evaluation.bits_per_byte import read_heldout
    from lmworks.evaluation.report import Report, plain_values, write_report
    from lmworks.evaluation.report_parts import versions
    from lmworks.evaluation.variants import document_table
    from lmworks.training.threads import set_threads

    set_threads(config.threads)
    places = ways_of(config.models)
    documents = read_heldout(run.inputs["corpus"], config.max_documents, seed=config.seed)
    bits = {
        way: np.stack([_bits(config, run, f"models.{name}", documents) for name in names])
        for way, names in places.items()
    }
    teacher = _bits(config, run, "teacher", documents) if config.teacher else None
    ways = compared(bits, documents, teacher=teacher, seed=config.seed)
    notes = {way.name: way.verdict for way in ways}
    summary = "; ".join(_sentence(way, ways[0].name) for way in ways[1:]) or (
        f"{ways[0].name}: {ways[0].bits_per_byte.estimate:.3f} bits per byte"
    )
    write_json(run.folder / "ways.json", plain_values(ways))
    write_report(
        run.folder,
        Report(
            title="Ways of training, over seeds",
            summary=summary,
            gains=(document_table(bits, documents, notes),),
            versions=versions(),
        ),
    )
    return {"summary": summary} | {way.name: way.bits_per_byte.estimate for way in ways}


def ways_of(models: dict[str, str]) -> dict[str, list[str]]:
    """The names of each way's models. Raises: UserError for no model, or ways that differ in number
    of seeds, which then can't be paired."""
    found: dict[str, list[str]] = {}
    for name in models:
        way = name.rpartition("/")[0] or name
        found.setdefault(way, []).append(name)
    if not found:
        raise UserError("models: name one or more, such as {alone/0: runs/a, taught/0: runs/b}")
    counts = {way: len(names) for way, names in found.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{way} {count}" for way, count in counts.items())
        raise UserError(f"models: every way needs as many seeds as the others, not {told}")
    return found


def compared(
    bits: dict[str, np.ndarray],
    documents: Sequence[Document],
    *,
    teacher: np.ndarray | None = None,
    seed: int = 0,
) -> list[Way]:
    """The first way, and the others against it.

    Args:
        bits: by way, (seeds, documents with text).
        teacher: (documents with text,).
    """
    import numpy as np

    from lmworks.evaluation.report import agreed
    from lmworks.evaluation.scores import num_bytes
    from lmworks.evaluation.statistics import (
        mean_interval,
        paired_interval,
        ratio_interval,
        share_of_gain,
    )

    kept = [document for document in documents if document.text]
    sizes = np.array([num_bytes(document.text) for document in kept], dtype=np.float64)
    groups = np.array([document.group for document in kept], dtype=str)
    first = next(iter(bits))
    base = bits[first].mean(0)
    ways = []
    for name, values in bits.items():
        mean = values.mean(0)
        row = Way(
            name=name,
            num_seeds=len(values),
            bits_per_byte=ratio_interval(mean, sizes, groups, seed=seed),
        )
        if name != first:
            documents_interval = paired_interval(mean, base, sizes, groups, seed=seed)
            apart = (values.sum(1) - bits[first].sum(1)) / sizes.sum()
            seeds_interval = mean_interval(apart)
            closed = None
            if teacher is not None and teacher.sum() < base.sum():
                closed = share_of_gain(base, mean, teacher, groups, seed=seed)
            row = dataclasses.replace(
                row,
                over_documents=documents_interval,
                over_seeds=seeds_interval,
                closed=closed,
                verdict=agreed(documents_interval, seeds_interval),
            )
        ways.append(row)
    return ways


def _bits(
    config: CompareSeedsConfig, run: Run, field: str, documents: Sequence[Document]
) -> np.ndarray:
    """(documents with text,) bits of one model, measured once."""
    from lmworks.evaluation.scores import score_documents
    from lmworks.evaluation.variants import measured_once
    from lmworks.inference.logprobs import decoder_logprobs
    from lmworks.models.load import load_language_model
    from lmworks.tokenizers.load import load_tokenizer

    def measure() -> dict[str, np.ndarray]:
        path = run.inputs[field]
        logprobs = decoder_logprobs(load_language_model(path), window=config.window)
        return {"bits": score_documents(logprobs, documents, load_tokenizer(path)).bits}

    return measured_once(run, field, measure)["bits"]


def _sentence(way: Way, first: str) -> str:
    gap, seeds = way.over_documents, way.over_seeds
    assert gap is not None and seeds is not None
    told = (
        f"{way.name} against {first}: {gap.estimate:+.3f} bits per byte "
        f"[{gap.low:+.3f}, {gap.high:+.3f}] over documents, [{seeds.low:+.3f}, {seeds.high:+.3f}] "
        f"over {way.num_seeds} seeds ({way.verdict})"
    )
    if way.closed is not None:
        told += (
            f", {way.closed.estimate:.0%} [{way.closed.low:.0%}, {way.closed.high:.0%}] of the way "
            "to the teacher"
        )
    return told
