"""Ids and offsets against the tools that define them, on real vocabularies, real and hostile text.

    python bench/tokenizer_parity.py                       # all vocabularies, one after the other
    python bench/tokenizer_parity.py --shard 1/2           # every second one
    python bench/tokenizer_parity.py --vocabularies bert --strings 10000 --megabytes 1

For each vocabulary: real text in documents of 4,000 characters (prose in many languages, code,
CJK, Arabic script, emoji), then generated strings: random Unicode, broken UTF-8, runs of spaces,
digits and marks, pieces of special tokens. Ids are compared on all, through the kernels and, on a
part, through the readable path; offsets on a part. Every difference is counted, none is excused.
Where the tool can't take a string (a lone surrogate) it is left out of the count.

Byte-level vocabularies with all 256 bytes are also given bytes that are no UTF-8: whatever comes
in must come out. tiktoken's own way with such bytes is compared where it has one.

A result is kept as soon as it is there; what was measured with this very code is not measured
again.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import random
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import real
from oracles import Ids, Oracle, Spans, Tiktoken, oracle

import lmworks
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.tokenizer import PipelineTokenizer

RESULTS = Path(__file__).parent / "results" / "tokenizer_parity.json"
_AT_ONCE = 2000  # texts
_PART = 40  # of so many texts one goes through the readable path and is asked for offsets
_PLANES: list[Callable[[random.Random], int]] = [
    lambda draw: draw.randrange(32, 127),
    lambda draw: draw.randrange(0x20, 0xD800),
    lambda draw: draw.randrange(0xE000, 0x110000),
    lambda draw: draw.randrange(0x1F300, 0x1F700),
    lambda draw: draw.randrange(0x300, 0x370),
    lambda draw: draw.randrange(0x600, 0x700),
]
_PARTS = (
    " ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "ſ", "12", "3.14", "²³", "a", "É", "e\u0301", "ß", "▁",
    "你好", "各", "العربية", "हिन्दी", "👩‍👩‍👧", "🇩🇪", "<s>", "</s>", "<|endoftext|>", "[CLS]", "<unk>",
    "\u00a0", "\u200b", "\ufeff", "\ufffd", "##", "İ", "Σ", "ﬁ", "각", "\u1100\u1161", "_", "-", "...",
)  # fmt: skip


def generated(count: int) -> Iterator[str]:
    """Hostile strings, the same ones each time."""
    draw = random.Random(11)
    for _ in range(count):
        kind = draw.randrange(4)
        if kind == 0:
            size = draw.randrange(1, 16)
            yield "".join(chr(draw.choice(_PLANES)(draw)) for _ in range(size))
        elif kind == 1:
            yield draw.randbytes(draw.randrange(1, 30)).decode("utf-8", "replace")
        else:
            yield "".join(draw.choices(_PARTS, k=draw.randrange(1, 14)))


def _same_spans(ours: PipelineTokenizer, text: str, expected: Spans) -> bool:
    part = ours.encoding(text, add_special_tokens=False, allow_special=False)
    if expected and expected[0][1] == -1:
        return [start for start, _ in part.offsets] == [start for start, _ in expected]
    return part.offsets == expected


class Comparison:
    """Differences between ours and theirs, counted."""

    def __init__(self, ours: PipelineTokenizer, theirs: Oracle) -> None:
        self.ours, self.theirs = ours, theirs
        names = (
            "texts",
            "bytes",
            "ids",
            "readable_seen",
            "readable_ids",
            "offsets_seen",
            "offsets",
        )
        self.counts: dict[str, Any] = dict.fromkeys(names, 0)
        self.examples: list[str] = []

    def texts(self, texts: list[str]) -> None:
        """Ids of all of them, offsets and the readable path of a part."""
        known = [text for text in texts if not _has_surrogate(text)]
        found = self.ours.encode_batch(known)
        for number, (text, ids, expected) in enumerate(zip(known, found, self.theirs.ids(known))):
            if expected is None:
                continue
            self.counts["texts"] += 1
            self.counts["bytes"] += len(text.encode())
            self._count("ids", text, ids == expected)
            if number % _PART == 0:
                self._closely(text, expected)

    def _closely(self, text: str, expected: Ids) -> None:
        self.counts["readable_seen"] += 1
        self._count("readable_ids", text, self.ours.encode_readable(text) == expected)
        spans = self.theirs.spans(text)
        if spans is not None:
            self.counts["offsets_seen"] += 1
            self._count("offsets", text, _same_spans(self.ours, text, spans))

    def _count(self, what: str, text: str, same: bool) -> None:
        if not same:
            self.counts[what] += 1
            if len(self.examples) < 5:
                self.examples.append(f"{what}: {text[:80]!a}")

    def broken(self, count: int) -> None:
        """Bytes that are no UTF-8: back as they were, and as tiktoken has them."""
        model = self.ours.vocabulary.model
        if not self.ours.byte_level or None in getattr(model, "byte_ids", (None,)):
            return
        if self.ours.vocabulary.normalizer is not None or getattr(model, "end_of_word_suffix", ""):
            return
        self.counts |= {"broken": 0, "broken_back": 0, "cut": 0, "cut_ids": 0}
        for data in broken(count):
            ids = self.ours.encode(data)
            self.counts["broken"] += 1
            back = self.ours.decode_bytes(ids) == data
            self._count("broken_back", f"{data!r}", back)
            if isinstance(self.theirs, Tiktoken) and _is_cut(data):
                self.counts["cut"] += 1
                self._count("cut_ids", f"{data!r}", self.theirs.theirs._encode_bytes(data) == ids)


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)


def _is_cut(data: bytes) -> bool:
    """Whether it is UTF-8 but for its last bytes, the beginning of a character."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False


