"""The last step of the quickstart: measure every stage, let each one speak, and write the page."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core import progress
from lmworks.core.config import REFERENCE, option
from lmworks.core.files import read_json
from lmworks.core.stages import Artifact, Run, stage

if TYPE_CHECKING:
    from lmworks.compression.measure import Speed
    from lmworks.data.documents import Document
    from lmworks.evaluation.compare import Candidate
    from lmworks.evaluation.report import GainTable, NextStep, Sample, StageCost
    from lmworks.models.model import Model
    from lmworks.tokenizers.base import Tokenizer

_MAX_ANSWERS = 240  # held-out questions measured; enough for an interval, quick enough for a budget
_NUM_PROMPTS = 3
_SAMPLE_TOKENS = 48
_STAGES = {"base": "Pre-trained", "chat": "Tuned", "quantized": "8-bit"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuickstartReportConfig:
    """Measure what a quickstart made, and write report.html."""

    corpus: str = option(role=REFERENCE, help="corpus folder")
    tokenizer: str = option(role=REFERENCE, help="tokenizer folder")
    questions: str = option(role=REFERENCE, help="dataset folder")
    base: str = option(role=REFERENCE, help="pre-trained model")
    chat: str = option(role=REFERENCE, help="tuned model")
    quantized: str = option(role=REFERENCE, help="8-bit model")
    budget_s: float = option(300.0, help="the budget that all of it was made in, seconds")
    folder: str = option("", help="what was read; empty stands for Python's documentation")
    seed: int = option(0, help="of the bootstrap and the untrained model")


@stage("quickstart_report", makes="report")
def write_report_of(config: QuickstartReportConfig, run: Run) -> dict[str, Any]:
    """Measure and write; see QuickstartReportConfig."""
    from lmworks.core.progress import duration
    from lmworks.data.documents import read_documents
    from lmworks.evaluation.compare import best_ngram, evaluate_models
    from lmworks.evaluation.report import Fact, Report, write_report
    from lmworks.evaluation.report_parts import lineage_of, loss_plot, versions
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.conversations import read_conversations
    from lmworks.training.pretrain import cached_stream
    from lmworks.training.threads import set_threads

    set_threads(0)
    inputs = run.inputs
    tokenizer = load_tokenizer(inputs["tokenizer"])
    documents = list(read_documents(inputs["corpus"] / "heldout.jsonl"))
    answers = list(read_conversations(inputs["questions"] / "heldout.jsonl"))[:_MAX_ANSWERS]
    tokens = cached_stream(inputs["corpus"] / "train.jsonl", tokenizer, run.work)
    samples = _Samples(documents, answers)
    with progress.track("measuring every stage", total=len(_STAGES) + 1) as bar:
        tables = evaluate_models(
            _candidates(config, run, tokenizer, samples, bar),
            documents=documents,
            ngram=best_ngram(tokens, documents, tokenizer),
            conversations=answers,
            seed=config.seed,
        )
    floats, packed = _speeds(inputs)
    made = {name: Artifact.load(path) for name, path in inputs.items()}
    summary = _summary(tables, made["base"], config.budget_s)
    source = config.folder or "the documentation that comes with Python"
    report = Report(
        title="From raw text to a served model",
        summary=summary,
        facts=(
            Fact(label="Read", value=f"{made['corpus'].metrics['train_bytes'] / 1e6:.1f} MB"),
            Fact(label="Parameters", value=f"{made['base'].metrics['num_parameters'] / 1e6:.1f} M"),
            Fact(label="Budget", value=duration(config.budget_s)),
            Fact(label="8-bit speed", value=_told_gain(floats, packed)),
        ),
        gains=tables,
        curves=tuple(
            loss_plot(title, read_json(inputs[name] / "history.json"))
            for name, title in (("base", "Pre-training"), ("chat", "Instruction tuning"))
        ),
        samples=samples.collected(),
        costs=_costs(made, packed.tokens_per_s),
        lineage=tuple(lineage_of(artifact.manifest) for artifact in made.values()),
        versions=versions() | {"source": source},
        next_steps=next_steps(config.folder, inputs["quantized"]),
    )
    write_report(run.folder, report)
    return {
        "summary": summary,
        "bits_per_byte": {row.name: row.bits_per_byte.estimate for row in tables[0].rows},
        "tokens_per_s": {"float32": floats.tokens_per_s, "8-bit": packed.tokens_per_s},
    }


def _candidates(
    config: QuickstartReportConfig, run: Run, tokenizer: Tokenizer, samples: _Samples, bar: Any
) -> Iterator[Candidate]:
    """Every stage's model, loaded when its turn comes; each writes its samples on the way."""
    from lmworks.evaluation.compare import decoder_candidate
    from lmworks.models.load import load_language_model
    from lmworks.models.model import Model

    base = load_language_model(run.inputs["base"])
    import torch

    fresh = Model(base.config)
    fresh.reset_parameters(torch.Generator().manual_seed(config.seed))
    samples.write("Untrained", fresh.eval(), tokenizer)
    yield decoder_candidate("Untrained", fresh, tokenizer, note="the same shape, random weights")
    bar.advance()
    for name, title in _STAGES.items():
        model = base if name == "base" else load_language_model(run.inputs[name])
        samples.write(title, model, tokenizer)
        yield decoder_candidate(title, model, tokenizer)
        bar.advance()


