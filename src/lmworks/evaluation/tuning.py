"""Stage `compare_tuned`: what tuning gained in its field, and what it cost elsewhere.

Each tuned model is measured against its base on the same held-out texts: documents of the field,
answers of conversations, general text. The figure is bits per byte, and every difference has a
paired interval over groups of texts. Models called `method/1`, `method/2` and so on are runs of one
method with other seeds: their differences are also given together, with Student's interval.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage

if TYPE_CHECKING:
    from lmworks.evaluation.report import GainTable
    from lmworks.evaluation.scores import Scores
    from lmworks.evaluation.statistics import Interval

BASE = "base"
_TITLES = {
    "field": "Held-out documents of the field",
    "answers": "Held-out answers",
    "general": "General text",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareTunedConfig:
    """Gain in the field and loss elsewhere of tuned models, against their base.

    Examples:
        lmworks eval tuning --base smollm2-135m --models '{law: runs/law-model}' \\
            --field runs/law --general runs/wikipedia --out runs/tuning
        lmworks eval tuning --base runs/base --models '{kl/0: runs/kl-0, kl/1: runs/kl-1}' \\
            --questions runs/questions --general runs/corpus
    """

    base: str = option(role=REFERENCE, help="the model before tuning")
    models: dict[str, str] = option(
        role=REFERENCE, help="tuned models by name; name/1, name/2 are seeds of one method"
    )
    field: str = option("", role=REFERENCE, help="corpus of the field (heldout.jsonl)")
    questions: str = option("", role=REFERENCE, help="dataset whose held-out answers count")
    general: str = option("", role=REFERENCE, help="corpus of what must not be forgotten")
    max_documents: int = option(0, help="measure this many texts of each kind; 0 takes all")
    window: int = option(0, help="tokens read at once; 0 takes the model's context")
    seed: int = option(0, help="same seed, same bytes")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
    """What a model's tuning changed on one kind of text, in bits per byte; below zero: a gain.

    Attributes:
        share: the change as a share of the base's bits per byte.
    """

    name: str
    kind: str
    difference: Interval
    share: float


@stage("compare_tuned", makes="report")
def compare_tuned(config: CompareTunedConfig, run: Run) -> dict[str, Any]:
    """Measure base and tuned models, compare, report; see CompareTunedConfig."""
    from lmworks.core.files import write_json, write_text
    from lmworks.evaluation.report import Report, plain_values, write_report
    from lmworks.evaluation.report_parts import versions
    from lmworks.training.threads import set_threads

    set_threads(config.threads)
    texts = _texts(config, run)
    scores = {
        name: _scored(path, texts, config.window)
        for name, path in [(BASE, run.inputs["base"]), *_models(config, run)]
    }
    changes = list(compared(scores, seed=config.seed))
    together = over_seeds(changes)
    summary = "; ".join(_sentence(change) for change in changes[: 2 * len(texts)])
    write_json(
        run.folder / "tuning.json",
        {"changes": plain_values(changes), "methods": plain_values(together)},
    )
    write_text(run.folder / "tuning.md", table(changes, together))
    tables = tuple(_gains(kind, scores, config.seed) for kind in texts)
    write_report(
        run.folder,
        Report(
            title=f"What tuning {Path(config.base).name} gained and cost",
            summary=summary,
            gains=tables,
            versions=versions(),
        ),
    )
    figures = {f"{c.name}: {c.kind}": round(c.difference.estimate, 4) for c in changes}
    return {"summary": summary, **figures}


def _models(config: CompareTunedConfig, run: Run) -> Iterator[tuple[str, Path]]:
    if not config.models or BASE in config.models:
        raise UserError(f"models: name one tuned model or more, none of them {BASE!r}")
    yield from ((name, run.inputs[f"models.{name}"]) for name in config.models)


def _texts(config: CompareTunedConfig, run: Run) -> dict[str, Sequence[Any]]:
    """Held-out texts by kind. Raises: UserError when none was named."""
    from lmworks.evaluation.bits_per_byte import read_heldout
    from lmworks.training.conversations import read_conversations

    found: dict[str, Sequence[Any]] = {}
    for kind in ("field", "general"):
        if kind in run.inputs:
            found[kind] = read_heldout(run.inputs[kind], config.max_documents, seed=config.seed)
    if "questions" in run.inputs:
        path = run.inputs["questions"]
        rows = list(read_conversations(path if path.is_file() else path / "heldout.jsonl"))
        found["answers"] = rows[: config.max_documents or None]
    if not found:
        raise UserError("nothing to measure on: give --field, --questions or --general")
    return {kind: found[kind] for kind in _TITLES if kind in found}


def _scored(path: Path, texts: Mapping[str, Sequence[Any]], window: int) -> dict[str, Scores]:
    from lmworks.evaluation.scores import score_answers, score_documents
    from lmworks.inference.logprobs import decoder_logprobs
    from lmworks.models.load import load_language_model
    from lmworks.tokenizers.load import load_tokenizer

    model, tokenizer = load_language_model(path), load_tokenizer(path)
    logprobs = decoder_logprobs(model, window=window)
    return {
        kind: (score_answers if kind == "answers" else score_documents)(logprobs, rows, tokenizer)
        for kind, rows in texts.items()
    }


def compared(scores: Mapping[str, Mapping[str, Scores]], *, seed: int = 0) -> Iterator[Change]:
    """The change of each model on each kind of text, paired with the base.

    Args:
        scores: by model, `base` among them, then by kind.
    """
    from lmworks.evaluation.statistics import paired_interval

    for name, kinds in scores.items():
        if name == BASE:
            continue
        for kind, mine in kinds.items():
            base = scores[BASE][kind]
            difference = paired_interval(
                mine.bits, base.bits, base.num_bytes, base.groups, seed=seed
            )
            yield Change(
                name=name,
                kind=kind,
                difference=difference,
                share=difference.estimate / base.bits_per_byte,
            )


def over_seeds(changes: Sequence[Change]) -> list[Change]:
    """The mean change of each method over its seeds, with Student's interval."""
    from lmworks.evaluation.statistics import mean_interval

    by_method: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        method, slash, _ = change.name.rpartition("/")
        if slash:
            by_method.setdefault((method, change.kind), []).append(change)
    return [
        Change(
            name=method,
            kind=kind,
            difference=mean_interval([c.difference.estimate for c in found]),
            share=math.fsum(c.share for c in found) / len(found),
        )
        for (method, kind), found in by_method.items()
    ]


