"""`lmworks quickstart [FOLDER]`: from raw text to a served model, in one command and one budget.

Every step is the same stage that its own command runs; this module only chooses their sizes and
puts them in a row. Killed or stopped, it goes on where it was when it is started again: finished
steps are found in the output folder, a training goes on from its checkpoint, and the plan (which
came from a measurement) is read back instead of being made anew.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmworks.core import progress
from lmworks.core.config import option
from lmworks.core.errors import UserError
from lmworks.core.files import hash_json, read_json
from lmworks.core.stages import Artifact
from lmworks.ops.budget import Plan, load_or_make_plan, parse_duration

_NUM_STEPS = 7
_MEGABYTES_PER_MINUTE = 1.5  # of text that the tokenizer and the n-gram can work through in time
_VOCAB_SIZE = 2048
_COMPANION = "smollm2-135m"


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuickstartConfig:
    """Raw text to a served model in one command.

    Without a folder it reads the documentation that comes with Python. It trains a tokenizer and
    a small model from scratch, tunes it on questions drawn from the same text, measures every
    stage against an n-gram, makes 8-bit weights, writes report.html, and serves the result.

    Examples:
        lmworks quickstart
        lmworks quickstart ~/notes --budget 15m
        lmworks quickstart --no-serve --out try1
    """

    folder: str = option("", help="folder of text, Markdown, HTML, PDF or source; empty: Python's")
    budget: str = option("5m", help="time for all of it on this machine: 90s, 5m, 1h")
    out: str = option("lmworks-quickstart", help="folder for everything that is made")
    seed: int = option(0, help="same seed and plan, same bytes")


class _Steps:
    """Announces each step with the time that is left, and its outcome with the time it took."""

    def __init__(self, budget_s: float) -> None:
        self._budget_s, self._started, self._number = budget_s, time.monotonic(), 0

    @property
    def seconds_left(self) -> float:
        return self._budget_s - (time.monotonic() - self._started)

    def run(self, title: str, make: Callable[[], Artifact], told: Callable[[Any], str]) -> Artifact:
        self._number += 1
        left = progress.duration(self.seconds_left)
        progress.say(f"[bold]{self._number}/{_NUM_STEPS} {title}[/bold]  (about {left} left)")
        started = time.monotonic()
        artifact = make()
        took = "kept from before" if artifact.cached else _took(started)
        progress.say(f"      {told(artifact.metrics)}  [dim]{took}[/dim]")
        return artifact


def _took(started: float) -> str:
    return progress.duration(time.monotonic() - started)


def run_quickstart(config: QuickstartConfig) -> Artifact:
    """Everything up to and with the report.

    Returns: the report artifact; beside its folder lie corpus, tokenizer, questions, base, chat
        and chat-q8.
    Raises: UserError for whatever a person can mend; what was finished is kept.
    """
    from lmworks.ops.quickstart_report import QuickstartReportConfig, write_report_of

    budget_s = parse_duration(config.budget)
    steps = _Steps(budget_s)
    made = make_models(config, budget_s, steps)
    report = QuickstartReportConfig(
        **{name: str(artifact.path) for name, artifact in made.items()},
        budget_s=budget_s,
        folder=config.folder,
        seed=config.seed,
    )
    out = Path(config.out) / "report"
    return steps.run(
        "measuring and the report",
        lambda: write_report_of(report, out, replace=True),
        lambda m: str(m["summary"]),
    )


def make_models(config: QuickstartConfig, budget_s: float, steps: _Steps) -> dict[str, Artifact]:
    """The six steps from text to 8-bit weights, by name."""
    out = Path(config.out)
    corpus = steps.run("corpus", lambda: _corpus(config, out, budget_s), _told_corpus)
    tokenizer = steps.run("tokenizer", lambda: _tokenizer(corpus, out), _told_tokenizer)
    questions = steps.run("questions", lambda: _questions(corpus, out, config), _told_questions)
    plan = _plan(config, corpus, tokenizer, out, steps)
    base = steps.run(
        "pre-training", lambda: _pretrain(plan, corpus, tokenizer, out, config), _told_training
    )
    chat = steps.run(
        "instruction tuning",
        lambda: _sft(plan, base, questions, corpus, out, config),
        _told_training,
    )
    quantized = steps.run("8-bit weights", lambda: _quantize(chat, out), _told_quantized)
    return {
        "corpus": corpus,
        "tokenizer": tokenizer,
        "questions": questions,
        "base": base,
        "chat": chat,
        "quantized": quantized,
    }


def _corpus(config: QuickstartConfig, out: Path, budget_s: float) -> Artifact:
    from lmworks.data.corpus import CorpusConfig, build_corpus

    minutes = budget_s / 60
    made = CorpusConfig(
        folder=config.folder,
        max_megabytes=_MEGABYTES_PER_MINUTE * minutes,
        seed=config.seed,
    )
    return build_corpus(made, out / "corpus", replace=True)


def _tokenizer(corpus: Artifact, out: Path) -> Artifact:
    from lmworks.tokenizers.train import TrainTokenizerConfig, train_tokenizer

    config = TrainTokenizerConfig(corpus=str(corpus.path), vocab_size=_VOCAB_SIZE)
    return train_tokenizer(config, out / "tokenizer", replace=True)


def _questions(corpus: Artifact, out: Path, config: QuickstartConfig) -> Artifact:
    from lmworks.data.questions import QuestionsConfig, draw_questions

    made = QuestionsConfig(corpus=str(corpus.path), seed=config.seed)
    return draw_questions(made, out / "questions", replace=True)


def _plan(
    config: QuickstartConfig, corpus: Artifact, tokenizer: Artifact, out: Path, steps: _Steps
) -> Plan:
    from lmworks.training.pretrain import PretrainConfig

    base = PretrainConfig(corpus=str(corpus.path), tokenizer=str(tokenizer.path), seed=config.seed)
    parts = [corpus.manifest["sha256"], tokenizer.manifest["sha256"], config.budget, config.seed]
    plan = load_or_make_plan(out / "plan.json", hash_json(parts), base, steps.seconds_left)
    progress.say(
        f"      plan: depth {plan.depth}, {plan.pretrain_steps} steps of "
        f"{plan.batch_size * plan.context_length:,} tokens, then {plan.sft_steps} of tuning "
        f"[dim]({plan.tokens_per_s:,.0f} tokens/s measured; kept in plan.json)[/dim]"
    )
    return plan


def _pretrain(
    plan: Plan, corpus: Artifact, tokenizer: Artifact, out: Path, config: QuickstartConfig
) -> Artifact:
    from lmworks.training.pretrain import PretrainConfig, pretrain

    made = PretrainConfig(
        corpus=str(corpus.path),
        tokenizer=str(tokenizer.path),
        depth=plan.depth,
        context_length=plan.context_length,
        batch_size=plan.batch_size,
        num_steps=plan.pretrain_steps,
        seed=config.seed,
    )
    return pretrain(made, out / "base", replace=True)


def _sft(
    plan: Plan,
    base: Artifact,
    questions: Artifact,
    corpus: Artifact,
    out: Path,
    config: QuickstartConfig,
) -> Artifact:
    from lmworks.training.sft import SFTConfig, sft

    made = SFTConfig(
        model=str(base.path),
        questions=str(questions.path),
        corpus=str(corpus.path),
        num_steps=plan.sft_steps,
        seed=config.seed,
    )
    return sft(made, out / "chat", replace=True)


def _quantize(chat: Artifact, out: Path) -> Artifact:
    from lmworks.compression.quantize import QuantizeConfig, quantize

    return quantize(QuantizeConfig(model=str(chat.path)), out / "chat-q8", replace=True)


def _told_corpus(m: dict[str, Any]) -> str:
    return (
        f"{m['train_bytes'] / 1e6:.2f} MB to learn from, {m['heldout_bytes'] / 1e6:.2f} MB held "
        f"out; {m['num_dropped']} of {m['num_documents'] + m['num_dropped']} documents dropped "
        "(each with its reason in corpus/dropped.jsonl)"
    )


def _told_tokenizer(m: dict[str, Any]) -> str:
    return f"{m['vocab_size']:,} tokens, {m['bytes_per_token']:.2f} bytes per token"


def _told_questions(m: dict[str, Any]) -> str:
    return f"{m['num_train']:,} pairs to learn from, {m['num_heldout']:,} held out"


def _told_training(m: dict[str, Any]) -> str:
    return (
        f"{m['num_parameters'] / 1e6:.1f} M parameters, {m['num_steps']} steps, loss "
        f"{m['train_loss']:.3f} (held out {m['heldout_loss'] or float('nan'):.3f}), "
        f"{m['targets_per_s']:,.0f} tokens/s"
    )


def _told_quantized(m: dict[str, Any]) -> str:
    return (
        f"{m['bytes_before'] / 1e6:.1f} MB -> {m['bytes_after'] / 1e6:.1f} MB "
        "(a GGUF file that llama.cpp reads)"
    )


def told_next(report: Artifact) -> list[str]:
    """The commands to try next, as lines for a terminal."""
    steps = read_json(report.path / "report.json")["next_steps"]
    width = max(len(step["command"]) for step in steps)
    return ["try next:"] + [f"  {s['command']:<{width}}  # {s['meaning']}" for s in steps]


def serve_quickstart(config: QuickstartConfig, *, port: int, open_page: bool) -> None:
    """Serve the model just made and `smollm2-135m` on one port until Ctrl-C.

    Where the second can't be had (no network, nothing cached) only the first is served, and the
    reason is said.
    """
    from lmworks.inference.chat import load_chat
    from lmworks.serving.run import serve

    models = {"quickstart": load_chat(Path(config.out) / "chat-q8")}
    try:
        models[_COMPANION] = load_chat(_COMPANION)
    except UserError as error:
        progress.say(f"  {_COMPANION} is left out: {error}")
    serve(models, port=port, open_page=open_page)
