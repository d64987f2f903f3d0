"""Stage `compare_curricula`: the same models on the same tokens in another order.

Every curriculum trains from the same seeds for the same number of targets, so that only the order,
the lengths or the parts of the text differ. Differences from the first one are paired by document
(the mean over the seeds) and by seed; better or worse is said where both intervals leave out zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmworks.core.config import COSMETIC, REFERENCE, from_mapping, lay_over, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage
from lmworks.training.pretrain import PretrainConfig, Shape
from lmworks.training.trainer_config import LoopConfig

if TYPE_CHECKING:
    import numpy as np

    from lmworks.data.documents import Document
    from lmworks.evaluation.report import CurvePlot, GainTable
    from lmworks.evaluation.statistics import Interval
    from lmworks.evaluation.variants import Measures
    from lmworks.tokenizers.base import Tokenizer

_SETTINGS = ("curriculum", "pacing", "mixture")  # of a variant; all else is the same for all


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareCurriculaConfig:
    """Curricula side by side at equal tokens, over seeds, with intervals.

    Examples:
        lmworks eval curricula --corpus runs/corpus --tokenizer runs/tokenizer --out runs/curricula
        lmworks eval curricula --corpus runs/corpus --tokenizer runs/tokenizer \\
            --curricula '[uniform, length]' --seeds 5 --num-steps 600
        lmworks eval curricula --corpus runs/corpus --tokenizer runs/tokenizer \\
            --curricula '[uniform]' --set 'variants={hard first: {curriculum: perplexity, \\
            pacing: {reverse: true}}, best last: {curriculum: mixture, \\
            mixture: {weights: {"*": 1}, final_weights: {chat: 1}, change_from: 0.8}}}'
    """

    corpus: str = option(role=REFERENCE, help="corpus folder (train.jsonl, heldout.jsonl)")
    tokenizer: str = option(role=REFERENCE, help="tokenizer folder or reference")
    curricula: list[str] = option(
        ["uniform", "length", "quality", "perplexity"], help="the first is the baseline"
    )
    variants: dict[str, dict[str, Any]] = option(
        {}, help="more, by name: curriculum, pacing and mixture as train pretrain has them",
        flag=False,
    )  # fmt: skip
    curriculum_reference: str = option(
        "", role=REFERENCE, help="perplexity: a model to read with; quality: a file of scores"
    )
    depth: int = option(2, help="layers of each model; width is 64 x depth")
    context_length: int = option(128, help="tokens a model can look back")
    num_steps: int = option(400, help="training steps of each model")
    batch_size: int = option(8, help="rows of context_length tokens per step")
    seeds: int = option(3, help="models of each curriculum")
    max_documents: int = option(200, help="held-out documents to measure; 0 takes all")
    shape: Shape = option(Shape(), help="sizes that override the dial", flag=False)
    loop: LoopConfig = option(LoopConfig(), help="schedule and optimizer", flag=False)
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@stage("compare_curricula", makes="report")
def compare_curricula(config: CompareCurriculaConfig, run: Run) -> dict[str, Any]:
    """Train all, measure all; see CompareCurriculaConfig."""
    import numpy as np

    from lmworks.core.files import write_json
    from lmworks.evaluation.bits_per_byte import read_heldout
    from lmworks.evaluation.report import Report, plain_values, write_report
    from lmworks.evaluation.report_parts import versions
    from lmworks.evaluation.variants import document_table, measured_once
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.threads import set_threads

    plans = plans_of(config)
    set_threads(config.threads)
    tokenizer = load_tokenizer(run.inputs["tokenizer"])
    documents = read_heldout(run.inputs["corpus"], config.max_documents, seed=0)
    found: dict[str, list[Measures]] = {}
    # Seeds outside: what is measured first is one model of each, and a stopped run says something.
    for seed in range(config.seeds):
        for number, (name, settings) in enumerate(plans.items()):
            settings = dataclasses.replace(settings, seed=seed)
            kept = f"{number}-{seed}"
            measures = measured_once(
                run,
                kept,
                lambda s=settings, k=kept, n=name: _measured(s, run, tokenizer, documents, k, n),  # type: ignore[misc]
            )
            found.setdefault(name, []).append(measures)
    bits = {name: np.stack([m["bits"] for m in models]) for name, models in found.items()}
    table = document_table(bits, documents, {name: _note(s) for name, s in plans.items()})
    rows = _rows(table, bits)
    summary = _summary(rows)
    write_json(run.folder / "curricula.json", plain_values({"rows": rows}))
    write_report(
        run.folder,
        Report(
            title="Curricula side by side",
            summary=summary,
            gains=(table,),
            curves=(_curves(found),),
            versions=versions(),
        ),
    )
    return {"summary": summary, "rows": plain_values(rows)}


def plans_of(config: CompareCurriculaConfig) -> dict[str, PretrainConfig]:
    """The training of each curriculum by name, with the first seed.

    Raises: UserError for a name given twice, or a setting that would make the others differ.
    """
    from lmworks.evaluation.variants import check_names

    given = {name: {"curriculum": name} for name in config.curricula}
    check_names("curricula", [*config.curricula, *config.variants], config.seeds)
    plans = {}
    for name, settings in {**given, **config.variants}.items():
        for key in settings:
            if key not in _SETTINGS:
                raise UserError(
                    f"variants: {name} sets {key!r}; only {', '.join(_SETTINGS)} may differ"
                )
        reads = settings.get("curriculum") in ("quality", "perplexity")
        common = {
            "corpus": config.corpus,
            "tokenizer": config.tokenizer,
            "curriculum_reference": config.curriculum_reference if reads else "",
            "depth": config.depth,
            "context_length": config.context_length,
            "num_steps": config.num_steps,
            "batch_size": config.batch_size,
            "shape": dataclasses.asdict(config.shape),
            "loop": dataclasses.asdict(config.loop),
        }
        plans[name] = from_mapping(
            PretrainConfig, lay_over(common, settings), where=f"curriculum {name}"
        )
    return plans


def _measured(
    settings: PretrainConfig,
    run: Run,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    name: str,
    label: str,
) -> Measures:
    import numpy as np

    from lmworks.evaluation.scores import score_documents
    from lmworks.evaluation.variants import train
    from lmworks.inference.logprobs import decoder_logprobs

    label = f"{label}, seed {settings.seed}"
    trained = train(settings, run, tokenizer, name=name, label=label)
    return {
        "bits": score_documents(decoder_logprobs(trained.model), documents, tokenizer).bits,
        "step": np.array(trained.history.heldout_step),
        "loss": np.array(trained.history.heldout_loss),
        "num_targets": np.array(trained.history.num_targets),
    }


def _note(settings: PretrainConfig) -> str:
    if settings.curriculum == "uniform":
        return "every window once, in any order"
    if settings.curriculum == "mixture":
        mixture = settings.mixture
        first = mixture.weights or f"sizes at temperature {mixture.temperature:g}"
        return f"{first} to {mixture.final_weights or 'the same'}"
    pacing = settings.pacing
    what = "length" if settings.curriculum == "length" else settings.curriculum
    end = ", from the other end" if pacing.reverse else ""
    return (
        f"by {what}: {pacing.start:.0%} open at first, all after {pacing.share:.0%} of the run{end}"
    )


def _rows(table: GainTable, bits: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The table as plain values, with what the seeds say and what both allow to say."""
    from lmworks.evaluation.report import agreed
    from lmworks.evaluation.statistics import Interval
    from lmworks.evaluation.variants import ratio_over_seeds

    baseline = bits[table.rows[0].name]
    rows: list[dict[str, Any]] = []
    for row in table.rows:
        entry: dict[str, Any] = {"curriculum": row.name, "bits_per_byte": row.bits_per_byte}
        if row.versus_previous is not None:
            ratio = ratio_over_seeds(bits[row.name], baseline)
            by_seed = Interval(ratio.estimate - 1, ratio.low - 1, ratio.high - 1)
            entry |= {
                "difference": row.versus_previous,
                "relative_difference_over_seeds": by_seed,
                "verdict": agreed(row.versus_previous, by_seed),
            }
        rows.append(entry)
    return rows