def broken(count: int) -> Iterator[bytes]:
    """Random bytes, text with flipped bytes, text cut inside a character; the same each time."""
    draw = random.Random(13)
    text = "".join(_PARTS).encode()
    for number in range(count):
        at = draw.randrange(len(text))
        part = bytearray(text[at : at + draw.randrange(1, 60)])
        if number % 3 == 0:
            yield draw.randbytes(draw.randrange(1, 40))
        elif number % 3 == 1:
            for _ in range(draw.randrange(1, 4)):
                part[draw.randrange(len(part))] = draw.randrange(256)
            yield bytes(part)
        else:
            whole = "".join(draw.choices(_PARTS, k=4)).encode()
            yield whole + "日🙂é".encode()[: draw.choice((1, 2, 4, 5, 6, 8))]


def compare(
    name: str, found: dict[str, tuple[Path, str]], texts: list[str], strings: int
) -> dict[str, Any]:
    """Differences in ids and offsets."""
    path, tool = found[name]
    started = time.perf_counter()
    ours = load_tokenizer(path)
    ours.kernels()
    comparison = Comparison(ours, oracle(path, tool, found))
    for some in _batches(texts, strings):
        comparison.texts(some)
    comparison.broken(strings // 10)
    counts = comparison.counts | {"tool": tool, "seconds": round(time.perf_counter() - started)}
    counts["examples"] = comparison.examples
    print(_line(name, counts), flush=True)
    for example in comparison.examples:
        print("    ", example)
    return counts


def _line(name: str, counts: dict[str, Any]) -> str:
    line = (
        f"{name:16} {counts['tool']:20} {counts['texts']:>9,} texts {counts['bytes'] / 1e6:6.1f} MB: "
        f"{counts['ids']} differ in ids, {counts['readable_ids']} of {counts['readable_seen']:,} by "
        f"the readable path, {counts['offsets']} of {counts['offsets_seen']:,} in offsets"
    )
    if "broken" in counts:
        line += f", {counts['broken_back']} of {counts['broken']:,} broken don't come back"
    if counts.get("cut"):
        line += f", {counts['cut_ids']} of {counts['cut']:,} cut ones differ"
    return f"{line} ({counts['seconds']} s)"


def _batches(texts: list[str], strings: int) -> Iterator[list[str]]:
    for at in range(0, len(texts), 200):
        yield texts[at : at + 200]
    some = []
    for text in generated(strings):
        some.append(text)
        if len(some) == _AT_ONCE:
            yield some
            some = []
    yield some


def code_hash(strings: int, megabytes: float) -> str:
    """Of all that a result depends on."""
    package = Path(lmworks.__file__).parent
    files = [*(package / "tokenizers").rglob("*.py"), package / "core" / "compiled.py"]
    files += [Path(__file__), Path(__file__).with_name("oracles.py")]
    digest = hashlib.sha256(f"{strings} {megabytes}".encode())
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def kept() -> dict[str, Any]:
    """The results so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}  # type: ignore[no-any-return]


def keep(name: str, result: dict[str, Any]) -> None:
    """Put a result in the file, beside those that other shards put there."""
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        results = kept() | {name: result}
        whole = json.dumps(dict(sorted(results.items())), indent=1) + "\n"
        temporary = RESULTS.with_suffix(".tmp")
        temporary.write_text(whole)
        temporary.replace(RESULTS)
    RESULTS.with_suffix(".lock").unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--vocabularies", nargs="+", default=None)
    parser.add_argument("--shard", default="1/1", help="this part of so many, as 1/2")
    parser.add_argument("--strings", type=int, default=1_000_000)
    parser.add_argument("--megabytes", type=float, default=50)
    options = parser.parse_args()
    part, parts = map(int, options.shard.split("/"))
    found = real.vocabularies()
    texts = documents(options.megabytes)
    code = code_hash(options.strings, options.megabytes)
    for name in options.vocabularies or sorted(found)[part - 1 :: parts]:
        if kept().get(name, {}).get("code") == code:
            print(f"{name:16} is there already")
            continue
        try:
            result = compare(name, found, texts, options.strings)
        except ImportError as error:
            print(f"{name:16} can't be compared: {error}")
            continue
        keep(name, result | {"code": code})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{peak:.1f} GB at most, {os.cpu_count()} cores")


def documents(megabytes: float) -> list[str]:
    """Documents of 4,000 characters, an even share of every kind of text as far as it goes."""
    kinds = [
        [text[at : at + 4000] for at in range(0, len(text), 4000)]
        for text in real.texts(40_000_000).values()
    ]
    found, size = [], 0.0
    for number in range(max(map(len, kinds))):
        for kind in kinds:
            if number < len(kind) and size < megabytes * 1e6:
                found.append(kind[number])
                size += len(kind[number].encode())
    return found


if __name__ == "__main__":
    main()
