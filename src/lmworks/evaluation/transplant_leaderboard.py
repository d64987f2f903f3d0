"""Stage `transplant_leaderboard`: every way to begin new rows, on the same held-out passages.

A model is measured with its own tokenizer, then with the new one by each method. Bits per byte is
the figure, since tokenizers differ in what a token is; perplexity per byte and per word say the
same in other words. Every difference is paired over the same passages: against the model before,
and against the method that came out best.

The models are measured as they are the moment after the cut. Training them on, which mends much
and may change the order, is no part of it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage
from lmworks.models.transplant.base import METHODS
from lmworks.models.transplant.settings import StaticEmbeddingConfig

if TYPE_CHECKING:
    from lmworks.data.documents import Document
    from lmworks.evaluation.scores import Scores
    from lmworks.models.model import Model
    from lmworks.models.transplant.base import Auxiliary
    from lmworks.tokenizers.tokenizer import PipelineTokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransplantLeaderboardConfig:
    """Bits per byte before and after a transplant, for every method, with intervals.

    Examples:
        lmworks eval transplant --model smollm2-135m --tokenizer runs/tokenizer \\
            --text runs/corpus --heldout runs/corpus --out runs/leaderboard
        lmworks eval transplant --model runs/base --tokenizer runs/law-tokenizer \\
            --text law.txt --heldout cases.txt --methods '[mean, subtokens]'
    """

    model: str = option(role=REFERENCE, help="model folder or reference")
    tokenizer: str = option(role=REFERENCE, help="the new tokenizer")
    heldout: str = option(role=REFERENCE, help="text to measure on: corpus folder, .txt or .jsonl")
    text: str = option("", role=REFERENCE, help="other text of the field, to compare tokens in")
    donor: str = option("", role=REFERENCE, help="model whose embedding is compared in instead")
    methods: list[str] = option(list(METHODS), help="methods to measure")
    max_passages: int = option(200, help="measure this many passages; 0 takes all")
    passage_bytes: int = option(500, help="a passage is at most this long")
    auxiliary: StaticEmbeddingConfig = option(StaticEmbeddingConfig(), help="made of the text")
    seed: int = option(0, help="same seed, same bytes")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@stage("transplant_leaderboard", makes="report")
def transplant_leaderboard(config: TransplantLeaderboardConfig, run: Run) -> dict[str, Any]:
    """Measure all methods, write the table; see TransplantLeaderboardConfig."""
    from lmworks.core.files import write_json, write_text
    from lmworks.evaluation.report import Report, write_report
    from lmworks.evaluation.report_parts import versions
    from lmworks.evaluation.transplant_ranking import BEFORE, gains, plain, rank, sentence, table
    from lmworks.models.load import load_language_model
    from lmworks.models.transplant.base import method
    from lmworks.models.transplant.relation import relate
    from lmworks.models.transplant.stage import auxiliary_for, summary
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.threads import set_threads

    for name in config.methods:
        method(name)  # an unknown name is told before anything is loaded
    set_threads(config.threads)
    passages = read_passages(run.inputs["heldout"], config)
    old, new = load_tokenizer(run.inputs["model"]), load_tokenizer(run.inputs["tokenizer"])
    relation = relate(old, new)
    space = auxiliary_for(
        config.methods, old, new, relation, run.inputs, config.auxiliary, seed=config.seed
    )
    model = load_language_model(run.inputs["model"])
    scores = measure(model, old, new, passages, config.methods, auxiliary=space, seed=config.seed)
    entries = rank(scores, passages, {BEFORE: old}, new, seed=config.seed)
    facts = summary(new, relation)
    write_json(
        run.folder / "leaderboard.json",
        {"vocabulary": facts, "passages": len(passages), "rows": [plain(e) for e in entries]},
    )
    write_text(run.folder / "leaderboard.md", table(entries))
    title = f"{Path(config.tokenizer).name} in {Path(config.model).name}"
    report = Report(
        title=f"Transplant: {title}",
        summary=sentence(entries),
        gains=(gains(entries, passages),),
        versions=versions(),
    )
    write_report(run.folder, report)
    figures = {entry.name: entry.bits_per_byte.estimate for entry in entries}
    return {"summary": sentence(entries), "bits_per_byte": figures, **facts}


def read_passages(path: Path, config: TransplantLeaderboardConfig) -> list[Document]:
    """A fixed draw of passages; those of one document stay one group of the bootstrap.

    Raises: UserError when there is no text or a setting is out of range.
    """
    if config.passage_bytes < 50 or config.max_passages < 0:
        raise UserError("passage_bytes must be at least 50, and max_passages 0 (all) or more")
    passages = [p for d in _documents(path) for p in _cut(d, config.passage_bytes)]
    if not passages:
        raise UserError(f"{path} holds no text to measure on")
    if not config.max_passages or config.max_passages >= len(passages):
        return passages
    import numpy as np

    draw = np.random.default_rng(config.seed)
    picked = draw.choice(len(passages), config.max_passages, replace=False)
    return [passages[index] for index in sorted(picked)]


def _documents(path: Path) -> Iterator[Document]:
    from lmworks.data.documents import Document, read_documents
    from lmworks.tokenizers.train import read_texts

    if path.is_dir():
        yield from read_documents(path / "heldout.jsonl")
        return
    # A text file is one document, but its passages are all that there is to draw anew.
    for number, text in enumerate(read_texts(path)):
        name = f"{path.name}:{number}"
        yield Document(id=name, group="", source=str(path), title=path.name, text=text)


def _cut(document: Document, most: int) -> Iterator[Document]:
    """Passages of whole lines where lines are short enough, else of whole words."""
    held = ""
    number = 0
    for part in _parts(document.text, most):
        if held and len((held + part).encode("utf-8", "replace")) > most:
            yield _passage(document, held, number)
            number, held = number + 1, ""
        held += part
    if held.strip():
        yield _passage(document, held, number)


def _parts(text: str, most: int) -> Iterator[str]:
    for line in text.splitlines(keepends=True):
        if len(line.encode("utf-8", "replace")) <= most:
            yield line
        else:
            yield from re.findall(rf"\S{{1,{most // 4}}}\s*|\s+", line)


def _passage(document: Document, text: str, number: int) -> Document:
    name = f"{document.id}:{number}"
    return dataclasses.replace(document, id=name, group=document.group or name, text=text.strip())


def measure(
    model: Model,
    old: PipelineTokenizer,
    new: PipelineTokenizer,
    passages: Sequence[Document],
    methods: Iterable[str],
    *,
    auxiliary: Auxiliary | None = None,
    seed: int = 0,
) -> dict[str, Scores]:
    """Scores of the model before, and after by each method; one changed model at a time."""
    from lmworks.evaluation.scores import score_documents
    from lmworks.inference.logprobs import decoder_logprobs
    from lmworks.models.transplant.relation import relate
    from lmworks.models.transplant.surgery import transplant

    relation = relate(old, new)
    from lmworks.evaluation.transplant_ranking import BEFORE

    scores = {BEFORE: score_documents(decoder_logprobs(model), passages, old)}
    for name in methods:
        changed = transplant(model, relation, name, auxiliary=auxiliary, seed=seed)
        scores[name] = score_documents(decoder_logprobs(changed), passages, new)
    return scores
