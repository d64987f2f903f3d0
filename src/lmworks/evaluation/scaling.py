"""Stage `scaling`: a series of small runs, a law through them, and a larger run that tests it.

N is what a token costs over six (so that 6 N D is exactly the operations of a training, with the
sums of attention and the head in them), as DeepSeek-AI 2024 (arXiv 2401.02954, section 3.2) found
to fit better than counts of parameters; at these sizes the difference is large. The loss is bits
per byte of held-out documents. All runs share the rates of learning and the rows of a step: a law
of tuned runs would lie a little lower.
"""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core import progress
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage
from lmworks.evaluation.scaling_config import ScalingConfig
from lmworks.training.pretrain import PretrainConfig, Shape

if TYPE_CHECKING:
    from lmworks.data.documents import Document
    from lmworks.tokenizers.base import Tokenizer

_BETWEEN = math.sqrt(10)  # budgets lie half a power of ten apart
_HEAD_DIM = 32
_WIDTH_STEP = 16
_WIDEST = 4096
_MOST_EPOCHS = 4  # beyond that, repeated text is worth ever less (Muennighoff et al. 2023)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One run before it is made: its shape, and the tokens that a budget buys for it."""

    width: int
    parameters: float  # operations of a token's training over 6
    num_steps: int
    tokens: int
    budget: float

    @property
    def flops(self) -> float:
        """What it really takes, whole steps only."""
        return 6 * self.parameters * self.tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A run that was made."""

    parameters: float
    tokens: float
    loss: float
    budget: float

    @property
    def flops(self) -> float:
        """Of its training."""
        return 6 * self.parameters * self.tokens


@stage("scaling", makes="report")
def scaling(config: ScalingConfig, run: Run) -> dict[str, Any]:
    """Run the series, fit, foretell, check; see ScalingConfig."""
    from lmworks.evaluation.scaling_law import check_runs, fit
    from lmworks.evaluation.scaling_report import summary, write

    if bool(config.runs) == bool(config.corpus and config.tokenizer):
        raise UserError("give --corpus and --tokenizer to train a series, or --runs for one made")
    if config.target < 0 or config.num_resamples < 20:
        raise UserError("target is 0 or more, and an interval needs at least 20 resamples")
    if config.runs:
        runs = read_runs(run.inputs["runs"])
        trainer = None
    else:
        trainer = _Trainer(config, run)
        plans = trainer.series()
        check_runs([p.parameters for p in plans], [p.tokens for p in plans])
        runs = [trainer.measured(plan) for plan in plans]
    found = fit(
        [r.parameters for r in runs],
        [r.tokens for r in runs],
        [r.loss for r in runs],
        num_resamples=config.num_resamples,
        seed=config.seed,
    )
    foretold = larger = None
    if config.target:
        parameters, tokens = found.law.optimum(config.target * max(r.flops for r in runs))
        if trainer is not None:
            plan = trainer.plan(parameters, config.target * config.flops)
            parameters, tokens = plan.parameters, plan.tokens
        foretold = (parameters, tokens, found.predict(parameters, tokens, seed=config.seed))
        progress.say(
            f"  foretold: {foretold[2].estimate:.4f} at {parameters * tokens * 6:.3g} FLOPs"
        )
        if trainer is not None:
            larger = trainer.measured(plan)
    write(run.folder, config, runs, found, foretold, larger)
    return summary(runs, found, foretold, larger)


def read_runs(path: Path) -> list[Measured]:
    """Runs from a CSV with the columns parameters, tokens, loss (and budget, if there is one).

    Raises: UserError naming the line at fault.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} can't be read as CSV: {error}") from error
    found = []
    for number, row in enumerate(rows, start=2):
        try:
            values = [float(row[name]) for name in ("parameters", "tokens", "loss")]
            budget = float(row.get("budget") or 0)
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}: needs the columns parameters, tokens, loss, all numbers"
            ) from error
        found.append(
            Measured(parameters=values[0], tokens=values[1], loss=values[2], budget=budget)
        )
    return found