def table(changes: Sequence[Change], together: Sequence[Change]) -> str:
    """Markdown: a row for each model or method, a column for each kind of text."""
    parts = []
    for title, rows in (("Each model", changes), ("Methods, over seeds", together)):
        kinds = list(dict.fromkeys(row.kind for row in rows))
        if not rows:
            continue
        head = ["Model", *(_TITLES[kind] for kind in kinds)]
        lines = [f"## {title}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for name in dict.fromkeys(row.name for row in rows):
            cells = [
                _cell(row) for kind in kinds for row in rows if (row.name, row.kind) == (name, kind)
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    note = "Change in bits per byte against the base, below zero is a gain, with 95 % intervals."
    return "\n\n".join([note, *parts]) + "\n"


def _cell(change: Change) -> str:
    interval = change.difference
    ends = f" [{interval.low:+.3f}, {interval.high:+.3f}]" if interval.known else ""
    return f"{interval.estimate:+.3f}{ends} ({change.share:+.1%})"


def _sentence(change: Change) -> str:
    interval, where = change.difference, _TITLES[change.kind].lower()
    if not interval.excludes_zero:
        return f"{change.name}: no change shown on {where}"
    word = "fewer" if interval.estimate < 0 else "more"
    ends = sorted((abs(interval.low), abs(interval.high)))
    return (
        f"{change.name}: {abs(interval.estimate):.3f} bits per byte {word} on {where} "
        f"({ends[0]:.3f} to {ends[1]:.3f})"
    )


def _gains(kind: str, scores: Mapping[str, Mapping[str, Scores]], seed: int) -> GainTable:
    from lmworks.evaluation.report import GainRow, GainTable
    from lmworks.evaluation.statistics import paired_interval, ratio_interval

    base = scores[BASE][kind]
    rows = []
    for name, kinds in scores.items():
        mine = kinds[kind]
        difference = paired_interval(mine.bits, base.bits, base.num_bytes, base.groups, seed=seed)
        rows.append(
            GainRow(
                name=name,
                bits_per_byte=ratio_interval(mine.bits, mine.num_bytes, mine.groups, seed=seed),
                versus_previous=None if name == BASE else difference,
                previous="" if name == BASE else BASE,
            )
        )
    note = f"{len(base.bits):,} texts, {base.num_bytes.sum() / 1e3:,.0f} kB."
    return GainTable(title=_TITLES[kind], note=note, rows=tuple(rows))
