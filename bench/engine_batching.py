"""What the engine's batching gives: latency against offered load, and prompts that begin alike.

    python bench/engine_batching.py load     # requests come whether or not it keeps up
    python bench/engine_batching.py prefix   # a shared beginning of 1,000 tokens, with and without
    python bench/engine_batching.py preempt  # throughput when pages are too few

`load` draws arrivals from a Poisson process with a fixed seed, so that all contestants see the same
requests: one at a time (`max_batch=1`) beside batches. Times are of the engine alone, without HTTP.
"""

from __future__ import annotations

import argparse
import random
import statistics
import threading
import time
from collections.abc import Sequence
from typing import Any

from pairs import keep, report, take_turns

from lmworks.core.references import resolve
from lmworks.inference.engine import Engine
from lmworks.inference.sampling import Sampling
from lmworks.models.load import load_language_model
from lmworks.tokenizers.load import load_tokenizer


def load_parts(reference: str) -> tuple[Any, Any]:
    """The model, packed where it can be, and its tokenizer."""
    folder = resolve(reference).path
    assert folder is not None
    return load_language_model(folder, packed=True), load_tokenizer(folder)


def prompt(seed: int, length: int, size: int) -> list[int]:
    """Ids drawn by a seed: what they say does not matter here."""
    generator = random.Random(seed)
    return [generator.randrange(1000, size) for _ in range(length)]


def never_ends(engine: Engine, max_tokens: int) -> Sampling:
    """Greedy, and exactly so many tokens."""
    ends = dict.fromkeys(engine.eos_token_ids, -100.0)
    return Sampling(temperature=0, max_tokens=max_tokens, logit_bias=ends)


class Times:
    """When the tokens of a request came, in seconds after it was due."""

    def __init__(self, due_s: float) -> None:
        self.due_s, self.tokens_s = due_s, list[float]()

    def read(self, stream: Any) -> None:
        """All of a stream."""
        for _ in stream:
            self.tokens_s.append(time.monotonic() - self.due_s)

    @property
    def gaps_s(self) -> list[float]:
        """Between two tokens."""
        return [b - a for a, b in zip(self.tokens_s, self.tokens_s[1:])]


def offered(engine: Engine, rate: float, count: int, lengths: tuple[int, int]) -> list[Times]:
    """`count` requests at `rate` a second, read by a thread each."""
    generator = random.Random(7)
    found, readers, due = [], [], time.monotonic()
    for number in range(count):
        due += generator.expovariate(rate)
        time.sleep(max(0.0, due - time.monotonic()))
        ids = prompt(number, generator.randint(lengths[0] // 2, lengths[0]), engine.vocab_size)
        times = Times(due)
        stream = engine.submit(ids, never_ends(engine, lengths[1]))
        reader = threading.Thread(target=times.read, args=(stream,))
        reader.start()
        found.append(times)
        readers.append(reader)
    for reader in readers:
        reader.join()
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def load(model: Any, tokenizer: Any, arguments: argparse.Namespace) -> None:
    """The curve: p50 and p99 of the first token and of the gaps, at each rate."""
    rows = []
    for rate in arguments.rates:
        for batch in (1, arguments.batch):
            with Engine(model, tokenizer, max_batch=batch, max_positions=512) as engine:
                engine.submit(prompt(0, 8, 5000), never_ends(engine, 2)).__next__()
                started = time.monotonic()
                found = offered(engine, rate, arguments.count, (64, arguments.tokens))
                seconds = time.monotonic() - started
                sizes, total = engine.statistics.batch_size.snapshot()
            first = [times.tokens_s[0] for times in found]
            gaps = [gap for times in found for gap in times.gaps_s]
            row = {
                "rate": rate,
                "max_batch": batch,
                "tokens_per_s": arguments.count * arguments.tokens / seconds,
                "ttft_p50_s": quantile(first, 0.5),
                "ttft_p99_s": quantile(first, 0.99),
                "itl_p50_s": quantile(gaps, 0.5),
                "itl_p99_s": quantile(gaps, 0.99),
                "mean_batch": total / max(sizes[-1], 1),
            }
            rows.append(row)
            print(
                f"{rate:5.2f} requests/s, max_batch {batch:3}: {row['tokens_per_s']:6.1f} tokens/s"
                f", {row['mean_batch']:.1f} in a step; first token p50 {row['ttft_p50_s']:6.2f} s"
                f", p99 {row['ttft_p99_s']:6.2f} s; gap p50 {1000 * row['itl_p50_s']:5.0f} ms"
                f", p99 {1000 * row['itl_p99_s']:5.0f} ms",
                flush=True,
            )
    keep("engine_load", unit="seconds", rows=rows, count=arguments.count, tokens=arguments.tokens)


def prefix(model: Any, tokenizer: Any, arguments: argparse.Namespace) -> None:
    """Time to the first token behind a beginning of 1,000 that was read before, or was not."""
    shared = prompt(1, 1000, tokenizer.vocab_size)
    settings = {"max_batch": 2, "max_positions": 1100}
    numbers = iter(range(10_000))
    with (
        Engine(model, tokenizer, **settings) as knows,
        Engine(model, tokenizer, prefix_tokens=0, **settings) as reads,
    ):

        def first_token(engine: Engine) -> None:
            ids = [*shared, *prompt(next(numbers), 16, tokenizer.vocab_size)]
            list(engine.submit(ids, never_ends(engine, 1)))

        first_token(knows)
        seconds = take_turns(
            {
                "found in the tree": lambda: first_token(knows),
                "read anew": lambda: first_token(reads),
            },
            arguments.rounds,
        )
        cached = knows.statistics.cached_prompt_tokens / knows.statistics.prompt_tokens
    report("engine_prefix", "first tokens/s", 1, seconds, share_cached=cached)
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    print(f"{statistics.median(ratios):.1f} times sooner, {min(ratios):.1f} to {max(ratios):.1f}")


def preempt(model: Any, tokenizer: Any, arguments: argparse.Namespace) -> None:
    """Sixteen requests that need 192 positions each, in a cache for all of them and for fewer."""
    prompts = [prompt(i, 96, tokenizer.vocab_size) for i in range(16)]
    settings = {"max_batch": 16, "max_positions": 192}
    counts = {}
    with (
        Engine(model, tokenizer, **settings) as enough,
        Engine(model, tokenizer, cache_tokens=16 * 96, **settings) as half,
        Engine(model, tokenizer, cache_tokens=16 * 96, prefix_tokens=0, **settings) as anew,
    ):

        def run(name: str, engine: Engine) -> None:
            if engine.prefixes is not None:
                engine.prefixes.forget()  # between rounds nothing runs
            streams = [engine.submit(ids, never_ends(engine, arguments.tokens)) for ids in prompts]
            for stream in streams:
                list(stream)
            counts[name] = engine.statistics.preemptions

        engines = {"pages enough": enough, "half of them": half, "half, no tree": anew}
        seconds = take_turns(
            {name: (lambda n=name, e=engine: run(n, e)) for name, engine in engines.items()},
            arguments.rounds,
        )
    report("engine_preempt", "tokens/s", 16 * arguments.tokens, seconds, preemptions=counts)


def main() -> None:
    """Run what is named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["load", "prefix", "preempt"])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.25, 0.5, 1.0, 2.0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--count", type=int, default=24, help="requests at each rate")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    run = {"load": load, "prefix": prefix, "preempt": preempt}[arguments.what]
    run(*load_parts(arguments.model), arguments)


if __name__ == "__main__":
    main()
