"""Memory and time of training on text larger than the memory one wants to give it.

    python bench/tokenizer_memory.py --megabytes 500
    python bench/tokenizer_memory.py --megabytes 5000 --model unigram

Text is generated: words of a Zipf distribution over a vocabulary of made-up words, and one in
fifty a word that never comes again, since it is new words that fill a counter's memory. It is
written to a file, and a process of its own trains on that; its peak of resident memory and its
seconds are printed, the hash of the input and the measuring of the result included.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

_WORDS = 300_000
_AT_ONCE = 400_000
RESULTS = Path(__file__).parent / "results"


def write_text(path: Path, num_bytes: int, seed: int = 0) -> None:
    """Lines of words until there are so many bytes; the same for the same seed."""
    draw = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxzäöüéñç"))
    share = 1 / np.arange(2, len(letters) + 2)
    share /= share.sum()
    words = _words(draw, letters, share, _WORDS)
    weights = 1 / np.arange(1, _WORDS + 1)
    edges = np.cumsum(weights / weights.sum())
    written = 0
    with open(path, "w", encoding="utf-8") as file:
        while written < num_bytes:
            chosen = [words[i] for i in np.searchsorted(edges, draw.random(_AT_ONCE))]
            new = _words(draw, letters, share, _AT_ONCE // 50)
            for place, word in zip(draw.integers(0, _AT_ONCE, len(new)), new):
                chosen[place] = word
            lines = (" ".join(chosen[at : at + 12]) for at in range(0, _AT_ONCE, 12))
            text = ".\n".join(lines) + ".\n"
            file.write(text)
            written += len(text.encode())


def _words(draw: Any, letters: Any, share: Any, number: int) -> list[str]:
    sizes = draw.integers(2, 13, number)
    characters = "".join(draw.choice(letters, int(sizes.sum()), p=share))
    ends = np.cumsum(sizes)
    return [characters[end - size : end] for end, size in zip(ends, sizes)]


def work(corpus: str, out: str, model: str, vocab_size: int) -> dict[str, Any]:
    """Train in this process."""
    from lmworks.tokenizers.train import TrainTokenizerConfig, train_tokenizer

    started = time.perf_counter()
    config = TrainTokenizerConfig(corpus=corpus, model=model, vocab_size=vocab_size)  # type: ignore[arg-type]
    made = train_tokenizer(config, out)
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        **made.metrics,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--model", default="bpe")
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--folder", help="where the text is put for a while")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(*options.work, options.model, options.vocab_size)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        corpus = Path(folder) / "text.txt"
        started = time.perf_counter()
        write_text(corpus, options.megabytes * 10**6)
        size = corpus.stat().st_size / 1e6
        print(f"{size:.0f} MB written in {time.perf_counter() - started:.0f} s", flush=True)
        settings = ["--model", options.model, "--vocab-size", str(options.vocab_size)]
        command = [sys.executable, __file__, *settings]
        done = subprocess.run(
            [*command, "--work", str(corpus), str(Path(folder) / "out")],
            check=True,
            capture_output=True,
            text=True,
        )
    found = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{options.model}, {options.vocab_size:,} entries: {found['seconds']} s "
        f"({size / found['seconds']:.0f} MB/s), peak {found['peak_rss_mb']} MB"
    )
    RESULTS.mkdir(exist_ok=True)
    claim = f"tokenizer_memory_{options.model}_{options.megabytes}mb"
    name = f"{claim}_{platform.machine()}_{time.strftime('%Y%m')}.json"
    record = {
        "claim": claim,
        "command": " ".join(["python", "bench/tokenizer_memory.py", *sys.argv[1:]]),
        "machine": platform.processor() or platform.machine(),
        "megabytes": size,
        **found,
    }
    (RESULTS / name).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
