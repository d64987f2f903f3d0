"""SmolLM2-135M out of one GGUF file: our engine, transformers and llama.cpp, in turns.

    python bench/inference.py                 # some minutes, on a machine with nothing else to do
    python bench/inference.py --rounds 1 --streams 1 8 --without bf16      # a first look

Each answers the same token ids greedily with the same number of threads. Generation counts the
whole time from the first request to the last token, prompts of 32 tokens and queues included.
Peak memory is that of a process that does nothing else. llama.cpp comes as the package xllamacpp,
whose wheel is built for AVX2 (its line of features is printed and kept): a build of one's own for
a newer processor is faster.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pairs import compared, keep

from lmworks.core.gguf import find_gguf
from lmworks.core.references import resolve

PROMPT, NEW = 32, 64  # of a stream
LONG = 512  # tokens of the prompt that is read alone
SHARED, SHARERS = 1000, 8
VOCAB = 49152
CONTESTANTS = ("lmworks", "fp32", "bf16", "llama.cpp")


def prompts(count: int, length: int, seed: int) -> list[list[int]]:
    """Ids that no chat format uses."""
    random = np.random.default_rng(seed)
    return random.integers(100, VOCAB, (count, length)).tolist()


class Ours:
    """The engine over packed weights."""

    def __init__(self, most: int, threads: int) -> None:
        from lmworks.inference import engine
        from lmworks.models.load import load_model
        from lmworks.tokenizers.load import load_tokenizer

        torch.set_num_threads(threads)
        self.model = load_model("smollm2-135m", packed=True)
        tokenizer = load_tokenizer("smollm2-135m")
        engine.end_token_ids = lambda tokenizer: frozenset()  # all answers are of one length
        self.engine = engine.Engine(self.model, tokenizer, max_batch=most, max_positions=1536)

    def generate(self, ids: Sequence[Sequence[int]], new: int) -> float:
        """Seconds until the first token of the first answer; returns when all are there."""
        from lmworks.inference.sampling import Sampling

        started = time.perf_counter()
        sampling = Sampling(max_tokens=new, temperature=0)
        streams = [self.engine.submit(one, sampling) for one in ids]
        first = 0.0
        for stream in streams:
            count = 0
            for _ in stream:
                count += 1
                first = first or time.perf_counter() - started
            assert count == new
        return first

    def close(self) -> None:
        self.engine.close()


class Transformers:
    """`generate` over dequantised weights, one batch."""

    def __init__(self, threads: int, dtype: torch.dtype) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        folder = resolve("smollm2-135m").path
        gguf = find_gguf(folder)
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, gguf_file=gguf.name
        ).eval()

    def generate(self, ids: Sequence[Sequence[int]], new: int) -> float:
        """As `Ours.generate`; the time of the first token is told for answers of one alone."""
        started = time.perf_counter()
        rows = torch.tensor(ids)
        with torch.inference_mode():
            out = self.model.generate(
                rows,
                attention_mask=torch.ones_like(rows),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )
        assert out.shape[1] == rows.shape[1] + new
        return time.perf_counter() - started if new == 1 else 0.0

    def close(self) -> None:
        del self.model


class LlamaCpp:
    """The server of llama.cpp, called without HTTP."""

    def __init__(self, most: int, threads: int) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(find_gguf(resolve("smollm2-135m").path))
        params.n_parallel, params.n_ctx = most, 1536 * most if most < 8 else 256 * most
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.warmup, params.verbosity, params.cache_ram_mib = True, -1, 0
        self.server = xllamacpp.Server(params)
        self.features = xllamacpp.get_system_info()

    def generate(self, ids: Sequence[Sequence[int]], new: int) -> float:
        """As `Ours.generate`."""
        counts: list[int] = []

        def ask(prompt: Sequence[int]) -> None:
            body = {
                "prompt": list(prompt),
                "n_predict": new,
                "temperature": 0.0,
                "ignore_eos": True,
                "cache_prompt": False,
                "samplers": ["top_k"],
                "top_k": 1,
            }
            answer = self.server.handle_completions(body)
            counts.append(answer["usage"]["completion_tokens"])

        started = time.perf_counter()
        threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in ids]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counts == [new] * len(ids)
        return time.perf_counter() - started if new == 1 else 0.0

    def close(self) -> None:
        del self.server


def contestant(name: str, most: int, threads: int) -> Any:
    """Ready to answer `most` at once."""
    if name == "lmworks":
        return Ours(most, threads)
    if name == "llama.cpp":
        return LlamaCpp(most, threads)
    return Transformers(threads, {"fp32": torch.float32, "bf16": torch.bfloat16}[name])


def in_turns(
    rivals: dict[str, Any], rounds: int, work: Callable[[Any, int], object]
) -> dict[str, list[float]]:
    """Seconds of each round; an unmeasured one comes first."""
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for round_ in range(rounds + 1):
        for name, rival in rivals.items():
            started = time.perf_counter()
            work(rival, round_)
            if round_ > 0:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def bandwidth(threads: int) -> float:
    """Bytes a second that a sum over a large array reads, the best of seven."""
    torch.set_num_threads(threads)
    array = torch.from_numpy(np.ones(64 * 2**20, dtype=np.float32))
    best = float("inf")
    for _ in range(7):
        started = time.perf_counter()
        array.sum()
        best = min(best, time.perf_counter() - started)
    return array.numel() * 4 / best


def prefix_sharing(ours: Ours, rounds: int) -> dict[str, float]:
    """How much sooner prompts are read that begin alike: 1,000 tokens of 1,008."""
    ratios, hits = [], []
    for round_ in range(rounds):
        apart = prompts(SHARERS, SHARED + 8, 1000 + round_)
        (beginning,) = prompts(1, SHARED, 2000 + round_)
        alike = [beginning + end for end in prompts(SHARERS, 8, 3000 + round_)]
        ours.generate(alike[:1], 1)
        found = []
        for ids in (apart, alike):
            started = time.perf_counter()
            ours.generate(ids, 1)
            found.append(time.perf_counter() - started)
        ratios.append(found[0] / found[1])
        hits.append(found[1] / SHARERS)
    print(
        f"{SHARERS} prompts that share {SHARED} tokens: {statistics.median(ratios):.1f} x as fast"
    )
    return {"times_as_fast": statistics.median(ratios), "seconds_each": statistics.median(hits)}


def peak_memory(name: str, streams: int, threads: int) -> int:
    """Bytes, of a process of its own."""
    command = [sys.executable, __file__, "--alone", name, "--threads", str(threads)]
    done = subprocess.run(
        [*command, "--streams", str(streams)], capture_output=True, text=True, check=True
    )
    return int(json.loads(done.stdout.splitlines()[-1])["peak"])


def alone(name: str, streams: int, threads: int) -> None:
    """Answer once and say how much memory that took."""
    rival = contestant(name, streams, threads)
    rival.generate(prompts(streams, PROMPT, 0), NEW)
    # Not `ru_maxrss`, which begins at what the process held that started this one.
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    print(json.dumps({"peak": 1024 * int(found[1]) if found else 0}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--without", nargs="*", choices=CONTESTANTS[1:], default=[])
    parser.add_argument("--alone", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        alone(options.alone, options.streams[0], options.threads)
        return
    names = [name for name in CONTESTANTS if name not in options.without]
    tables: dict[str, Any] = {}
    facts: dict[str, Any] = {"threads": options.threads, "rounds": options.rounds}

    rivals = {name: contestant(name, 1, options.threads) for name in names}
    print(f"a prompt of {LONG} tokens, and its first token")
    seconds = in_turns(
        rivals, options.rounds, lambda r, n: r.generate(prompts(1, LONG, n + 100), 1)
    )
    tables["prompt"] = compared("prompt tokens/s", LONG, seconds)
    facts["ttft_s"] = {name: statistics.median(times) for name, times in seconds.items()}
    for streams in options.streams:
        if streams > 1:
            for name in ("lmworks", "llama.cpp"):
                if name in rivals:
                    rivals.pop(name).close()
                    rivals[name] = contestant(name, streams, options.threads)
            rivals = {name: rivals[name] for name in names}
        print(f"{streams} streams of {PROMPT} + {NEW} tokens")
        seconds = in_turns(
            rivals, options.rounds, lambda r, n, s=streams: r.generate(prompts(s, PROMPT, n), NEW)
        )
        tables[f"{streams} streams"] = compared("tokens/s", streams * NEW, seconds)
    facts["prefix_sharing"] = prefix_sharing(rivals["lmworks"], max(2, options.rounds))

    from lmworks.compression.measure import weight_bytes

    weights, speed = weight_bytes(rivals["lmworks"].model), bandwidth(options.threads)
    facts["bandwidth_gb_s"], facts["weight_bytes"] = speed / 1e9, weights
    facts["limit_tokens_per_s"] = speed / weights
    one = next((rows for name, rows in tables.items() if name == "1 streams"), None)
    if one is not None:
        share = one["lmworks"]["median"] * weights / speed
        facts["share_of_limit"] = share
        print(f"one stream: {share:.0%} of what reading {weights / 1e6:.0f} MB allows")
    if "llama.cpp" in rivals:
        facts["llama.cpp features"] = rivals["llama.cpp"].features
    for rival in rivals.values():
        rival.close()
    facts["peak_bytes"] = {n: peak_memory(n, max(options.streams), options.threads) for n in names}
    for name, size in facts["peak_bytes"].items():
        print(f"{name:28} {size / 1e6:10.0f} MB at most, {max(options.streams)} streams")
    keep("inference", tables=tables, **facts)


if __name__ == "__main__":
    main()
