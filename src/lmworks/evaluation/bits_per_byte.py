"""Stage `evaluate`: models and a corpus in, a report of what each step gained out.

The figure is bits per byte (see `scores`), the comparisons are paired (see `compare`). Models are
loaded one after the other, so memory is that of the largest. Every model is a reference of its own
in the config: a report is made anew when any of them changes, and its lineage names them all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import MANIFEST, Run, stage

if TYPE_CHECKING:
    from lmworks.data.documents import Document
    from lmworks.evaluation.compare import Candidate
    from lmworks.evaluation.report import GainTable, Report

# The fields that name the steps of one model's life, in order, and what the report calls them.
_STEPS = {"model": "Pre-trained", "chat": "Tuned", "quantized": "Quantised"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Bits per byte of a model and its later steps on held-out text, against the best n-gram.

    Examples:
        lmworks eval bits-per-byte --corpus runs/corpus --model runs/base --out runs/report
        lmworks eval bits-per-byte --corpus runs/corpus --model runs/base --chat runs/chat \\
            --quantized runs/chat-q8 --questions runs/questions
        lmworks eval bits-per-byte --corpus runs/corpus --model runs/base \\
            --compare-with smollm2-135m --max-documents 50
    """

    corpus: str = option(role=REFERENCE, help="corpus folder (heldout.jsonl; train.jsonl: n-gram)")
    model: str = option(role=REFERENCE, help="the model, or its first trained step")
    chat: str = option("", role=REFERENCE, help="the same model after tuning")
    quantized: str = option("", role=REFERENCE, help="the same model with fewer bits")
    compare_with: str = option("", role=REFERENCE, help="another model to stand beside it")
    questions: str = option("", role=REFERENCE, help="dataset folder: answers are measured too")
    ngram: bool = option(True, help="measure against the best Kneser-Ney n-gram")
    untrained: bool = option(True, help="measure the same shape with random weights too")
    max_documents: int = option(0, help="measure this many held-out documents; 0 takes all")
    window: int = option(0, help="tokens read at once; 0 takes the model's context")
    seed: int = option(0, help="same seed, same bytes")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@stage("evaluate", makes="report")
def evaluate(config: EvaluateConfig, run: Run) -> dict[str, Any]:
    """Measure, compare, report; see EvaluateConfig."""
    from lmworks.evaluation.compare import best_ngram, evaluate_models
    from lmworks.evaluation.report import write_report
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.conversations import read_conversations
    from lmworks.training.threads import set_threads

    set_threads(config.threads)
    documents = read_heldout(run.inputs["corpus"], config.max_documents, seed=config.seed)
    baseline = None
    if config.ngram:
        tokenizer = load_tokenizer(run.inputs["model"])
        tokens = _train_tokens(run.inputs["corpus"], tokenizer)
        baseline = best_ngram(tokens, documents, tokenizer)
    conversations = []
    if config.questions:
        conversations = list(read_conversations(_file(run.inputs["questions"], "heldout.jsonl")))
    tables = evaluate_models(
        _candidates(config, run),
        documents=documents,
        ngram=baseline,
        conversations=conversations,
        seed=config.seed,
    )
    write_report(run.folder, _report(config, run, tables))
    return {
        "summary": _summary(tables),
        "bits_per_byte": {row.name: row.bits_per_byte.estimate for row in tables[0].rows},
    }


def _file(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise UserError(f"{path} is missing: name a folder that a stage of lmworks made")
    return path


def read_heldout(corpus: Path, max_documents: int, *, seed: int) -> list[Document]:
    """The held-out documents, or a fixed draw of `max_documents` of them in their order.

    Raises: UserError for a folder that is no corpus, or a number below zero.
    """
    import numpy as np

    from lmworks.data.documents import read_documents

    if max_documents < 0:
        raise UserError(f"max_documents = {max_documents}: a number from 0 (all) up")
    documents = list(read_documents(_file(corpus, "heldout.jsonl")))
    if not max_documents or max_documents >= len(documents):
        return documents
    random = np.random.default_rng(seed)
    picked = random.choice(len(documents), max_documents, replace=False)
    return [documents[index] for index in sorted(picked)]


def _train_tokens(corpus: Path, tokenizer: Any) -> Any:
    from lmworks.data.documents import read_documents
    from lmworks.training.tokens import token_stream

    return token_stream(read_documents(_file(corpus, "train.jsonl")), tokenizer)


def _candidates(config: EvaluateConfig, run: Run) -> Iterator[Candidate]:
    """The models of the config, each loaded when its turn comes."""
    from lmworks.evaluation.compare import decoder_candidate, untrained
    from lmworks.models.load import load_language_model
    from lmworks.tokenizers.load import load_tokenizer

    for field, name in _STEPS.items():
        if field not in run.inputs:
            continue
        model, tokenizer = load_language_model(run.inputs[field]), load_tokenizer(run.inputs[field])
        if field == "model" and config.untrained:
            yield untrained("Untrained", model, tokenizer, seed=config.seed, window=config.window)
        yield decoder_candidate(name, model, tokenizer, window=config.window)
    if config.compare_with:
        path = run.inputs["compare_with"]
        yield decoder_candidate(
            Path(config.compare_with).name,
            load_language_model(path),
            load_tokenizer(path),
            is_stage=False,
            window=config.window,
        )


def _summary(tables: tuple[GainTable, ...]) -> str:
    """What the table says of the model itself against the n-gram, or of its level without one."""
    from lmworks.evaluation.compare import sentence

    return sentence(next(row for row in tables[0].rows if row.name == _STEPS["model"]))


def _report(config: EvaluateConfig, run: Run, tables: tuple[GainTable, ...]) -> Report:
    from lmworks.core.files import read_json
    from lmworks.evaluation.report import Report
    from lmworks.evaluation.report_parts import cost_of, lineage_of, loss_plot, versions

    plots, costs, lineage = [], [], []
    for field in ("corpus", "questions", *_STEPS):
        folder = run.inputs.get(field)
        if folder is None or not (folder / MANIFEST).is_file():
            continue
        manifest = read_json(folder / MANIFEST, "artifact manifest")
        costs.append(cost_of(manifest, folder))
        lineage.append(lineage_of(manifest))
        if (folder / "history.json").is_file():
            history = read_json(folder / "history.json", "training history")
            plots.append(loss_plot(_STEPS[field], history))
    return Report(
        title=f"Evaluation of {Path(config.model).name}",
        summary=_summary(tables),
        gains=tables,
        curves=tuple(plots),
        costs=tuple(costs),
        lineage=tuple(lineage),
        versions=versions(),
    )
