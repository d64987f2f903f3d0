"""Stage `search_architecture`: the pattern of layers that learns best within a time and a memory.

1. Every kind of layer is timed on this machine, and what the sum of their times says of whole
   models is held against some that are measured whole.
2. One supernet is trained, in which every layer is all kinds of layers (`training.supernet`).
3. Patterns within the budget are bred: the best so far are crossed and changed, judged by the
   supernet's loss on held-out text. Nothing is trained for that.

What comes out are the best patterns, and as many drawn at random within the same budget: training
both from scratch (`lmworks eval architectures --search`) shows what the search was worth.

Sources: Guo et al. 2019, arXiv 1904.00420 (supernet and breeding); Cai et al. 2019, ProxylessNAS,
arXiv 1812.00332 (times of whole models as sums of measured layers).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core.config import COSMETIC, REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage
from lmworks.training.pretrain import PretrainConfig, Shape
from lmworks.training.trainer_config import LoopConfig

if TYPE_CHECKING:
    import numpy as np

    from lmworks.models.config.patterns import Sizes
    from lmworks.training.layer_times import LayerTimes
    from lmworks.training.supernet import Path as Layers

_POPULATION = 24
_PARENTS = 8
_CHECKED = 6  # whole models that the sum of layers is held against
_WINDOWS = 16  # of held-out text, that a pattern is judged on


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchArchitectureConfig:
    """Find the pattern of layers that learns best within a budget of time and memory.

    Examples:
        lmworks train search --corpus runs/corpus --tokenizer runs/tokenizer \\
            --words '[attention, window, mamba2, convolution]' --out runs/search
        lmworks train search --corpus runs/corpus --tokenizer runs/tokenizer \\
            --task decode --most-time 0.7 --most-memory 0.25
    """

    corpus: str = option(role=REFERENCE, help="corpus folder (train.jsonl, heldout.jsonl)")
    tokenizer: str = option(role=REFERENCE, help="tokenizer folder or reference")
    words: list[str] = option(
        ["attention", "window", "mamba2", "gla", "convolution"], help="kinds of layers"
    )
    depth: int = option(4, help="layers; width is 64 x depth")
    task: Literal["prefill", "decode", "train"] = option("prefill", help="what time is taken of")
    most_time: float = option(1.0, help="of the time of a model with the first word alone")
    most_memory: float = option(0.0, help="of its cache at full context; 0 sets no limit")
    context_length: int = option(256, help="tokens a model can look back")
    num_steps: int = option(600, help="training steps of the supernet")
    batch_size: int = option(8, help="rows of context_length tokens per step")
    generations: int = option(8, help="of patterns, 24 in each")
    keep: int = option(3, help="patterns to put out, and as many drawn at random")
    seed: int = option(0, help="same seed, same bytes, as far as times allow")
    shape: Shape = option(Shape(), help="sizes that override the dial", flag=False)
    loop: LoopConfig = option(LoopConfig(), help="schedule and optimizer", flag=False)
    checkpoint_every_s: float = option(30.0, role=COSMETIC, help="seconds between checkpoints")
    threads: int = option(0, role=COSMETIC, help="CPU threads; 0 takes all usable cores")


@stage("search_architecture", makes="search")
def search_architecture(config: SearchArchitectureConfig, run: Run) -> dict[str, Any]:
    """Time, train, breed; see SearchArchitectureConfig."""
    from lmworks.core.files import write_json
    from lmworks.tokenizers.load import load_tokenizer
    from lmworks.training.layer_times import measure_layers
    from lmworks.training.threads import set_threads

    _check(config)
    set_threads(config.threads)
    tokenizer = load_tokenizer(run.inputs["tokenizer"])
    sizes = _sizes(config)
    vocab_size = tokenizer.vocab_size
    times = measure_layers(config.words, config.task, vocab_size=vocab_size, sizes=sizes)
    checked = check_times(times, config, vocab_size, sizes)
    fits = budget(times, config, vocab_size, sizes)
    judge = _train(config, run, tokenizer, sizes)
    found = breed(len(config.words), config.depth, fits, judge, config)
    drawn = draw(len(config.words), config.depth, fits, config.keep, config.seed)
    best = [_row(path, loss, config, times) for path, loss in found[: config.keep]]
    results = {
        "task": config.task,
        "milliseconds": {"outside": times.outside, **times.by_word},
        "checked": checked,
        "judged": len(found),
        "best": best,
        "random": [_row(path, judge(path), config, times) for path in drawn],
        "baseline": _row((0,) * config.depth, judge((0,) * config.depth), config, times),
    }
    write_json(run.folder / "search.json", results)
    first = best[0]
    return {
        "summary": f"{first['pattern']}: {first['milliseconds']:.2f} ms for {config.task}, "
        f"{first['supernet_loss']:.3f} nats per token in the supernet, the best of "
        f"{len(found)} patterns",
        "time_error": checked["mean_error"],
        "best": [row["pattern"] for row in best],
    }


def _check(config: SearchArchitectureConfig) -> None:
    from lmworks.models.config.patterns import words_of

    for word in config.words:
        if len(words_of(word)) != 1:
            raise UserError(f"words: {word!r} is a pattern of several layers; give single words")
    if len(set(config.words)) < 2 or len(set(config.words)) != len(config.words):
        raise UserError("words: a search needs two kinds of layers at least, each once")
    for name in ("most_time", "keep", "generations", "depth"):
        if getattr(config, name) <= 0:
            raise UserError(f"{name} = {getattr(config, name)}: it must be above 0")


def _sizes(config: SearchArchitectureConfig) -> Sizes:
    from lmworks.training.pretrain import sizes_of

    return sizes_of(_pretrain_config(config))


def _pretrain_config(config: SearchArchitectureConfig) -> PretrainConfig:
    return PretrainConfig(
        corpus=config.corpus,
        tokenizer=config.tokenizer,
        depth=config.depth,
        context_length=config.context_length,
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        seed=config.seed,
        shape=config.shape,
        loop=config.loop,
        checkpoint_every_s=config.checkpoint_every_s,
    )


def check_times(
    times: LayerTimes, config: SearchArchitectureConfig, vocab_size: int, sizes: Sizes
) -> dict[str, Any]:
    """How far the sum of layers is from whole models of some patterns drawn at random."""
    from lmworks.models.config.patterns import decoder_config
    from lmworks.training.layer_times import median_times, runner

    paths = draw(len(config.words), config.depth, lambda path: True, _CHECKED, config.seed + 1)
    patterns = [_pattern(path, config) for path in paths]
    runs = {
        pattern: runner(
            decoder_config(pattern, depth=config.depth, vocab_size=vocab_size, sizes=sizes),
            config.task,
        )
        for pattern in patterns
    }
    measured = median_times(runs)
    predicted = {pattern: times.predict(pattern.split(",")) for pattern in patterns}
    errors = [abs(predicted[pattern] / ms - 1) for pattern, ms in measured.items()]
    rows = [
        {"pattern": pattern, "measured_ms": ms, "predicted_ms": predicted[pattern]}
        for pattern, ms in measured.items()
    ]
    return {"mean_error": sum(errors) / len(errors), "models": rows}


def budget(
    times: LayerTimes, config: SearchArchitectureConfig, vocab_size: int, sizes: Sizes
) -> Callable[[Layers], bool]:
    """Whether a pattern keeps to the time and the memory. Raises: UserError if none does."""
    from lmworks.models.compute import compute
    from lmworks.models.config.patterns import decoder_config

    def bytes_of(word: str) -> float:
        cost = compute(decoder_config(word, depth=1, vocab_size=vocab_size, sizes=sizes))
        return cost.cache_bytes_per_token * config.context_length + cost.state_bytes

    memory = [bytes_of(word) for word in config.words]
    milliseconds = [times.by_word[word] for word in config.words]
    most_ms = config.most_time * times.predict([config.words[0]] * config.depth) - times.outside
    most_bytes = config.most_memory * memory[0] * config.depth or float("inf")

    def fits(path: Layers) -> bool:
        return (
            sum(milliseconds[i] for i in path) <= most_ms + 1e-9
            and sum(memory[i] for i in path) <= most_bytes
        )

    if not any(fits((i,) * config.depth) for i in range(len(config.words))):
        raise UserError(
            "no pattern of one word keeps to the budget: raise most_time or most_memory, or add "
            "a cheaper word"
        )
    return fits


def _train(
    config: SearchArchitectureConfig, run: Run, tokenizer: Any, sizes: Sizes
) -> Callable[[Layers], float]:
    """Train the supernet; what is given back is the held-out loss of a path, nats per token."""
    import torch

    from lmworks.training.batches import Batch
    from lmworks.training.objectives.causal import causal
    from lmworks.training.pretrain import cached_stream
    from lmworks.training.supernet import Supernet
    from lmworks.training.tokens import PackedWindows, leading_windows
    from lmworks.training.trainer import Trainer

    tokens = cached_stream(run.inputs["corpus"] / "train.jsonl", tokenizer, run.work)
    heldout = cached_stream(run.inputs["corpus"] / "heldout.jsonl", tokenizer, run.work)
    length = config.context_length
    windows = PackedWindows(
        tokens, context_length=length, batch_size=config.batch_size, seed=config.seed
    )
    supernet = Supernet(
        config.words,
        depth=config.depth,
        vocab_size=tokenizer.vocab_size,
        sizes=sizes,
        seed=config.seed,
    )

    def batches(step: int) -> Batch:
        supernet.take(supernet.drawn(step, config.seed))
        return windows(step)

    Trainer(
        supernet.model,
        causal,
        batches,
        config.loop,
        num_steps=config.num_steps,
        work=run.work,
        checkpoint_every_s=config.checkpoint_every_s,
    ).fit("training the supernet")
    looked = leading_windows(heldout, context_length=length, count=_WINDOWS)
    if not looked:
        raise UserError(f"the held-out text is shorter than one window of {length} tokens")
    known: dict[Layers, float] = {}

    def judge(path: Layers) -> float:
        if path not in known:
            supernet.take(path)
            with torch.inference_mode():
                losses = [causal(supernet.model, batch).value.item() for batch in looked]
            known[path] = sum(losses) / len(losses)
        return known[path]

    return judge


def breed(
    num_words: int,
    depth: int,
    fits: Callable[[Layers], bool],
    judge: Callable[[Layers], float],
    config: SearchArchitectureConfig,
) -> list[tuple[Layers, float]]:
    """All patterns that were judged, the best first.

    Where there are no more patterns than would be bred, all are judged instead.
    """
    import numpy as np

    from lmworks.core.progress import track

    if num_words**depth <= _POPULATION * config.generations:
        every = [p for p in itertools.product(range(num_words), repeat=depth) if fits(p)]
        with track("judging patterns", total=len(every)) as bar:
            judged = {}
            for path in every:
                judged[path] = judge(path)
                bar.advance()
        return sorted(judged.items(), key=lambda item: item[1])
    random = np.random.default_rng(config.seed)
    seen: dict[Layers, float] = {}
    population = draw(num_words, depth, fits, _POPULATION, config.seed + 2)
    with track("breeding patterns", total=_POPULATION * config.generations) as bar:
        for _ in range(config.generations):
            for path in population:
                seen.setdefault(path, judge(path))
                bar.advance(loss=min(seen.values()))
            parents = [p for p, _ in sorted(seen.items(), key=lambda i: i[1])[:_PARENTS]]
            population = _children(parents, num_words, fits, seen, random)
    return sorted(seen.items(), key=lambda item: item[1])


def _children(
    parents: list[Layers],
    num_words: int,
    fits: Callable[[Layers], bool],
    seen: dict[Layers, float],
    random: np.random.Generator,
) -> list[Layers]:
    """Patterns not seen before: half crossed from two parents, half one parent with changes."""
    children: list[Layers] = []
    for attempt in range(50 * _POPULATION):
        if len(children) == _POPULATION:
            break
        first, second = (parents[int(random.integers(len(parents)))] for _ in range(2))
        if attempt % 2:
            child = tuple(a if random.random() < 0.5 else b for a, b in zip(first, second))
        else:
            child = tuple(
                int(random.integers(num_words)) if random.random() < 0.3 else a for a in first
            )
        if child not in seen and child not in children and fits(child):
            children.append(child)
    return children


def draw(
    num_words: int, depth: int, fits: Callable[[Layers], bool], count: int, seed: int
) -> list[Layers]:
    """Up to `count` different patterns drawn at random among those that fit."""
    import numpy as np

    random = np.random.default_rng([seed, 77])
    found: list[Layers] = []
    for _ in range(200 * count):
        path = tuple(int(i) for i in random.integers(0, num_words, depth))
        if path not in found and fits(path):
            found.append(path)
        if len(found) == count:
            break
    return found


def _pattern(path: Layers, config: SearchArchitectureConfig) -> str:
    return ",".join(config.words[i] for i in path)


def _row(
    path: Layers, loss: float, config: SearchArchitectureConfig, times: LayerTimes
) -> dict[str, Any]:
    words = [config.words[i] for i in path]
    return {
        "pattern": ",".join(words),
        "supernet_loss": loss,
        "milliseconds": times.predict(words),
    }