class _Trainer:
    """Makes runs of a series, each once."""

    def __init__(self, config: ScalingConfig, run: Run) -> None:
        from lmworks.evaluation.bits_per_byte import read_heldout
        from lmworks.tokenizers.load import load_tokenizer
        from lmworks.training.pretrain import cached_stream
        from lmworks.training.threads import set_threads

        set_threads(config.threads)
        self._config, self._run = config, run
        self._tokenizer: Tokenizer = load_tokenizer(run.inputs["tokenizer"])
        self._documents: Sequence[Document] = read_heldout(
            run.inputs["corpus"], config.max_documents, seed=0
        )
        path = run.inputs["corpus"] / "train.jsonl"
        self._corpus_tokens = len(cached_stream(path, self._tokenizer, run.work))

    def series(self) -> list[Plan]:
        """All runs, the cheapest first.

        Raises: UserError for widths or budgets without sense, or more text than there is.
        """
        config = self._config
        if config.num_budgets < 1 or config.flops <= 0:
            raise UserError("flops must be above 0, and num_budgets at least 1")
        for width in config.widths:
            if width < _WIDTH_STEP or width % _WIDTH_STEP:
                raise UserError(f"widths: {width} is no multiple of {_WIDTH_STEP}")
        plans = []
        for number in reversed(range(config.num_budgets)):
            budget = config.flops / _BETWEEN**number
            plans += [self._plan(width, budget) for width in sorted(set(config.widths))]
        kept = [plan for plan in plans if plan.num_steps >= config.min_steps]
        if len(kept) < len(plans):
            progress.say(
                f"  {len(plans) - len(kept)} runs of fewer than {config.min_steps} steps left out"
            )
        most = max((plan.tokens for plan in kept), default=0)
        if most > _MOST_EPOCHS * self._corpus_tokens:
            raise UserError(
                f"a run would read the corpus's {self._corpus_tokens:,} tokens "
                f"{most / self._corpus_tokens:.1f} times, and repeated text follows another law: "
                "lower --flops, leave out the smallest width, or add text"
            )
        return sorted(kept, key=lambda plan: plan.flops)

    def plan(self, parameters: float, budget: float) -> Plan:
        """The run of a budget whose size is nearest to `parameters`."""
        widths = range(_WIDTH_STEP, _WIDEST, _WIDTH_STEP)
        sizes: list[Plan] = []
        for width in widths:
            sizes.append(self._plan(width, budget))
            if sizes[-1].parameters > 2 * parameters:
                break
        return min(sizes, key=lambda plan: abs(math.log(plan.parameters / parameters)))

    def measured(self, plan: Plan) -> Measured:
        """The run of a plan, trained and measured, or what an earlier one kept."""
        import numpy as np

        from lmworks.evaluation.scores import score_documents
        from lmworks.evaluation.variants import Measures, measured_once, train
        from lmworks.inference.logprobs import decoder_logprobs

        name = f"{plan.width}-{plan.num_steps}"

        def measure() -> Measures:
            settings = self._settings(plan.width, plan.num_steps)
            label = f"width {plan.width}, {plan.tokens:,} tokens"
            model = train(
                settings, self._run, self._tokenizer, name=name, label=label, looks=False
            ).model
            scores = score_documents(decoder_logprobs(model), self._documents, self._tokenizer)
            return {"loss": np.array(scores.bits_per_byte)}

        return Measured(
            parameters=plan.parameters,
            tokens=plan.tokens,
            loss=float(measured_once(self._run, name, measure)["loss"]),
            budget=plan.budget,
        )

    def _plan(self, width: int, budget: float) -> Plan:
        from lmworks.models.compute import compute
        from lmworks.training.pretrain import model_config

        config = self._config
        model = model_config(self._settings(width, 1), self._tokenizer.vocab_size)
        parameters = compute(model).training_flops / 6
        row = config.batch_size * config.context_length
        steps = max(1, round(budget / (6 * parameters) / row))
        return Plan(
            width=width, parameters=parameters, num_steps=steps, tokens=steps * row, budget=budget
        )

    def _settings(self, width: int, num_steps: int) -> PretrainConfig:
        """Twice as wide is twice as deep; heads of 32."""
        config = self._config
        heads = max(1, width // _HEAD_DIM)
        while width % (2 * heads):
            heads -= 1
        return PretrainConfig(
            corpus=config.corpus,
            tokenizer=config.tokenizer,
            depth=max(1, round(width / 32)),
            context_length=config.context_length,
            num_steps=num_steps,
            batch_size=config.batch_size,
            seed=config.seed,
            shape=Shape(hidden_size=width, num_attention_heads=heads, num_key_value_heads=heads),
            loop=config.loop,
        )
