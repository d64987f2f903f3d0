"""Stage `compare_objectives`: objectives of pre-training side by side, for the same compute.

Every objective is learned from the same seeds on the same text, by the model that it needs, built
from the same layers and the same dial. The operations of one step are counted as it runs; those
whose step costs more take fewer steps. What they learned is measured with one question that all can
answer, which of several tokens stands at a place (see `cloze`), and what reads in order with bits
per byte as well. Differences are paired by document, the mean over the seeds.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.files import write_json, write_text
from lmworks.core.stages import Run, stage
from lmworks.training.pretrain import PretrainConfig, Shape
from lmworks.training.trainer_config import LoopConfig

if TYPE_CHECKING:
    import numpy as np

    from lmworks.evaluation.cloze import Questions
    from lmworks.evaluation.statistics import Interval
    from lmworks.tokenizers.tokenizer import PipelineTokenizer
    from lmworks.training.learning import Learning

_IN_ORDER = ("causal", "prefix")  # what gives a text a probability, token by token


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareObjectivesConfig:
    """Objectives of pre-training side by side for the same compute, with intervals.

    Examples:
        lmworks eval objectives --corpus runs/corpus --tokenizer runs/tokenizer \\
            --objectives '[causal, masked, replaced_token]' --out runs/objectives
        lmworks eval objectives --corpus runs/corpus --tokenizer runs/tokenizer --same steps
    """

    corpus: str = option(role=REFERENCE, help="corpus folder (train.jsonl, heldout.jsonl)")
    tokenizer: str = option(role=REFERENCE, help="tokenizer folder or reference")
    objectives: list[str] = option(["causal", "masked"], help="the first is the baseline")
    depth: int = option(4, help="layers; width is 64 x depth")
    layers: str = option("attention", help="pattern of layers, gone through to the depth")
    same: Literal["compute", "steps"] = option(
        "compute", help="what objectives share: operations in all, or the number of steps"
    )
    context_length: int = option(128, help="tokens of a row")
    num_steps: int = option(300, help="training steps of the first objective")
    batch_size: int = option(8, help="rows per step")
    seeds: int = option(3, help="models of each objective")
    num_questions: int = option(400, help="held-out questions, one for each stretch of text")
    num_choices: int = option(8, help="tokens to choose from")
    max_documents: int = option(100, help="held-out documents for bits per byte; 0 takes all")
    shape: Shape = option(Shape(), help="sizes that override the dial", flag=False)
    loop: LoopConfig = option(LoopConfig(), help="schedule and optimizer", flag=False)
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learned:
    """One model of one objective, measured.

    Attributes:
        right: (questions,) 1 where it chose the right token.
        bits: (documents,) where the objective reads in order, else empty.
        own: the objective's own held-out loss.
    """

    right: np.ndarray
    bits: np.ndarray
    own: float


@stage("compare_objectives", makes="report")
def compare_objectives(config: CompareObjectivesConfig, run: Run) -> dict[str, Any]:
    """Train all, ask all; see CompareObjectivesConfig."""
    from lmworks.evaluation.pages import render_page
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.threads import set_threads

    _check(config)
    set_threads(config.threads)
    tokenizer = _shared_tokenizer(config, load_tokenizer(run.inputs["tokenizer"]))
    questions = _questions(config, run, tokenizer)
    flops = {name: step_flops(_settings(config, name), tokenizer) for name in config.objectives}
    first = flops[config.objectives[0]]
    steps = {
        name: config.num_steps if config.same == "steps" else round(config.num_steps * first / each)
        for name, each in flops.items()
    }
    learned = {
        name: [
            _learn(name, seed, max(1, steps[name]), config, run, tokenizer, questions)
            for seed in range(config.seeds)
        ]
        for name in config.objectives
    }
    rows = [_row(name, config, run, learned, questions, flops, steps) for name in learned]
    result = {"questions": len(questions.ids), "choices": config.num_choices, "rows": rows}
    write_json(run.folder / "objectives.json", result)
    write_text(
        run.folder / "report.html",
        render_page(
            "objectives.html.jinja", rows=rows, config=config, questions=len(questions.ids)
        ),
    )
    accuracy = {row["objective"]: row["accuracy"]["estimate"] for row in rows}
    return {"summary": _summary(rows, config.num_choices), "accuracy": accuracy}


def _check(config: CompareObjectivesConfig) -> None:
    from lmworks.training.learning import objective_for

    if not config.objectives or len(set(config.objectives)) != len(config.objectives):
        raise UserError("objectives: give each objective once, the baseline first")
    for name in config.objectives:
        objective_for(_settings(config, name))
    if config.seeds < 1 or config.num_choices < 2:
        raise UserError("seeds: at least one model of each; num_choices: at least two")


def _settings(config: CompareObjectivesConfig, name: str, seed: int = 0) -> PretrainConfig:
    return PretrainConfig(
        corpus=config.corpus,
        tokenizer=config.tokenizer,
        objective=name,
        depth=config.depth,
        layers=config.layers,
        context_length=config.context_length,
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        seed=seed,
        shape=config.shape,
        loop=config.loop,
    )


def _shared_tokenizer(
    config: CompareObjectivesConfig, tokenizer: PipelineTokenizer
) -> PipelineTokenizer:
    """With the tokens that any of the objectives needs, so that all have one vocabulary."""
    from lmworks.tokenizers.reserved import with_reserved
    from lmworks.training.learning import objective_for

    chosen = [objective_for(_settings(config, name))[0] for name in config.objectives]
    return with_reserved(
        tokenizer,
        mask=any(objective.needs_mask for objective in chosen),
        num_sentinels=max(o.num_sentinels(config.context_length) for o in chosen),
    )


def _questions(
    config: CompareObjectivesConfig, run: Run, tokenizer: PipelineTokenizer
) -> Questions:
    import numpy as np

    from lmworks.data.documents import read_documents
    from lmworks.evaluation.cloze import draw_questions
    from lmworks.training.objectives.text import facts_of
    from lmworks.training.pretrain import cached_stream

    tokens = cached_stream(run.inputs["corpus"] / "train.jsonl", tokenizer, run.work)
    return draw_questions(
        list(read_documents(run.inputs["corpus"] / "heldout.jsonl")),
        tokenizer,
        facts_of(tokenizer),
        np.bincount(tokens, minlength=tokenizer.vocab_size),
        length=config.context_length,
        count=config.num_questions,
        num_choices=config.num_choices,
    )


def step_flops(settings: PretrainConfig, tokenizer: PipelineTokenizer) -> float:
    """Operations of the products of one training step, forward and backward, counted as it runs."""
    import numpy as np
    from torch.utils.flop_counter import FlopCounterMode

    from lmworks.training.learning import prepare
    from lmworks.training.pretrain import new_model

    learning = prepare(settings, tokenizer)
    model = new_model(settings, learning.tokenizer.vocab_size).train()
    random = np.random.default_rng(0)
    shape = (settings.batch_size, settings.context_length + 1)
    windows = learning.facts.drawn_ids(random, shape[0] * shape[1]).reshape(shape)
    batch = learning.objective.corrupt(windows, random, learning.facts)
    with FlopCounterMode(display=False) as counter:
        learning.objective(model, batch).value.backward()
    return float(counter.get_total_flops())


def _learn(
    name: str,
    seed: int,
    num_steps: int,
    config: CompareObjectivesConfig,
    run: Run,
    tokenizer: PipelineTokenizer,
    questions: Questions,
) -> Learned:
    """One model, trained and measured, or what an earlier run kept of it."""
    import numpy as np

    from lmworks.core.files import atomic_open
    from lmworks.evaluation.cloze import answer
    from lmworks.training.learning import prepare
    from lmworks.training.pretrain import cached_stream, fit, new_model
    from lmworks.training.tokens import PackedWindows

    kept = run.work / f"{name}-{seed}.npz"
    if kept.is_file():
        with np.load(kept, allow_pickle=False) as found:
            return Learned(right=found["right"], bits=found["bits"], own=float(found["own"]))
    settings = _settings(config, name, seed)
    learning = prepare(settings, tokenizer)
    streams = [
        cached_stream(run.inputs["corpus"] / f"{part}.jsonl", tokenizer, run.work)
        for part in ("train", "heldout")
    ]
    windows = PackedWindows(
        streams[0], context_length=config.context_length, batch_size=config.batch_size, seed=seed
    )
    model = new_model(settings, tokenizer.vocab_size)
    history = fit(
        model,
        learning.batches(windows, seed),
        learning.heldout(streams[1], context_length=config.context_length, count=16),
        settings,
        objective=learning.objective,
        num_steps=num_steps,
        work=run.work / f"{name}-{seed}",
        label=f"{name}, seed {seed}",
    )
    right = answer(model, learning.objective, learning.architecture, learning.facts, questions)
    bits = _bits(model, config, run, learning) if name in _IN_ORDER else np.zeros(0)
    own = history.heldout_loss[-1] if history.heldout_loss else float("nan")
    with atomic_open(kept) as file:
        np.savez(file, right=right, bits=bits, own=own)
    return Learned(right=right, bits=bits, own=own)


def _bits(model: Any, config: CompareObjectivesConfig, run: Run, learning: Learning) -> np.ndarray:
    from lmworks.evaluation.bits_per_byte import read_heldout
    from lmworks.evaluation.scores import score_documents
    from lmworks.inference.logprobs import decoder_logprobs

    documents = read_heldout(run.inputs["corpus"], config.max_documents, seed=0)
    return score_documents(decoder_logprobs(model), documents, learning.tokenizer).bits


def _row(
    name: str,
    config: CompareObjectivesConfig,
    run: Run,
    learned: dict[str, list[Learned]],
    questions: Questions,
    flops: dict[str, float],
    steps: dict[str, int],
) -> dict[str, Any]:
    """What one objective cost and learned, and how it differs from the first."""
    import numpy as np

    from lmworks.evaluation.statistics import mean_interval, paired_interval, ratio_interval

    first = config.objectives[0]
    mean = {n: np.mean([one.right for one in models], axis=0) for n, models in learned.items()}
    ones = np.ones(len(questions.ids))
    difference: Interval | None = None
    if name != first:
        difference = paired_interval(mean[name], mean[first], ones, questions.groups)
    over_seeds = [
        float(one.right.mean() - base.right.mean())
        for one, base in zip(learned[name], learned[first], strict=True)
    ]
    return {
        "objective": name,
        "step_flops_ratio": flops[name] / flops[first],
        "num_steps": max(1, steps[name]),
        "accuracy": dataclasses.asdict(ratio_interval(mean[name], ones, questions.groups)),
        "difference": difference and dataclasses.asdict(difference),
        "difference_over_seeds": dataclasses.asdict(mean_interval(over_seeds)),
        "heldout_loss": float(np.mean([one.own for one in learned[name]])),
        "bits_per_byte": _bits_row(learned[name], config, run),
    }


def _bits_row(
    models: list[Learned], config: CompareObjectivesConfig, run: Run
) -> dict[str, float] | None:
    import numpy as np

    from lmworks.evaluation.bits_per_byte import read_heldout
    from lmworks.evaluation.scores import num_bytes
    from lmworks.evaluation.statistics import ratio_interval

    if not len(models[0].bits):
        return None
    documents = read_heldout(run.inputs["corpus"], config.max_documents, seed=0)
    kept = [document for document in documents if document.text]
    sizes = np.array([num_bytes(document.text) for document in kept])
    groups = np.array([document.group for document in kept], dtype=str)
    mean = np.mean([one.bits for one in models], axis=0)
    return dataclasses.asdict(ratio_interval(mean, sizes, groups))


def _summary(rows: list[dict[str, Any]], num_choices: int) -> str:
    first, *others = rows
    told = [
        f"{first['objective']} finds {100 * first['accuracy']['estimate']:.1f} % of the tokens "
        f"among {num_choices}"
    ]
    for row in others:
        gap = row["difference"]
        told.append(
            f"{row['objective']} {100 * gap['estimate']:+.1f} "
            f"[{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}] points"
        )
    return "; ".join(told) + "."
