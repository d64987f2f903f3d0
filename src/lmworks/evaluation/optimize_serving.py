"""Stage `optimize`: how to serve a model fastest on this machine, within a bound on its quality.

A workload (so many answers at the same time, prompts and answers of so many tokens) is timed under
settings: ggml types that the model is rounded to, threads, guessed tokens, prompt tokens between
steps, size of the batch. Each setting runs in a process of its own, as the server would run it.
What comes out is a `models.yaml` that `lmworks serve --models` takes, the file of the chosen format
beside it, and how many times as fast that is as serving the model as it is, with an interval. One
that is not shown to be faster is not taken, unless the model as it is is too large.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage
from lmworks.evaluation.serving_search import AS_IT_IS, ServingSearch, ServingSetting, Space

if TYPE_CHECKING:
    from lmworks.compression.measure import Speedup
    from lmworks.evaluation.sample_texts import SampleTexts
    from lmworks.evaluation.timed_models import Job, TimedModel
    from lmworks.evaluation.variant_figures import Bounds
    from lmworks.evaluation.variant_quality import Quality

SERVING = "models.yaml"
_CONFIRM = 11  # rounds in which the chosen setting meets the model as it is
_MOST_PROCESSES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizeConfig:
    """The fastest way to serve a model here within a bound on quality: a models.yaml, and why.

    Examples:
        lmworks compress optimize --model runs/base --out runs/serving
        lmworks serve --models runs/serving/models.yaml
        lmworks compress optimize --model smollm2-135m --users 4 --max-kl 0.02 --text runs/corpus
        lmworks compress optimize --model runs/base --type Q8_0 --type Q4_K --search exhaustive
    """

    model: str = option(role=REFERENCE, help="the model to serve")
    types: list[str] = option(
        ["Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0"],
        help="a format to try: as in compress analyze, such as Q4_K:solve",
        repeat="--type",
    )
    calibration: str = option(
        "", role=REFERENCE, help="text that methods look at; none: Python's documentation"
    )
    max_loss: float = option(1.0, help="loss may grow by so many percent; 0: no matter")
    max_kl: float = option(0.0, help="nats per token to the model as it is; 0: no matter")
    max_size: str = option("", help="of the file, such as 80MB")
    text: str = option(
        "", role=REFERENCE, help="corpus, folder, document or .jsonl; none: Python's docstrings"
    )
    max_documents: int = option(40, help="judge quality on this many texts; 0 takes all")
    users: int = option(1, help="answers at the same time")
    prompt_tokens: int = option(96, help="of each prompt")
    answer_tokens: int = option(32, help="of each answer")
    rounds: int = option(3, help="turns in which settings that are near each other are timed")
    search: Literal["races", "exhaustive"] = option(
        "races", help="exhaustive times every combination"
    )
    seed: int = option(0, help="same seed, same texts")


@stage("optimize", makes="serving")
def optimize(config: OptimizeConfig, run: Run) -> dict[str, Any]:
    """Search, confirm, write; see OptimizeConfig.

    Raises: UserError for a type that is none, numbers that are too small, or bounds that no format
        meets.
    """
    import time

    from lmworks.core.files import write_json, write_text
    from lmworks.evaluation.made_variants import make_variant, settings_of
    from lmworks.evaluation.report import plain_values
    from lmworks.evaluation.sample_texts import sample_texts
    from lmworks.evaluation.serving_page import serving_page
    from lmworks.tokenizers.load import load_tokenizer

    bounds = _check(config)
    for word in config.types:
        settings_of(word)  # faults are told before anything is made
    source = run.inputs["model"]
    tokenizer = load_tokenizer(source)
    texts = sample_texts(
        run.inputs.get("text"), tokenizer, max_documents=config.max_documents, seed=config.seed
    )
    paths = {AS_IT_IS: source}
    calibration = str(run.inputs.get("calibration", ""))
    paths |= {
        word: make_variant(source, word, run.work / "made", calibration=calibration)
        for word in config.types
    }
    judge = _Judge(config, run, paths, texts, bounds)
    space = _space(config, paths, bounds)
    started = time.monotonic()
    with _runners(config, paths, texts) as runners:
        search = ServingSearch(
            time=runners.time,
            good_enough=judge.good_enough,
            leave=runners.leave,
            rounds=config.rounds,
        )
        look = search.run if config.search == "races" else search.exhaustive
        best = look(space)
    searched = time.monotonic() - started
    start = dataclasses.replace(space.start(), format=AS_IT_IS)
    gain, seconds = _confirm(config, paths, texts, start, best)
    fastest, taken = best, gain.low > 1 or best == start or AS_IT_IS not in space.format
    best = fastest if taken else start
    served = _serving(config, run, paths, best)
    found = {
        "best": best,
        "start": start,
        "fastest": fastest,
        "speedup": gain,
        "seconds": seconds,
        "timed": [
            {"setting": setting, "words": setting.words(), "seconds": times}
            for setting, times in search.times.items()
        ],
        "quality": judge.rows(),
        "bounds": bounds,
        "combinations": len(list(space.all())),
        "rounds_timed": sum(len(times) for times in search.times.values()),
        "search_s": round(searched, 1),
    }
    plain = plain_values(found)
    write_json(run.folder / "optimized.json", plain)
    write_text(
        run.folder / "report.html",
        serving_page(Path(config.model).name, plain, served, config=dataclasses.asdict(config)),
    )
    return {
        "summary": _summary(best, fastest, gain, judge),
        "speedup": gain.ratio if taken else 1.0,
        "settings_timed": len(search.times),
        "of": found["combinations"],
        "search_s": found["search_s"],
    }


def _check(config: OptimizeConfig) -> Bounds:
    from lmworks.core.quantities import parse_bytes
    from lmworks.evaluation.variant_figures import Bounds

    if min(config.users, config.rounds, config.prompt_tokens, config.answer_tokens - 1) < 1:
        raise UserError("needs a user, a round, a prompt, and answers of at least two tokens")
    if min(config.max_loss, config.max_kl) < 0:
        raise UserError("bounds are numbers from 0 up")
    return Bounds(
        max_kl=config.max_kl or None,
        max_loss=config.max_loss / 100 or None,
        max_bytes=parse_bytes(config.max_size, "--max-size") if config.max_size else None,
    )


def _space(config: OptimizeConfig, paths: Mapping[str, Path], bounds: Bounds) -> Space:
    """What is tried. Files above the size are out; raises: UserError where nothing is left."""
    from lmworks.core.machine import usable_cores
    from lmworks.evaluation.weight_errors import file_bytes
    from lmworks.models.cache_types import CACHE_TYPES

    cores, users = usable_cores(), config.users
    sizes = {name: file_bytes(path) for name, path in paths.items()}
    most = bounds.max_bytes
    formats = [name for name, size in sizes.items() if most is None or size <= most]
    if not formats:
        name = min(sizes, key=lambda n: sizes[n])
        raise UserError(
            f"no format fits {config.max_size}: the smallest is {name} with "
            f"{sizes[name] / 1e6:,.1f} MB; name smaller types with --type"
        )
    return Space(
        format=tuple(formats),
        threads=tuple(sorted({cores, max(1, cores // 2)}, reverse=True)),
        max_batch=tuple(sorted({users, max(1, users // 2)}, reverse=True)),
        turn_tokens=(0, 32, 512),
        speculate=("", "lookup"),
        cache_type=CACHE_TYPES,
    )


class _Judge:
    """Quality of formats and types of cache, each measured when it is first asked for."""

    def __init__(
        self,
        config: OptimizeConfig,
        run: Run,
        paths: Mapping[str, Path],
        texts: SampleTexts,
        bounds: Bounds,
    ) -> None:
        self._run, self._paths, self._texts, self._bounds = run, paths, texts, bounds
        self._bench: Any = None
        self.found: dict[tuple[str, str], Quality] = {}

    def good_enough(self, name: str, cache_type: str) -> bool:
        return not self._broken(name, cache_type)

    def _broken(self, name: str, cache_type: str) -> list[str]:
        from lmworks.evaluation.variant_figures import VariantFigures
        from lmworks.evaluation.variant_quality import QualityBench

        key = name, cache_type
        if key not in self.found:
            if self._bench is None:
                self._bench = QualityBench(self._paths[AS_IT_IS], self._run, self._texts, {})
            self.found[key] = self._bench.measure(
                name, self._paths[name], cache_type=cache_type if cache_type != "f32" else ""
            )
        quality = self.found[key]
        return self._bounds.broken_by(
            VariantFigures(
                name=name,
                path="",
                file_bytes=0,
                bits_per_weight=0.0,
                loss_growth=quality.divergences.loss_growth(),
                kl=quality.divergences.mean_kl(),
            )
        )

    def rows(self) -> list[dict[str, Any]]:
        """What was measured, for the report."""
        return [
            {
                "format": name + (f", a cache of {cache_type}" if cache_type != "f32" else ""),
                "kl": quality.divergences.mean_kl(),
                "loss_growth": quality.divergences.loss_growth(),
                "agreement": quality.divergences.agreement(),
                "file_bytes": quality.errors.file_bytes,
                "broken": self._broken(name, cache_type),
            }
            for (name, cache_type), quality in self.found.items()
        ]


class _Runners:
    """Processes of settings that are still in; those asked least lately go when there are many."""

    def __init__(
        self, config: OptimizeConfig, paths: Mapping[str, Path], texts: SampleTexts
    ) -> None:
        self._config, self._paths, self._texts = config, paths, texts
        self._open: dict[ServingSetting, TimedModel] = {}

    def time(self, setting: ServingSetting) -> float:
        """The faster of two rounds, which a busy machine disturbs least."""
        from lmworks.evaluation.timed_models import TimedModel

        model = self._open.pop(setting, None)
        if model is None:
            if len(self._open) >= _MOST_PROCESSES:
                self.leave(next(iter(self._open)))
            model = TimedModel(_job(self._config, self._paths, self._texts, setting))
        self._open[setting] = model  # the last of the open ones
        return min(sum(model.round()) for _ in range(2))

    def leave(self, setting: ServingSetting) -> None:
        if setting in self._open:
            self._open.pop(setting).close()

    def close(self) -> None:
        for setting in list(self._open):
            self.leave(setting)


@contextlib.contextmanager
def _runners(
    config: OptimizeConfig, paths: Mapping[str, Path], texts: SampleTexts
) -> Iterator[_Runners]:
    runners = _Runners(config, paths, texts)
    try:
        yield runners
    finally:
        runners.close()


def _job(
    config: OptimizeConfig,
    paths: Mapping[str, Path],
    texts: SampleTexts,
    setting: ServingSetting,
) -> Job:
    from lmworks.evaluation.quality_speed import prompt
    from lmworks.evaluation.timed_models import Job

    return Job(
        model=str(paths[setting.format]),
        prompts=tuple(prompt(texts, config.prompt_tokens, user) for user in range(config.users)),
        answer_tokens=config.answer_tokens,
        threads=setting.threads,
        speculate=setting.speculate,
        engine=setting.engine(),
    )


def _confirm(
    config: OptimizeConfig,
    paths: Mapping[str, Path],
    texts: SampleTexts,
    start: ServingSetting,
    best: ServingSetting,
) -> tuple[Speedup, list[float]]:
    """How many times as fast the best is as the start, in rounds that chose neither of them."""
    from lmworks.compression.measure import Speedup, speedup_of
    from lmworks.evaluation.timed_models import time_in_turns

    if best == start:
        return Speedup(ratio=1.0, low=1.0, high=1.0), []
    jobs = [_job(config, paths, texts, setting) for setting in (start, best)]
    before, after = time_in_turns(jobs, rounds=_CONFIRM)
    ratios = [a / b for a, b in zip(before.seconds, after.seconds, strict=True)]
    return speedup_of(ratios), list(after.seconds)


def _serving(
    config: OptimizeConfig, run: Run, paths: Mapping[str, Path], best: ServingSetting
) -> str:
    """Write the models.yaml and the file it names; the text of it."""
    import yaml

    from lmworks.core.files import write_text
    from lmworks.evaluation.made_variants import folder_of
    from lmworks.evaluation.quality_speed import variant_name

    name = variant_name(Path(config.model), [])
    model = config.model
    if best.format == AS_IT_IS:
        model = str(Path(model).resolve()) if Path(model).exists() else model
    else:
        name = f"{name}-{folder_of(best.format).lower()}"
        model = name
        shutil.copytree(paths[best.format], run.folder / name, dirs_exist_ok=True)
    spec: dict[str, Any] = {"model": model, **best.engine()}
    if best.speculate:
        spec["speculate"] = best.speculate
    text = yaml.safe_dump({"threads": best.threads, "models": {name: spec}}, sort_keys=False)
    write_text(run.folder / SERVING, text)
    return text


def _summary(best: ServingSetting, fastest: ServingSetting, gain: Speedup, judge: _Judge) -> str:
    known = gain.low > 0 and gain.high < float("inf")
    spread = f" [{gain.low:.2f}, {gain.high:.2f}]" if known else ""
    if best != fastest:
        return (
            f"The model as it is: {fastest.words()} came out fastest, and was {gain.ratio:.2f} "
            f"times as fast when measured again{spread}, which shows nothing."
        )
    text = f"{best.words()}: {gain.ratio:.2f} times as fast as the model as it is{spread}"
    key = best.format, best.cache_type
    if key in judge.found:
        found = judge.found[key].divergences
        text += f", KL {found.mean_kl().estimate:.4f}, loss {found.loss_growth().estimate:+.2%}"
    return text + "."
