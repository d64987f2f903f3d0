"""Seconds to learn a Unigram vocabulary, and how short and likely held-out text is with it.

    python bench/unigram_training.py                        # 5 MB, 16,000 pieces, some minutes
    python bench/unigram_training.py --text code --rounds 1 --peers lmworks sentencepiece

Every contestant runs in a process of its own, in turns, on the same lines: white space squeezed,
nothing else normalised, words cut before each space, pieces of up to 16 characters of any kind.
Held-out lines are every tenth block of 50. Tokens and nats are those of the best cuts, ours in all
cases; a character that no piece covers costs 10 nats more than the rarest piece.

`sentencepiece-words` gets the counted words instead of text: the task that `learn_unigram` has.
`sentencepiece-default` keeps scripts and digits apart, as SentencePiece does unless told.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib import metadata, util
from pathlib import Path
from typing import Any

import real

RESULTS = Path(__file__).parent / "results" / "unigram_training.json"
PEERS = ("lmworks", "sentencepiece", "sentencepiece-words", "sentencepiece-default", "tokenizers")
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}
LIMIT_S = 1800


def lines(text: str, size: int) -> tuple[list[str], list[str]]:
    """Lines to learn from, and held-out ones."""
    found = [" ".join(line.split()) for line in real.texts(size)[text].splitlines() if line.strip()]
    held = [bool(i // 50 % 10) for i in range(len(found))]
    return [x for x, h in zip(found, held) if h], [x for x, h in zip(found, held) if not h]


def counted(found: list[str]) -> Any:
    """The words of the lines and their counts."""
    from lmworks.tokenizers.pre_tokenizers import build
    from lmworks.tokenizers.word_counts import count_words

    steps = build(METASPACE)
    return count_words(map(steps.change, found), steps.cuts)


def _lmworks(train: list[str], size: int) -> dict[str, float]:
    from lmworks.tokenizers.trainers.unigram import learn_unigram

    words = counted(train)
    alphabet = sorted({c for word, _ in words.items() for c in word.decode()})
    return dict(zip(*learn_unigram(words, vocab_size=size, required=alphabet)))


def _sentencepiece(train: list[str], size: int, **options: Any) -> dict[str, float]:
    import sentencepiece

    model = io.BytesIO()
    given = {} if "input" in options else {"sentence_iterator": iter(train)}
    settings = {
        "split_by_unicode_script": False,
        "split_by_number": False,
        "normalization_rule_name": "identity",
        "character_coverage": 1.0,
        "max_sentence_length": 1 << 20,
        "num_threads": 2,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        model_writer=model,
        model_type="unigram",
        vocab_size=size + 3,  # <unk>, <s>, </s>
        **(settings | given | options),
    )
    found = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return {found.id_to_piece(i): found.get_score(i) for i in range(3, size + 3)}


def _sentencepiece_words(train: list[str], size: int) -> dict[str, float]:
    with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="utf-8") as file:
        for word, count in counted(train).items():
            file.write(f"{word.decode()}\t{count}\n")
        file.flush()
        return _sentencepiece(
            [],
            size,
            input=file.name,
            input_format="tsv",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
        )


def _sentencepiece_default(train: list[str], size: int) -> dict[str, float]:
    return _sentencepiece(train, size, split_by_unicode_script=True, split_by_number=True)


def _tokenizers(train: list[str], size: int) -> dict[str, float]:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    found = Tokenizer(models.Unigram())
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=size + 1, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    found.train_from_iterator(train, trainer)
    return dict(json.loads(found.to_str())["model"]["vocab"][1:])


def work(peer: str, file: str, vocab_size: str) -> dict[str, Any]:
    """One contestant, measured in this process."""
    train = Path(file).read_text(encoding="utf-8").splitlines()
    learn = globals()["_" + peer.replace("-", "_")]
    base, cpu, started = _peak_mb(), time.process_time(), time.perf_counter()
    pieces = learn(train, int(vocab_size))
    seconds = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    return seconds | {"memory_mb": _peak_mb() - base, "pieces": pieces}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(pieces: Mapping[str, float], words: Any) -> tuple[int, float]:
    """Tokens and nats of the best cuts."""
    from lmworks.tokenizers.unigram import Unigram

    if not pieces:  # out of time
        return 0, 0.0
    model = Unigram(
        tokens=(b"<unk>", *(piece.encode() for piece in pieces)),
        scores=(0.0, *pieces.values()),
        unk_id=0,
    )
    tokens, nats = 0, 0.0
    for word, count in words.items():
        cut = model._best_path(word.decode())  # unknown neighbours one by one
        tokens += count * len(cut)
        nats -= count * sum(model._score(token.id) for token in cut)
    return tokens, nats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--text", default="prose", choices=("english", "prose", "cjk", "code"))
    parser.add_argument("--size", type=int, default=5_000_000, help="characters")
    parser.add_argument("--vocab-size", type=int, default=16_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(*options.work)))
        return
    train, heldout = lines(options.text, options.size)
    _lmworks(["a b"], 99)  # compiles the kernels, once per machine
    rows: dict[str, list[dict[str, Any]]] = {}
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write("\n".join(train))
        file.flush()
        for _ in range(options.rounds):
            for peer in options.peers:
                if util.find_spec(peer.split("-")[0]):
                    found = _in_process(peer, file.name, str(options.vocab_size))
                    rows.setdefault(peer, []).append(found)
    table = _show(rows, counted(heldout))
    result = {
        "command": " ".join(["python", "bench/unigram_training.py", *sys.argv[1:]]),
        "rows": table,
        "megabytes": len("\n".join(train).encode()) / 1e6,
        "rounds": options.rounds,
        "load_average": os.getloadavg(),  # what else ran, at the end
        "versions": {
            name: metadata.version(name)
            for name in ("sentencepiece", "tokenizers", "numba", "numpy")
            if util.find_spec(name)
        },
    }
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    known[f"{options.text}, {options.vocab_size}"] = result
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")


def _in_process(*job: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--work", *job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"seconds": LIMIT_S, "cpu_seconds": LIMIT_S, "memory_mb": 0.0, "pieces": {}}
    if done.returncode:
        raise SystemExit(f"{job[0]}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _show(rows: dict[str, list[dict[str, Any]]], heldout: Any) -> dict[str, Any]:
    table: dict[str, dict[str, Any]] = {}
    print(
        f"{'':22}{'seconds':>8}{'cpu s':>8}{'MB':>6}{'pieces':>8}{'tokens':>9}{'nats':>11}   "
        "times the first's seconds, cpu s, tokens, nats"
    )
    for peer, runs in rows.items():
        middle = {k: statistics.median(run[k] for run in runs) for k in runs[0] if k != "pieces"}
        tokens, nats = measured(runs[0]["pieces"], heldout)
        row = table[peer] = {
            **middle,
            "all_seconds": [run["seconds"] for run in runs],
            **{"pieces": len(runs[0]["pieces"]), "tokens": tokens, "nats": nats},
        }
        first = next(iter(table.values()))
        ratios = (row[key] / first[key] for key in ("seconds", "cpu_seconds", "tokens", "nats"))
        print(
            f"{peer:22}{row['seconds']:8.2f}{row['cpu_seconds']:8.2f}{row['memory_mb']:6.0f}"
            f"{row['pieces']:8}{tokens:9}{nats:11.0f}   "
            + " ".join(f"{ratio:.3f}" for ratio in ratios),
            flush=True,
        )
    return table


if __name__ == "__main__":
    main()
