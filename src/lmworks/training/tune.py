"""Stage `tune`: how to compute a step of a given model and batch fastest on this machine.

What is chosen changes no result but for rounding (rows at a time, layers computed again, threads,
compiled layers), or only where it is allowed (precision). The search is a fraction of trying all:

- Memory is estimated and not tried; computing layers again is slower by nature, so it is looked at
  only where something would not fit without.
- One micro-batch is timed instead of a step, since a step is so many of them and an optimizer whose
  time none of this changes.
- All sizes are timed once; those near the best then take turns, and one that is behind in the
  median of the paired ratios is out. The winner meets other threads, precisions and the compiler
  alone.
- A precision whose matrix products are slower than float32's here is never tried.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from lmworks.core import progress
from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.files import write_json, write_text
from lmworks.core.machine import usable_cores
from lmworks.core.racing import race
from lmworks.core.stages import Run, stage
from lmworks.training.pretrain import PretrainConfig, Shape
from lmworks.training.trainer_config import LoopConfig

_COMPILERS = ("g++", "c++", "clang++")
_PRECISIONS = ("bfloat16", "float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Find rows at a time, threads and the like with which a pre-training is fastest here.

    Examples:
        lmworks train tune --depth 6 --batch-size 32 --vocab-size 4096
        lmworks train tune --tokenizer runs/tokenizer --depth 6 --batch-size 32 --memory-gb 2
        lmworks train tune --depth 6 --batch-size 32 --html tuning.html
        lmworks train pretrain --corpus runs/corpus --tokenizer runs/tokenizer \\
            --recipe runs/tuning/recipe.yaml
    """

    tokenizer: str = option("", role=REFERENCE, help="tokenizer, for the size of its vocabulary")
    vocab_size: int = option(4096, help="tokens of the vocabulary, without a tokenizer")
    depth: int = option(4, help="layers; width is 64 x depth")
    layers: str = option("attention", help="pattern of layers")
    context_length: int = option(256, help="tokens of a row")
    batch_size: int = option(8, help="rows of a step; stays as it is")
    memory_gb: float = option(0.0, help="memory that the training may take; 0: the machine's")
    precision: Literal["float32", "any"] = option(
        "float32", help="any: bfloat16 and float16 too, where this machine multiplies them faster"
    )
    try_compile: bool = option(False, help="time torch.compile as well (takes a minute)")
    seed: int = option(0, help="of the ids that are learned from")
    shape: Shape = option(Shape(), help="sizes that override the dial", flag=False)
    loop: LoopConfig = option(LoopConfig(), help="where the search starts", flag=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to compute a step."""

    micro_batch_size: int
    threads: int
    activation_checkpointing: bool = False
    precision: str = "float32"
    compile: bool = False

    def words(self) -> str:
        """`4 rows at a time, 2 threads, layers computed again`."""
        words = [f"{self.micro_batch_size} rows at a time", f"{self.threads} threads"]
        words += ["layers computed again"] * self.activation_checkpointing
        words += [self.precision] * (self.precision != "float32") + ["compiled"] * self.compile
        return ", ".join(words)

    def loop(self, base: LoopConfig) -> LoopConfig:
        """The loop's settings with this one in them."""
        return dataclasses.replace(
            base,
            micro_batch_size=self.micro_batch_size,
            activation_checkpointing=self.activation_checkpointing,
            precision=self.precision,  # type: ignore[arg-type]
            compile=self.compile,
        )


@dataclasses.dataclass(kw_only=True)
class Search:
    """Looks for the setting with the least time per row.

    Args:
        seconds_per_row: times one micro-batch.
        fits: whether a setting stays within the memory.
    Attributes:
        times: all that was timed, seconds per row.
    """

    seconds_per_row: Callable[[Setting], float]
    fits: Callable[[Setting], bool]
    times: dict[Setting, list[float]] = dataclasses.field(default_factory=dict)

    def run(
        self,
        batch_size: int,
        threads: Sequence[int],
        precisions: Sequence[str] = (),
        try_compile: bool = False,
    ) -> Setting:
        """The fastest setting that fits.

        Args:
            threads: numbers to try, the usual one first.
            precisions: beside float32.
        Raises: UserError where nothing fits.
        """
        sizes = list(self._sizes(batch_size, threads[0]))
        if not sizes:
            raise UserError(
                "no setting fits the memory, not even one row at a time with layers computed "
                "again: `lmworks train estimate` tells how much is missing, and of what"
            )
        best = self._race(sizes)
        for count in threads[1:]:
            best = self._race([best, dataclasses.replace(best, threads=count)])
        for precision in precisions:
            other = dataclasses.replace(best, precision=precision)
            best = self._race([best, other]) if self.fits(other) else best
        if try_compile:
            best = self._race([best, dataclasses.replace(best, compile=True)])
        return best

    def _sizes(self, batch_size: int, threads: int) -> Iterator[Setting]:
        """Rows at a time that divide the batch and fit; computed again only where they must."""
        size = batch_size
        while size:
            plain = Setting(micro_batch_size=size, threads=threads)
            again = dataclasses.replace(plain, activation_checkpointing=True)
            if self.fits(plain):
                yield plain
            elif self.fits(again):
                yield again
            size = max(
                (d for d in range(1, size) if batch_size % d == 0 and 2 * d <= size), default=0
            )

    def _race(self, settings: Sequence[Setting]) -> Setting:
        return race(settings, self._time)

    def _time(self, setting: Setting) -> float:
        found = self.seconds_per_row(setting)
        self.times.setdefault(setting, []).append(found)
        return found


@stage("tune", makes="tuning")
def tune(config: TuneConfig, run: Run) -> dict[str, Any]:
    """Time settings on this machine; see TuneConfig.

    Raises: UserError for a budget that nothing meets, and for --try-compile without a compiler.
    """
    import yaml

    if config.try_compile and not any(shutil.which(name) for name in _COMPILERS):
        raise UserError(
            f"--try-compile: torch.compile needs a C++ compiler, and none of "
            f"{', '.join(_COMPILERS)} is here: install one (Debian: apt-get install g++)"
        )
    started = time.monotonic()
    trial = _Trial(config, _vocab_size(config, run))
    cores = usable_cores()
    threads = sorted({cores, max(1, cores // 2)}, reverse=True)
    search = Search(seconds_per_row=trial.seconds_per_row, fits=trial.fits)
    best = search.run(config.batch_size, threads, trial.precisions(), config.try_compile)
    rows = [
        {
            **dataclasses.asdict(setting),
            "tokens_per_s": round(trial.rate(times), 1),
            "looks": [round(trial.rate([seconds]), 1) for seconds in times],
            "estimated_memory_bytes": trial.estimate(setting).peak,
        }
        for setting, times in search.times.items()
    ]
    loop = {k: v for k, v in dataclasses.asdict(best).items() if k != "threads"}
    recipe = {
        "depth": config.depth,
        "layers": config.layers,
        "context_length": config.context_length,
        "batch_size": config.batch_size,
        "threads": best.threads,
        "shape": dataclasses.asdict(config.shape),
        "loop": loop,
    }
    write_text(run.folder / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
    write_json(run.folder / "tuning.json", {"best": dataclasses.asdict(best), "timed": rows})
    estimate = trial.estimate(best)
    return {
        **dataclasses.asdict(best),
        "accumulated": -(-config.batch_size // best.micro_batch_size),
        "tokens_per_s": round(trial.rate(search.times[best]), 1),
        "whole_batch_tokens_per_s": next(
            (r["tokens_per_s"] for r in rows if r["micro_batch_size"] == config.batch_size), None
        ),
        "estimated_memory_bytes": estimate.peak,
        "settings_timed": len(rows),
        "search_s": round(time.monotonic() - started, 1),
    }


def _vocab_size(config: TuneConfig, run: Run) -> int:
    if not config.tokenizer:
        return config.vocab_size
    from lmworks.tokenizers.load import load_tokenizer

    return load_tokenizer(run.inputs["tokenizer"]).vocab_size


class _Trial:
    """One model, timed and estimated under settings."""

    def __init__(self, config: TuneConfig, vocab_size: int) -> None:
        import torch

        from lmworks.training.batches import Batch
        from lmworks.training.memory_advice import usable_memory
        from lmworks.training.pretrain import model_config
        from lmworks.training.threads import set_threads

        set_threads(0)
        pretrain = PretrainConfig(
            corpus="-",
            tokenizer="-",
            depth=config.depth,
            layers=config.layers,
            context_length=config.context_length,
            shape=config.shape,
        )
        self._config, self._model_config = config, model_config(pretrain, vocab_size)
        generator = torch.Generator().manual_seed(config.seed)
        shape = (config.batch_size, config.context_length)
        ids = torch.randint(vocab_size, shape, generator=generator)
        self._batch = Batch(input_ids=ids, labels=ids)
        self._limit = int(config.memory_gb * 1e9) or usable_memory()
        self._models: dict[bool, Any] = {}
        self._estimates: dict[Setting, Any] = {}

    def precisions(self) -> list[str]:
        """Those that multiply faster than float32 here."""
        import torch

        from lmworks.training.machine_speed import product_speed

        if self._config.precision == "float32":
            return []
        device = torch.device("cpu")
        plain = product_speed(device, torch.float32)
        return [n for n in _PRECISIONS if product_speed(device, getattr(torch, n)) > plain]

    def estimate(self, setting: Setting) -> Any:
        """The memory that a training with this setting takes, whatever its threads."""
        key = dataclasses.replace(setting, threads=1)
        if key not in self._estimates:
            self._estimates[key] = self._estimate(key)
        return self._estimates[key]

    def _estimate(self, setting: Setting) -> Any:
        from lmworks.models.skeleton import skeleton
        from lmworks.training.memory_estimate import estimate, process_baseline
        from lmworks.training.objectives.causal import causal

        return estimate(
            skeleton(self._model_config),
            causal,
            self._batch,
            setting.loop(self._config.loop),
            baseline=process_baseline(),
        )

    def fits(self, setting: Setting) -> bool:
        return not self._limit or bool(self.estimate(setting).peak <= self._limit)

    def seconds_per_row(self, setting: Setting) -> float:
        """One micro-batch, forward and backward: the faster of two, which a busy machine and the
        first call's allocations disturb least."""
        import torch

        from lmworks.training.objectives.causal import causal
        from lmworks.training.strategy import Compute, accumulate

        torch.set_num_threads(setting.threads)
        model = self._model(setting)
        part = self._batch.rows(0, setting.micro_batch_size)
        compute = Compute(precision=setting.precision)
        seconds = float("inf")
        for _ in range(2):
            model.zero_grad(set_to_none=True)
            started = time.perf_counter()
            accumulate(model, causal, part, compute, total=part.num_targets)
            seconds = min(seconds, time.perf_counter() - started)
        progress.say(f"  {setting.words()}: {setting.micro_batch_size / seconds:.2f} rows/s")
        return seconds / setting.micro_batch_size

    def rate(self, times: Sequence[float]) -> float:
        """Tokens per second of times per row."""
        return self._config.context_length / statistics.median(times)

    def _model(self, setting: Setting) -> Any:
        import torch

        from lmworks.models.model import Model

        if setting.compile not in self._models:
            model = Model(self._model_config).train()
            model.reset_parameters(torch.Generator().manual_seed(self._config.seed))
            if setting.compile:
                for layer in model.layers:
                    layer.compile()
            self._models[setting.compile] = model
        model = self._models[setting.compile]
        model.checkpoint_layers = setting.activation_checkpointing
        return model
