"""Stage `train_tokenizer`: byte-level BPE learnt from text.

The same merges as Hugging Face's trainer, ties included: the most frequent pair first, of equals
the one with the smaller ids, where special tokens come first and the byte alphabet after them in
the order of its characters. Counts are kept up to date merge by merge, so the cost follows the
words that a merge touches, not the corpus.

Source: Sennrich et al. 2016, arXiv 1508.07909, algorithm 1.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.progress import track
from lmworks.core.stages import Run, stage
from lmworks.tokenizers.patterns import pattern as named_pattern
from lmworks.tokenizers.patterns import split

if TYPE_CHECKING:
    from lmworks.tokenizers.bpe import BPETokenizer

END_OF_TEXT, IM_START, IM_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, PAD)
_MEASURED_BYTES = 2_000_000

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig:
    """Learn a byte-level BPE vocabulary from a corpus or a text file.

    Examples:
        lmworks tokenizer train --corpus runs/corpus --out runs/tokenizer
        lmworks tokenizer train --corpus book.txt --vocab-size 8000 --pattern llama3 --out tok
    """

    corpus: str = option(role=REFERENCE, help="corpus folder, or a .txt or .jsonl file")
    vocab_size: int = option(4096, help="entries, special tokens and the 256 bytes included")
    pattern: str = option("gpt2", help="how text is cut: gpt2, llama3, qwen2, smollm")
    min_frequency: int = option(2, help="a pair seen less often is not merged")


@stage("train_tokenizer", makes="tokenizer")
def train_tokenizer(config: TrainTokenizerConfig, run: Run) -> dict[str, Any]:
    """Train, save, and measure on held-out text; see TrainTokenizerConfig."""
    corpus = run.inputs["corpus"]
    train = corpus / "train.jsonl" if corpus.is_dir() else corpus
    tokenizer = train_bpe(
        read_texts(train),
        vocab_size=config.vocab_size,
        pattern=config.pattern,
        min_frequency=config.min_frequency,
    )
    tokenizer.save(run.folder)
    heldout = corpus / "heldout.jsonl"
    measured = heldout if heldout.is_file() and heldout.stat().st_size else train
    num_bytes = num_tokens = 0
    for text in read_texts(measured):
        num_bytes += len(text.encode())
        num_tokens += len(tokenizer.encode(text))
        if num_bytes > _MEASURED_BYTES:
            break
    return {
        "vocab_size": tokenizer.vocab_size,
        "num_merges": len(tokenizer.vocabulary.merges),
        "measured_on": measured.name,
        "bytes_per_token": num_bytes / max(1, num_tokens),
    }


def read_texts(path: Path) -> Iterator[str]:
    """Texts of a .jsonl file's `text` fields, or a text file whole.

    Raises: UserError naming the file and line at fault.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: give a corpus made by `lmworks data build`, or a file")
    try:
        if path.suffix != ".jsonl":
            yield path.read_text(encoding="utf-8")
            return
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield json.loads(line)["text"]
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(f"{path}, line {number}: no JSON object with 'text'") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from error


def train_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    pattern: str = "gpt2",
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    min_frequency: int = 2,
) -> BPETokenizer:
    """Learn a vocabulary; special tokens take the first ids, in the order given.

    Raises: UserError for a vocabulary smaller than the alphabet, or no text at all.
    """
    from lmworks.tokenizers.bpe import BPETokenizer, Vocabulary, alphabet_bytes
    from lmworks.tokenizers.chat import CHATML

    smallest = 256 + len(special_tokens)
    if vocab_size < smallest:
        raise UserError(
            f"vocab_size = {vocab_size}: at least {smallest} are needed, 256 for the bytes and "
            f"{len(special_tokens)} for special tokens"
        )
    expressions = named_pattern(pattern)
    words: Counter[str] = Counter()
    with track("counting words") as bar:
        for text in texts:
            words.update(split(text, expressions))
            bar.advance()
    if not words:
        raise UserError("there is no text to learn a tokenizer from")
    tokens = [token.encode() for token in special_tokens]
    tokens += [bytes([byte]) for _, byte in sorted(alphabet_bytes().items())]
    merges = _learn_merges(words, tokens, vocab_size, min_frequency)
    chatml = {IM_START, IM_END} <= set(special_tokens)
    return BPETokenizer(
        Vocabulary(
            tokens=tuple(tokens),
            merges=tuple(merges),
            special_tokens={token: i for i, token in enumerate(special_tokens)},
            control_tokens=frozenset(special_tokens),
            expressions=expressions,
            bos_token=END_OF_TEXT if END_OF_TEXT in special_tokens else None,
            eos_token=END_OF_TEXT if END_OF_TEXT in special_tokens else None,
            pad_token=PAD if PAD in special_tokens else None,
            chat_template=CHATML if chatml else None,
        )
    )


def _learn_merges(
    words: Counter[str], tokens: list[bytes], vocab_size: int, min_frequency: int
) -> list[Pair]:
    """Append merged tokens to `tokens` until there are `vocab_size`; returns the merges."""
    ids = {token: i for i, token in enumerate(tokens)}
    symbols = [[ids[bytes([b])] for b in word.encode("utf-8", "replace")] for word in words]
    counts = list(words.values())
    pair_counts, pair_words = _count_pairs(symbols, counts)
    queue = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(queue)
    merges: list[Pair] = []
    with track("learning merges", total=vocab_size - len(tokens)) as bar:
        while len(tokens) < vocab_size and queue:
            negative, pair = heapq.heappop(queue)
            count = pair_counts[pair]
            if -negative != count:  # counted down meanwhile: it waits for its turn again
                if count > 0:
                    heapq.heappush(queue, (-count, pair))
                continue
            if count < max(1, min_frequency):
                break
            joined = tokens[pair[0]] + tokens[pair[1]]
            merged = ids.get(joined)
            if merged is None:
                merged = ids[joined] = len(tokens)
                tokens.append(joined)
                bar.advance()
            merges.append(pair)
            raised = set()
            for index in pair_words.pop(pair):
                changes = _merge_word(symbols[index], pair, merged)
                for changed, change in changes:
                    pair_counts[changed] += change * counts[index]
                    if change > 0:
                        pair_words[changed].add(index)
                        raised.add(changed)
            pair_counts[pair] = 0
            for changed in raised:
                heapq.heappush(queue, (-pair_counts[changed], changed))
    return merges


def _count_pairs(
    symbols: list[list[int]], counts: list[int]
) -> tuple[dict[Pair, int], dict[Pair, set[int]]]:
    pair_counts: dict[Pair, int] = defaultdict(int)
    pair_words: dict[Pair, set[int]] = defaultdict(set)
    for index, word in enumerate(symbols):
        for pair in itertools.pairwise(word):
            pair_counts[pair] += counts[index]
            pair_words[pair].add(index)
    return pair_counts, pair_words


def _merge_word(word: list[int], pair: Pair, merged: int) -> list[tuple[Pair, int]]:
    """Merge `pair` in place from left to right; returns which pairs came and went."""
    changes: list[tuple[Pair, int]] = []
    left, right = pair
    at = 0
    while at < len(word) - 1:
        if word[at] == left and word[at + 1] == right:
            if at > 0:
                changes += [((word[at - 1], left), -1), ((word[at - 1], merged), 1)]
            if at + 2 < len(word):
                changes += [((right, word[at + 2]), -1), ((merged, word[at + 2]), 1)]
            word[at : at + 2] = [merged]
        at += 1
    return changes