def _summary(rows: list[dict[str, Any]]) -> str:
    """One clause per curriculum, against the first."""
    first, *others = rows
    level = first["bits_per_byte"].estimate
    told = [f"{first['curriculum']} needs {level:.4f} bits per byte of held-out text"]
    for row in others:
        by_document, by_seed = row["difference"], row["relative_difference_over_seeds"]
        told.append(
            f"{row['curriculum']} {by_document.estimate:+.4f}{_ends(by_document, '+.4f')}, over "
            f"seeds {by_seed.estimate:+.2%}{_ends(by_seed, '+.2%')}: {row['verdict']}"
        )
    return "; ".join(told) + "."


def _ends(interval: Interval, form: str) -> str:
    known = f" [{interval.low:{form}}, {interval.high:{form}}]"
    return known if interval.known else " (too few for an interval)"


def _curves(found: dict[str, list[Measures]]) -> CurvePlot:
    """Held-out loss along the training, the mean over seeds."""
    import numpy as np

    from lmworks.evaluation.report import Curve, CurvePlot

    curves = []
    for name, models in found.items():
        mean = np.mean([m["loss"] for m in models], axis=0)
        steps = tuple(models[0]["step"].tolist())[1:]  # before the first step all are the same
        curves.append(Curve(name=name, x=steps, y=tuple(mean.tolist())[1:]))
    return CurvePlot(
        title="Held-out loss along the training",
        x_label="steps",
        y_label="Loss in nats per token",
        curves=tuple(curves),
    )
