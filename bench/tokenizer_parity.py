"""Ids and offsets against the tools that define them, on real vocabularies, real and hostile text.

    python bench/tokenizer_parity.py                       # all vocabularies; an hour
    python bench/tokenizer_parity.py --vocabularies bert --strings 10000 --megabytes 1

For each vocabulary: real text in documents of 4,000 characters (prose in many languages, code,
CJK, Arabic script, emoji), then generated strings: random Unicode, broken UTF-8, runs of spaces,
digits and marks, pieces of special tokens. Ids are compared on all, through the kernels and, on a
part, through the readable path; offsets on a part. Every difference is counted, none is excused.
Where the tool can't take a string (a lone surrogate) it is left out of the count.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import real

from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.tokenizer import PipelineTokenizer

Ids = list[int]
Spans = list[tuple[int, int]]
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


def _oracle(path: Path, tool: str) -> Callable[[str], tuple[Ids, Spans | None]]:
    if tool == "tokenizers":
        return _by_tokenizers(path)
    return _by_tiktoken(path) if tool == "tiktoken" else _by_sentencepiece(path)


def _by_tokenizers(path: Path) -> Callable[[str], tuple[Ids, Spans | None]]:
    from tokenizers import Tokenizer

    theirs = Tokenizer.from_file(str(path))
    theirs.no_truncation()
    theirs.no_padding()
    theirs.encode_special_tokens = True  # the text of special tokens is text, as for `encode`

    def encode(text: str) -> tuple[Ids, Spans | None]:
        found = theirs.encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    return encode


def _by_tiktoken(path: Path) -> Callable[[str], tuple[Ids, Spans | None]]:
    import tiktoken

    from lmworks.tokenizers.patterns import PATTERNS
    from lmworks.tokenizers.tiktoken import ENCODINGS

    name, special = ENCODINGS[path.stem]
    lines = (line.split() for line in path.read_text().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    theirs = tiktoken.Encoding(
        path.stem, pat_str=PATTERNS[name][0], mergeable_ranks=ranks, special_tokens=special
    )

    def encode(text: str) -> tuple[Ids, Spans | None]:
        ids = theirs.encode_ordinary(text)
        decoded, starts = theirs.decode_with_offsets(ids)
        # tiktoken tells where tokens start; where they end is not said.
        return ids, [(start, -1) for start in starts] if decoded == text else None

    return encode


def _by_sentencepiece(path: Path) -> Callable[[str], tuple[Ids, Spans | None]]:
    import sentencepiece

    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))

    def encode(text: str) -> tuple[Ids, Spans | None]:
        return theirs.encode(text), _spans(theirs, text)

    return encode


def _spans(theirs: Any, text: str) -> Spans | None:
    """In characters; of the bytes of one character SentencePiece gives the span to the last."""
    pieces = theirs.encode(text, return_type="proto").pieces
    places, at = {0: 0}, 0
    for number, character in enumerate(text, 1):
        at += len(character.encode())
        places[at] = number
    spans = [(places.get(p.begin, -9), places.get(p.end, -9)) for p in pieces]
    for i in range(len(pieces) - 1, 0, -1):
        if theirs.is_byte(pieces[i - 1].id) and spans[i - 1][0] == spans[i - 1][1] == spans[i][0]:
            spans[i - 1] = spans[i]
    return spans


def _same_spans(ours: PipelineTokenizer, text: str, expected: Spans) -> bool:
    part = ours.encoding(text, add_special_tokens=False, allow_special=False)
    if expected and expected[0][1] == -1:
        return [start for start, _ in part.offsets] == [start for start, _ in expected]
    return part.offsets == expected


def compare(name: str, path: Path, tool: str, texts: list[str], strings: int) -> dict[str, Any]:
    """Differences in ids and offsets."""
    ours, theirs = load_tokenizer(path), _oracle(path, tool)
    ours.kernels()
    counts = dict.fromkeys(("texts", "bytes", "ids", "readable_ids", "offsets", "offsets_seen"), 0)
    examples: list[str] = []
    started = time.perf_counter()
    for number, text in enumerate([*texts, *generated(strings)]):
        try:
            ids, spans = theirs(text)
        except Exception:  # what their tool can't take
            continue
        counts["texts"] += 1
        counts["bytes"] += len(text.encode())
        if ours.encode_array(text).tolist() != ids:
            counts["ids"] += 1
            examples.append(text[:80])
        if number % 10 == 0:
            counts["readable_ids"] += ours.encode_readable(text) != ids
            if spans is not None:
                counts["offsets_seen"] += 1
                if not _same_spans(ours, text, spans):
                    counts["offsets"] += 1
                    examples.append(text[:80])
    print(
        f"{name:16} {tool:14} {counts['texts']:>9,} texts {counts['bytes'] / 1e6:6.1f} MB: "
        f"{counts['ids']} differ in ids, {counts['readable_ids']} by the readable path, "
        f"{counts['offsets']} of {counts['offsets_seen']:,} in offsets "
        f"({time.perf_counter() - started:.0f} s)",
        flush=True,
    )
    for example in examples[:3]:
        print("    ", ascii(example))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--vocabularies", nargs="+", default=None)
    parser.add_argument("--strings", type=int, default=1_000_000)
    parser.add_argument("--megabytes", type=float, default=50)
    options = parser.parse_args()
    found = real.vocabularies()
    texts = documents(options.megabytes)
    results = {
        name: compare(name, *found[name], texts, options.strings)
        for name in options.vocabularies or found
        if name in found
    }
    target = Path(__file__).parent / "results" / "tokenizer_parity.json"
    if options.vocabularies is None:
        target.write_text(json.dumps(results, indent=1) + "\n")


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
