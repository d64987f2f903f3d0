"""Stage `analyze`: variants of a model side by side, in quality, speed, memory and size.

Quality is KL to the model they were made from, its likeliest token kept, loss and multiple choice,
all paired by text. Speed is measured in turns, each variant in a process of its own, and memory is
that process's. Variants are given, or made here (`made_variants`); types that nobody made or ran
can be forecast from what rounding to them does to the weights (`kl_forecast`).

What comes out says which variants are dominated, and which one to take within bounds on loss, KL,
size and speed.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage

if TYPE_CHECKING:
    from lmworks.evaluation.choices import Choices
    from lmworks.evaluation.kl_forecast import Forecast
    from lmworks.evaluation.sample_texts import SampleTexts
    from lmworks.evaluation.timed_models import Timed
    from lmworks.evaluation.variant_figures import Bounds, VariantFigures, VariantSpeed
    from lmworks.evaluation.variant_quality import Quality, QualityBench
    from lmworks.evaluation.weight_errors import WeightErrors
    from lmworks.tokenizers.base import Tokenizer

REFERENCE_NAME = "reference"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalyzeConfig:
    """Variants of a model in quality, speed, memory and size: a table, a picture, a recommendation.

    Examples:
        lmworks compress analyze --reference runs/base --type Q8_0 --type Q5_K --type Q4_K
        lmworks compress analyze --reference runs/base --model runs/q8 --model runs/q4.gguf \\
            --text runs/corpus --questions runs/questions --max-loss 2 --out runs/analysis
        lmworks compress analyze --reference runs/base --type Q8_0 --type Q6_K --type Q4_0 \\
            --predict Q5_K --predict Q5_0 --max-size 80MB
        lmworks compress analyze --reference runs/base --type Q4_K --type Q4_K:gptq \\
            --type 80MB:solve --calibration runs/dataset
    """

    reference: str = option(role=REFERENCE, help="the model that the variants were made from")
    models: list[str] = option([], role=REFERENCE, help="a variant", repeat="--model")
    types: list[str] = option(
        [],
        help="make a variant: a ggml type, size (80MB) or bits (4.5bpw), and :METHOD of quantize",
        repeat="--type",
    )
    calibration: str = option(
        "", role=REFERENCE, help="text that methods look at; none: Python's documentation"
    )
    predict: list[str] = option(
        [], help="forecast a type from its weights, without running it", repeat="--predict"
    )
    text: str = option(
        "", role=REFERENCE, help="corpus, folder, document or .jsonl; none: Python's docstrings"
    )
    questions: str = option("", role=REFERENCE, help="dataset: its answers are a task as well")
    max_documents: int = option(40, help="measure this many texts; 0 takes all")
    max_questions: int = option(40, help="of each task; 0 leaves tasks out")
    window: int = option(0, help="tokens read at once; 0 takes the model's context")
    max_loss: float = option(1.0, help="loss may grow by so many percent; 0: no matter")
    max_kl: float = option(0.0, help="nats per token; 0: no matter")
    max_size: str = option("", help="of the file, such as 80MB")
    min_speed: float = option(0.0, help="tokens per second of one answer; 0: no matter")
    prefer: Literal["speed", "size", "quality"] = option(
        "speed", help="what is best among those within the bounds"
    )
    rounds: int = option(7, help="turns that each variant is timed; 0 leaves speed out")
    prompt_tokens: int = option(64, help="of the prompt that is timed")
    answer_tokens: int = option(24, help="of the answer that is timed")
    keep: Literal["recommended", "all", "none"] = option(
        "recommended", help="which of the variants made here stay, in models/"
    )
    seed: int = option(0, help="same seed, same texts and questions")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@stage("analyze", makes="report")
def analyze(config: AnalyzeConfig, run: Run) -> dict[str, Any]:
    """Measure, compare, recommend; see AnalyzeConfig.

    Raises: UserError for no variant, a type that is none, or models of other vocabularies.
    """
    from lmworks.core.files import write_json, write_text
    from lmworks.evaluation.kl_forecast import fit_forecast
    from lmworks.evaluation.made_variants import folder_of, make_variant, settings_of, type_of
    from lmworks.evaluation.quality_speed_page import analysis_page, markdown
    from lmworks.evaluation.report import plain_values
    from lmworks.evaluation.sample_texts import sample_texts
    from lmworks.evaluation.variant_figures import dominated_by, recommend
    from lmworks.evaluation.variant_quality import QualityBench
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.threads import set_threads

    bounds = _bounds(config)
    given = _given(config, run)
    for word in config.types:
        settings_of(word)  # faults are told before anything is made
    predicted = [type_of(word) for word in config.predict]
    if not given and not config.types:
        raise UserError("no variant: give --model for those you have, --type for those to make")
    set_threads(config.threads)
    source = run.inputs["reference"]
    tokenizer = load_tokenizer(source)
    texts = sample_texts(
        run.inputs.get("text"), tokenizer, max_documents=config.max_documents, seed=config.seed
    )
    tasks = _tasks(config, run, texts, tokenizer)
    made = {
        word: make_variant(
            source, word, run.work / "made", calibration=str(run.inputs.get("calibration", ""))
        )
        for word in config.types
    }
    paths = {**given, **made}
    bench = QualityBench(source, run, texts, tasks, window=config.window)
    qualities = {name: bench.measure(name, path) for name, path in paths.items()}
    speeds = _speeds(config, {REFERENCE_NAME: source, **paths}, texts)
    variants = [_reference(source, bench, qualities, speeds)]
    for name, quality in qualities.items():
        kind = name if name in made else ""
        path = f"models/{folder_of(name)}" if kind else str(paths[name])
        variants.append(_figures(name, path, kind, bench, quality, speeds.get(name)))
    weights = bench.sensitivities() if config.predict else {}
    variants = [
        dataclasses.replace(v, weight_error=_error(qualities[v.name].errors, weights))
        if v.name in qualities
        else v
        for v in variants
    ]
    forecast = fit_forecast([v.weight_error for v in variants], [v.kl.estimate for v in variants])
    variants += _predicted(predicted, source, forecast, weights, {v.name for v in variants})
    chosen = recommend(variants, bounds, config.prefer)
    _keep(config, run, made, chosen.name if chosen else "")
    marks = {v.name: dominated_by(v, variants) for v in variants}
    facts = {
        "title": f"Quality and speed of {Path(config.reference).name}",
        "texts": texts.words(),
        "bounds": bounds,
        "prefer": config.prefer,
        "chosen": chosen.name if chosen else "",
        "broken": {v.name: bounds.broken_by(v) for v in variants},
        "dominated_by": marks,
        "forecast": forecast,
        "tasks": {name: len(task.groups) for name, task in tasks.items()},
    }
    write_json(run.folder / "analysis.json", plain_values({"variants": variants, **facts}))
    write_text(run.folder / "report.md", markdown(variants, facts))
    write_text(run.folder / "report.html", analysis_page(variants, facts))
    return {
        "summary": summary(chosen, variants, bounds),
        "recommended": chosen.name if chosen else "",
        "mean_kl": {v.name: v.kl.estimate for v in variants if not v.forecast},
    }


def summary(
    chosen: VariantFigures | None, variants: Sequence[VariantFigures], bounds: Bounds
) -> str:
    """The recommendation as a sentence."""
    if chosen is None:
        tried = [v for v in variants if not v.forecast]
        nearest = min(tried, key=lambda v: (len(bounds.broken_by(v)), v.kl.estimate))
        return f"No variant meets all bounds; nearest is {nearest.name}: " + ", ".join(
            bounds.broken_by(nearest)
        )
    if chosen.name == variants[0].name:
        return "Keep the model as it is: no variant within the bounds is better."
    parts = [
        f"Take {chosen.name}: {chosen.file_bytes / 1e6:,.1f} MB",
        f"KL {chosen.kl.estimate:.4f} nats per token",
    ]
    if chosen.loss_growth is not None:
        parts.append(f"loss {chosen.loss_growth.estimate:+.2%}")
    if chosen.speed is not None:
        ratio = chosen.speed.decode_ratio.ratio
        parts.append(
            f"{chosen.speed.decode_tokens_per_s:.0f} tokens/s, {ratio:.2f} times the reference's"
        )
    return ", ".join(parts) + "."


def variant_name(path: Path, taken: Sequence[str]) -> str:
    """What a variant is called: its folder or file, with the folder above where that is taken."""
    name = path.stem if path.suffix == ".gguf" else path.name
    if name in taken:
        name = f"{path.resolve().parent.name}/{name}"
    if name in taken:
        raise UserError(f"{path} is given twice, or under a name that another variant has")
    return name


def _given(config: AnalyzeConfig, run: Run) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for index in range(len(config.models)):
        path = run.inputs[f"models.{index}"]
        found[variant_name(path, [*found, *config.types, REFERENCE_NAME])] = path
    return found


def _bounds(config: AnalyzeConfig) -> Bounds:
    from lmworks.core.quantities import parse_bytes
    from lmworks.evaluation.variant_figures import Bounds

    if min(config.max_loss, config.max_kl, config.min_speed) < 0 or config.rounds < 0:
        raise UserError("bounds and rounds are numbers from 0 up")
    if config.min_speed and not config.rounds:
        raise UserError("--min-speed needs speeds: give --rounds 1 or more")
    return Bounds(
        max_kl=config.max_kl or None,
        max_loss=config.max_loss / 100 or None,
        max_bytes=parse_bytes(config.max_size, "--max-size") if config.max_size else None,
        min_tokens_per_s=config.min_speed or None,
    )


def _tasks(
    config: AnalyzeConfig, run: Run, texts: SampleTexts, tokenizer: Tokenizer
) -> dict[str, Choices]:
    from lmworks.evaluation.choices import answers, continuations
    from lmworks.training.conversations import read_conversations

    if not config.max_questions:
        return {}
    how = {"most": config.max_questions, "seed": config.seed}
    tasks = {"continuations": continuations(texts, **how)}
    if config.questions:
        path = run.inputs["questions"]
        rows = read_conversations(path if path.is_file() else path / "heldout.jsonl")
        tasks["answers"] = answers(rows, tokenizer, **how)
    return tasks


def _speeds(
    config: AnalyzeConfig, paths: Mapping[str, Path], texts: SampleTexts
) -> dict[str, VariantSpeed]:
    """By name, the reference first; none where speed is left out."""
    from lmworks.evaluation.timed_models import Job, time_in_turns

    if not config.rounds:
        return {}
    if config.prompt_tokens < 1 or config.answer_tokens < 2:
        raise UserError("what is timed needs a prompt, and an answer of at least two tokens")
    jobs = [
        Job(
            model=str(path),
            prompts=(prompt(texts, config.prompt_tokens),),
            answer_tokens=config.answer_tokens,
            threads=config.threads,
        )
        for path in paths.values()
    ]
    found = time_in_turns(jobs, rounds=config.rounds)
    return {name: _speed(timed, found[0]) for name, timed in zip(paths, found, strict=True)}


def _speed(timed: Timed, base: Timed) -> VariantSpeed:
    """Rates are the reference's times the ratios of neighbouring rounds: medians of all rounds
    would compare a quiet minute of one with a busy minute of the other."""
    from lmworks.compression.measure import speedup_of
    from lmworks.evaluation.variant_figures import VariantSpeed

    decode, prompt = (speedup_of(ratios) for ratios in timed.against)
    return VariantSpeed(
        prompt_tokens_per_s=base.prompt_tokens_per_s * prompt.ratio,
        decode_tokens_per_s=base.decode_tokens_per_s * decode.ratio,
        decode_ratio=decode,
        prompt_ratio=prompt,
        weight_bytes=timed.weight_bytes,
        peak_memory_bytes=timed.peak_memory_bytes,
        not_fused=timed.not_fused,
    )


def prompt(texts: SampleTexts, num_tokens: int, first: int = 0) -> tuple[int, ...]:
    """So many tokens of the texts, one behind the other from text `first` on, again if need be."""
    import itertools

    rows = [texts.rows[(first + i) % len(texts.rows)] for i in range(len(texts.rows))]
    tokens = itertools.cycle(int(token) for row in rows for token in row)
    return tuple(itertools.islice(tokens, num_tokens))


def _reference(
    path: Path,
    bench: QualityBench,
    qualities: Mapping[str, Quality],
    speeds: Mapping[str, VariantSpeed],
) -> VariantFigures:
    from lmworks.evaluation.statistics import Interval
    from lmworks.evaluation.variant_figures import VariantFigures
    from lmworks.evaluation.weight_errors import file_bytes, num_weights

    some = next(iter(qualities.values())).divergences
    size = file_bytes(path)
    none = Interval(0.0, 0.0, 0.0)
    return VariantFigures(
        name=REFERENCE_NAME,
        path=str(path),
        file_bytes=size,
        bits_per_weight=8 * size / num_weights(path),
        bits_per_byte=bench.bits_per_byte(some.reference_nats),
        perplexity=some.perplexity(of_reference=True),
        loss_growth=none,
        kl=none,
        agreement=Interval(1.0, 1.0, 1.0),
        accuracy={task: bench.accuracy(task, found) for task, found in bench.correct.items()},
        speed=speeds.get(REFERENCE_NAME),
    )


def _figures(
    name: str,
    path: str,
    kind: str,
    bench: QualityBench,
    quality: Quality,
    speed: VariantSpeed | None,
) -> VariantFigures:
    from lmworks.evaluation.variant_figures import VariantFigures

    found = quality.divergences
    return VariantFigures(
        name=name,
        path=path,
        type=kind,
        file_bytes=quality.errors.file_bytes,
        bits_per_weight=quality.errors.bits_per_weight,
        bits_per_byte=bench.bits_per_byte(found.nats),
        perplexity=found.perplexity(),
        loss_growth=found.loss_growth(),
        kl=found.mean_kl(),
        kl_99=found.quantile(0.99),
        agreement=found.agreement(),
        accuracy={task: bench.accuracy(task, each) for task, each in quality.correct.items()},
        speed=speed,
    )


def _error(errors: WeightErrors, weights: Mapping[str, float]) -> float:
    """Of all matrices: by how much they touch the answers, if that is known."""
    from lmworks.evaluation.noise_sensitivity import weighed_error

    return weighed_error(errors.by_kind, weights) if weights else errors.relative


def _predicted(
    types: Sequence[str],
    source: Path,
    forecast: Forecast | None,
    weights: Mapping[str, float],
    taken: set[str],
) -> list[VariantFigures]:
    """Types that were not run. Raises: UserError where too little was measured to forecast."""
    import math

    from lmworks.evaluation.statistics import Interval
    from lmworks.evaluation.variant_figures import VariantFigures
    from lmworks.evaluation.weight_errors import rounding_errors

    if not types:
        return []
    if forecast is None:
        raise UserError("--predict needs three measured variants with other weights than the model")
    rows = []
    for kind in types:
        if kind in taken:
            continue
        errors = rounding_errors(source, kind)
        error = _error(errors, weights)
        kl = forecast.kl(error) if error else 0.0
        rows.append(
            VariantFigures(
                name=kind,
                path="",
                type=kind,
                file_bytes=errors.file_bytes,
                bits_per_weight=errors.bits_per_weight,
                kl=Interval(kl, -math.inf, math.inf),
                weight_error=error,
                forecast=True,
            )
        )
    return rows


def _keep(config: AnalyzeConfig, run: Run, made: Mapping[str, Path], chosen: str) -> None:
    for kind, path in made.items():
        if config.keep == "all" or (config.keep == "recommended" and kind == chosen):
            (run.folder / "models").mkdir(exist_ok=True)
            shutil.copytree(path, run.folder / "models" / path.name, dirs_exist_ok=True)