class _Samples:
    """The same prompts, given to each stage's model: text to go on with, and a question."""

    def __init__(self, documents: Sequence[Document], answers: Sequence[dict[str, Any]]) -> None:
        openings = [" ".join(d.text.split()[:8]) for d in documents if len(d.text.split()) > 30]
        self._openings = openings[: _NUM_PROMPTS - 1]
        self._questions = [row["messages"][0]["content"] for row in answers[:_NUM_PROMPTS]]
        self._texts: dict[str, list[tuple[str, str]]] = {
            prompt: [] for prompt in [*self._openings, *self._questions]
        }

    def write(self, stage: str, model: Model, tokenizer: Tokenizer) -> None:
        """Greedy answers of one model."""
        from lmworks.inference.chat import LocalChat
        from lmworks.inference.engine import Engine

        ends = [tokenizer.special_tokens[t] for t in _ENDS if t in tokenizer.special_tokens]
        engine = Engine(model, tokenizer, max_batch=1, eos_token_ids=ends)
        try:
            chat = LocalChat(engine, stage)
            settings = {"max_tokens": _SAMPLE_TOKENS, "temperature": 0.0}
            for prompt in self._openings:
                text = chat.complete_text(prompt, **settings).text
                self._texts[prompt].append((stage, _shown(text)))
            for question in self._questions:
                text = chat.complete([{"role": "user", "content": question}], **settings).text
                self._texts[question].append((stage, _shown(text)))
        finally:
            engine.close()

    def collected(self) -> tuple[Sample, ...]:
        from lmworks.evaluation.report import Sample, SampleText

        return tuple(
            Sample(prompt=prompt, texts=tuple(SampleText(stage=s, text=t) for s, t in texts))
            for prompt, texts in self._texts.items()
        )


_ENDS = ("<|endoftext|>", "<|im_end|>")


def _shown(text: str) -> str:
    """What a model wrote without runs of empty lines, which an untrained one is fond of."""
    return re.sub(r"\n\s*\n", "\n\n", text).strip() or "(only white space)"


def _speeds(inputs: dict[str, Path]) -> tuple[Speed, Speed]:
    """Decoding with the tuned model's float32 and 8-bit weights, in turns."""
    from lmworks.compression.measure import measure_speed
    from lmworks.models.load import load_language_model

    models = [
        load_language_model(inputs["chat"]),
        load_language_model(inputs["quantized"], packed=True),
    ]
    floats, packed = measure_speed(models)
    return floats, packed


def _told_gain(floats: Speed, packed: Speed) -> str:
    from lmworks.compression.measure import speedup

    gain = speedup(floats, packed)
    return f"{gain.ratio:.2f} x float32 ({gain.low:.2f} to {gain.high:.2f})"


def _summary(tables: tuple[GainTable, ...], base: Artifact, budget_s: float) -> str:
    """What was shown against the n-gram; where the model is behind, the budget that would do."""
    from lmworks.core.progress import duration
    from lmworks.evaluation.compare import sentence
    from lmworks.evaluation.report import verdict

    row = next(row for row in tables[0].rows if row.name == _STAGES["base"])
    told = sentence(row, "the best n-gram on the same tokens")
    if row.versus_ngram is None or verdict(row.versus_ngram) == "better":
        return told
    needed = budget_to_overtake(
        read_json(base.path / "history.json"), row.versus_ngram.estimate, row.bits_per_byte.estimate
    )
    if needed is None:
        return told + " Its held-out loss has stopped falling: more text would help, not more time."
    return told + (
        f" Its held-out loss was still falling; if it goes on like this, a budget of about "
        f"{duration(budget_s * needed)} is enough (an extrapolation, not a measurement)."
    )


def budget_to_overtake(
    history: dict[str, Any], behind: float, bits_per_byte: float
) -> float | None:
    """How many times the training it would take to make up for `behind` bits per byte.

    The last doubling of the steps is taken as the gain of every further one; None when it gained
    nothing, or when the answer would be beyond a thousandfold.
    """
    steps, losses = history["heldout_step"], history["heldout_loss"]
    if len(steps) < 3 or behind <= 0:
        return 1.0 if behind <= 0 else None
    half = min(range(len(steps)), key=lambda i: abs(steps[i] - steps[-1] / 2))
    gained = (losses[half] - losses[-1]) / losses[-1] * bits_per_byte
    if gained <= 0 or behind / gained > 10:
        return None
    return math.pow(2.0, behind / gained)


def _costs(made: dict[str, Artifact], packed_tokens_per_s: float) -> tuple[StageCost, ...]:
    from lmworks.evaluation.report_parts import cost_of

    return tuple(
        cost_of(
            artifact.manifest,
            artifact.path,
            per_second=packed_tokens_per_s if name == "quantized" else 0.0,
            per_second_unit="tokens/s decoding" if name == "quantized" else "tokens/s training",
        )
        for name, artifact in made.items()
    )


def next_steps(folder: str, quantized: Path) -> tuple[NextStep, ...]:
    """Three commands to try next."""
    from lmworks.evaluation.report import NextStep

    again = f"lmworks quickstart {folder or '~/notes'} --budget 20m"
    return (
        NextStep(command=again, meaning="your own text, and a longer training"),
        NextStep(command=f"lmworks chat {quantized}", meaning="talk to it in the terminal"),
        NextStep(command="lmworks chat smollm2-135m", meaning="talk to a real 135 M model"),
    )
