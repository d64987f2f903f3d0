"""Megabytes a second from text to ids: cold, warm, on two threads; load time, memory, training.

    python bench/tokenizing.py                     # all, some 15 minutes
    python bench/tokenizing.py --only encode --vocabularies cl100k_base --texts english

Every contestant runs in a process of its own, in turns; the figures are medians over rounds. Text
is cut into documents of 10,000 characters, one call each; "cold" is the first pass over them in a
fresh process, "warm" the best of those after it, "batch" one call with all of them on all cores.
Peers are installed by hand: tiktoken, tokenizers, sentencepiece, rustbpe, tokie, gigatoken,
fastokens; those that are missing are left out, and one whose ids differ is marked.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any

import real

RESULTS = Path(__file__).parent / "results"
CASES = {
    "cl100k_base": ("english", "prose", "code", "cjk", "arabic", "emoji"),
    "qwen3": ("english", "code", "cjk"),
    "llama": ("english", "code", "cjk"),
    "gemma3": ("english", "cjk"),
    "t5": ("english", "code"),
    "kyoto": ("english", "cjk"),
    "bert": ("english", "cjk", "arabic"),
}
PEERS = ("lmworks", "tiktoken", "tokenizers", "sentencepiece", "tokie", "gigatoken", "fastokens")
CHARACTERS = 2_000_000

Encode = Callable[[str], Any]
Batch = Callable[[list[str]], Any]


def _lmworks(path: Path) -> tuple[Encode, Batch]:
    from lmworks.tokenizers.load import load_tokenizer

    tokenizer = load_tokenizer(path)
    return tokenizer.encode_array, lambda texts: tokenizer.kernels().encode_batch(texts)


def _tiktoken(path: Path) -> tuple[Encode, Batch]:
    import tiktoken
    from tiktoken.load import load_tiktoken_bpe

    from lmworks.tokenizers.patterns import PATTERNS
    from lmworks.tokenizers.tiktoken import ENCODINGS

    name, special = ENCODINGS[path.stem]
    expression = _CL100K if name == "cl100k" else PATTERNS[name][0]
    found = tiktoken.Encoding(
        path.stem,
        pat_str=expression,
        mergeable_ranks=load_tiktoken_bpe(str(path)),
        special_tokens=special,
    )
    return found.encode_ordinary, lambda texts: found.encode_ordinary_batch(texts, num_threads=2)


# As tiktoken ships it: possessive, and faster there.
_CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|"
    r"\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


def _tokenizers(path: Path) -> tuple[Encode, Batch]:
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(path))
    found.no_truncation()
    found.no_padding()
    return (
        lambda text: found.encode(text, add_special_tokens=False).ids,
        lambda texts: found.encode_batch_fast(texts, add_special_tokens=False),
    )


def _sentencepiece(path: Path) -> tuple[Encode, Batch]:
    import sentencepiece

    found = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return found.encode, lambda texts: found.encode(texts, num_threads=2)


def _tokie(path: Path) -> tuple[Encode, Batch]:
    import tokie

    found = tokie.Tokenizer.from_json(str(_as_json(path)))
    found.no_truncation()
    found.no_padding()
    return (
        lambda text: found.encode(text, add_special_tokens=False).ids,
        lambda texts: found.encode_batch(texts, add_special_tokens=False),
    )


def _gigatoken(path: Path) -> tuple[Encode, Batch]:
    import gigatoken

    if path.suffix in (".json", ".tiktoken"):
        found = gigatoken.Tokenizer.from_json(_as_json(path).read_text())
    else:
        found = gigatoken.Tokenizer.from_sentencepiece(str(path))
    return found.encode, found.encode_batch


def _as_json(path: Path) -> Path:
    """The `tokenizer.json` of a vocabulary, written once, for peers that read nothing else."""
    from lmworks.tokenizers.load import load_tokenizer

    if path.suffix == ".json":
        return path
    folder = real.FOLDER / "converted" / path.stem
    if not (folder / "tokenizer.json").is_file():
        load_tokenizer(path).save(folder)
    return folder / "tokenizer.json"


def _fastokens(path: Path) -> tuple[Encode, Batch]:
    import fastokens

    if path.suffix == ".tiktoken":
        from lmworks.tokenizers.patterns import PATTERNS
        from lmworks.tokenizers.tiktoken import ENCODINGS

        name, special = ENCODINGS[path.stem]
        found = fastokens.Tokenizer.from_tiktoken(str(path), PATTERNS[name][0], special)
    else:
        found = fastokens.Tokenizer.from_file(str(path))
    return (
        lambda text: found.encode(text, add_special_tokens=False),
        lambda texts: found.encode_batch(texts, add_special_tokens=False),
    )


def _ids(found: Any) -> list[int]:
    return [int(i) for i in getattr(found, "ids", found)]


def work(name: str, vocabulary: str, text: str) -> dict[str, Any]:
    """One contestant, measured in this process."""
    path, _ = real.vocabularies()[vocabulary]
    whole = real.texts()[text][:CHARACTERS]
    documents = [whole[at : at + 10_000] for at in range(0, len(whole), 10_000)]
    size = len(whole.encode()) / 1e6
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    encode, batch = globals()[f"_{name}"](path)  # once for the imports of the peer
    del encode, batch
    started = time.perf_counter()
    encode, batch = globals()[f"_{name}"](path)
    loaded = time.perf_counter()
    first = _ids(encode(documents[0]))
    called = time.perf_counter()
    passes = []
    digest = hashlib.sha256()
    for number in range(6):
        begun = time.perf_counter()
        for document in documents:
            encode(document)
        passes.append(size / (time.perf_counter() - begun))
        if passes[0] < 4 and number:
            break
    for document in documents:
        digest.update(repr(_ids(encode(document))).encode())
    batches = []
    for _ in range(3 if passes[0] > 4 else 1):
        begun = time.perf_counter()
        batch(documents)
        batches.append(size / (time.perf_counter() - begun))
    return {
        "load_s": loaded - started,
        "first_call_ms": 1000 * (called - loaded),
        "cold": passes[0],
        "warm": max(passes[1:]),
        "batch": max(batches),
        "memory_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024,
        "ids": digest.hexdigest()[:12],
        "tokens_in_first": len(first),
    }


def encode_cases(
    vocabularies: list[str], texts: list[str]
) -> Iterator[tuple[str, Callable[[int], dict[str, Any]]]]:
    """A name for each case, and what measures it in so many rounds."""
    for vocabulary in vocabularies:
        for text in CASES[vocabulary]:
            if text in texts:
                yield f"{vocabulary}/{text}", functools.partial(encode_case, vocabulary, text)


def encode_case(vocabulary: str, text: str, rounds: int) -> dict[str, Any]:
    """Every contestant on one case, in turns."""
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for peer in PEERS:
            if peer == "lmworks" or util.find_spec(peer):
                one = _in_process(peer, vocabulary, text)
                if one:
                    found.setdefault(peer, []).append(one)
    return _show(f"{vocabulary} / {text}", found)


def _in_process(peer: str, vocabulary: str, text: str) -> dict[str, Any] | None:
    command = [sys.executable, __file__, "--work", peer, vocabulary, text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _show(title: str, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    print(f"\n{title}\n{'':14}{'cold':>8}{'warm':>8}{'batch':>8} MB/s   load s  1st ms   MB  ids")
    ours = found["lmworks"][0]["ids"]
    table = {}
    for peer, rows in found.items():
        row = {
            key: statistics.median(r[key] for r in rows) for key in rows[0] if key not in ("ids",)
        }
        same = "same" if rows[0]["ids"] == ours else "differ"
        table[peer] = row | {"ids": same}
        print(
            f"{peer:14}{row['cold']:8.1f}{row['warm']:8.1f}{row['batch']:8.1f}      "
            f"{row['load_s']:8.2f}{row['first_call_ms']:8.1f}{row['memory_mb']:6.0f}  {same}",
            flush=True,
        )
    return table


TRAINERS = ("lmworks", "rustbpe", "gigatoken", "tokenizers", "sentencepiece")


def train(peer: str, size: int) -> dict[str, Any]:
    """Seconds to learn 32,000 entries of BPE from `size` characters, and the peak of memory.

    Bytes within GPT-2's words, but for SentencePiece, whose symbols are characters within words.
    """
    texts = real.texts(40_000_000)
    whole = (texts["code"] + texts["prose"])[:size]
    documents = [whole[at : at + 10_000] for at in range(0, len(whole), 10_000)]
    del texts
    learn = globals()[f"_train_{peer}"]
    started, cpu = time.perf_counter(), time.process_time()
    learn(documents)
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "megabytes": len(whole.encode()) / 1e6,
    }


def _train_lmworks(documents: list[str]) -> None:
    from lmworks.tokenizers.train import train_bpe

    train_bpe(documents, vocab_size=32_000, pattern="gpt2")


def _train_rustbpe(documents: list[str]) -> None:
    import rustbpe

    from lmworks.tokenizers.patterns import PATTERNS

    rustbpe.Tokenizer().train_from_iterator(documents, 32_000, pattern=PATTERNS["gpt2"][0])


def _train_gigatoken(documents: list[str]) -> None:
    import gigatoken

    gigatoken.train_bpe("".join(documents).encode(), 32_000, special_tokens=[])


def _train_sentencepiece(documents: list[str]) -> None:
    import io

    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in documents for line in text.split("\n") if line),
        model_writer=io.BytesIO(),
        model_type="bpe",
        vocab_size=32_000,
        byte_fallback=True,
        normalization_rule_name="identity",
        num_threads=2,
        minloglevel=2,
    )


def _train_tokenizers(documents: list[str]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    found.train_from_iterator(documents, trainer)


def train_table(rounds: int) -> dict[str, Any]:
    """Every trainer, in turns; medians, and how many times longer than ours each takes."""
    found: dict[str, list[dict[str, Any]]] = {}
    peers = [peer for peer in TRAINERS if peer == "lmworks" or util.find_spec(peer)]
    for peer in peers * rounds:
        command = [sys.executable, __file__, "--train", peer]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        if done.returncode == 0:
            found.setdefault(peer, []).append(json.loads(done.stdout.splitlines()[-1]))
    results = {}
    for peer, rows in found.items():
        row = {key: statistics.median(one[key] for one in rows) for key in rows[0]}
        pairs = zip(rows, found["lmworks"])
        row["times_ours"] = statistics.median(one["seconds"] / our["seconds"] for one, our in pairs)
        results[peer] = row
        print(
            f"training 32,000 entries: {peer:14}{row['seconds']:7.2f} s "
            f"{row['cpu_seconds']:7.2f} s of processors  {row['times_ours']:5.2f} x ours",
            flush=True,
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--only", choices=("encode", "train"))
    parser.add_argument("--vocabularies", nargs="+", default=list(CASES), choices=list(CASES))
    names = sorted({text for texts in CASES.values() for text in texts})
    parser.add_argument("--texts", nargs="+", default=names, choices=names)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--train", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(*options.work)))
        return
    if options.train:
        print(json.dumps(train(options.train, 20_000_000)))
        return
    for part, cases in (
        ("encode", encode_cases(options.vocabularies, options.texts)),
        ("train", [("train", train_table)]),
    ):
        if options.only in (None, part):
            for name, measure in cases:
                keep(part, name, measure(options.rounds))


def keep(part: str, case: str, figures: dict[str, Any]) -> None:
    """Put the figures of one case into the results, beside those that are there."""
    path = RESULTS / "tokenizing.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    found.setdefault(part, {})[case] = figures
    found["versions"] = {
        name: metadata.version(name)
        for name in (*PEERS, "rustbpe", "numba")
        if util.find_spec(name)
    }
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
