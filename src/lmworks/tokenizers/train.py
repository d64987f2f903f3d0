"""Stage `train_tokenizer`: byte-level BPE learnt from text.

Special tokens take the first ids, the byte alphabet follows in the order of its characters, then
come the merges (bpe_trainer.py). It takes seconds, so there is nothing to resume.
"""

from __future__ import annotations

import codecs
import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.progress import track
from lmworks.core.stages import Run, stage
from lmworks.tokenizers.patterns import pattern as named_pattern

if TYPE_CHECKING:
    from lmworks.tokenizers.pre_tokenizers import PreTokenizer
    from lmworks.tokenizers.tokenizer import PipelineTokenizer

END_OF_TEXT, IM_START, IM_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, PAD)
_MEASURED_BYTES = 2_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig:
    """Learn a byte-level BPE vocabulary from a corpus or a text file.

    Examples:
        lmworks tokenizer train --corpus runs/corpus --out runs/tokenizer
        lmworks tokenizer train --corpus book.txt --vocab-size 8000 --pattern llama3 --out tok
    """

    corpus: str = option(role=REFERENCE, help="corpus folder, or a .txt or .jsonl file")
    vocab_size: int = option(4096, help="entries, special tokens and the 256 bytes included")
    pattern: str = option("gpt2", help="how text is cut: cl100k, gpt2, llama3, o200k, qwen2, ...")
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
    return {
        "vocab_size": tokenizer.vocab_size,
        "num_merges": _num_merges(tokenizer),
        "measured_on": measured.name,
        "bytes_per_token": _bytes_per_token(tokenizer, read_texts(measured)),
    }


def _num_merges(tokenizer: PipelineTokenizer) -> int:
    from lmworks.tokenizers.bpe import BPE

    model = tokenizer.vocabulary.model
    return len(model.merges) if isinstance(model, BPE) else 0


def _bytes_per_token(tokenizer: PipelineTokenizer, texts: Iterable[str]) -> float:
    num_bytes = num_tokens = 0
    with track("measuring") as bar:
        for text in texts:
            ids = tokenizer.encode(text)
            num_bytes += len(tokenizer.decode_bytes(ids))
            num_tokens += len(ids)
            bar.advance()
            if num_bytes > _MEASURED_BYTES:
                break
    return num_bytes / max(1, num_tokens)


def read_texts(path: Path) -> Iterator[str]:
    """Texts of a .jsonl file's `text` fields, or a text file whole.

    Raises: UserError naming the file and line at fault.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: give a corpus made by `lmworks data build`, or a file")
    try:
        if path.suffix == ".jsonl":
            with open(path, encoding="utf-8") as file:
                for number, line in enumerate(file, start=1):
                    yield _text_of(line, f"{path}, line {number}")
        else:
            yield from _parts(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {_bad_byte(path)})") from error
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error


def _parts(path: Path) -> Iterator[str]:
    """A text file in parts of some megabytes that begin where a line does, never with a space."""
    kept = ""
    with open(path, encoding="utf-8") as file:
        while part := file.read(_PART):
            kept += part
            place = _BETWEEN_LINES.search(kept, max(0, len(kept) - _PART // 8))
            if place or len(kept) > _LONGEST_PART:
                end = place.end() if place else len(kept)
                yield kept[:end]
                kept = kept[end:]
    if kept:
        yield kept


def _bad_byte(path: Path) -> int:
    """Where the first byte stands that is no UTF-8."""
    decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
    with open(path, "rb") as file:
        while part := file.read(_PART):
            held = len(decoder.getstate()[0])
            try:
                decoder.decode(part)
            except UnicodeDecodeError as error:
                return done - held + error.start
            done += len(part)
    return done - len(decoder.getstate()[0])


_PART = 1 << 23  # characters read at once
_LONGEST_PART = 1 << 28  # of a file without line breaks
_BETWEEN_LINES = re.compile(r"\n(?=\S)")


def _text_of(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{where}: no JSON object with 'text'") from error
    if not isinstance(text, str):
        raise UserError(f"{where}: 'text' is no string")
    return text


def train_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    pattern: str = "gpt2",
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    min_frequency: int = 2,
) -> PipelineTokenizer:
    """Learn a vocabulary; special tokens take the first ids, in the order given.

    The vocabulary comes out smaller than `vocab_size` when the text has no more pairs to merge.

    Raises: UserError for a vocabulary smaller than the alphabet, or no text at all.
    """
    from lmworks.tokenizers.bpe import BPE
    from lmworks.tokenizers.chat import CHATML
    from lmworks.tokenizers.pre_tokenizers import BYTE_LEVEL, byte_level_step
    from lmworks.tokenizers.tokenizer import PipelineTokenizer
    from lmworks.tokenizers.vocabulary import AddedToken, Vocabulary, alphabet_bytes

    _check(vocab_size, special_tokens)
    expressions = named_pattern(pattern)
    tokens = [token.encode() for token in special_tokens]
    tokens += [bytes([byte]) for _, byte in sorted(alphabet_bytes().items())]
    merges = _learn_merges(
        texts, expressions, tokens, vocab_size=vocab_size, min_frequency=min_frequency
    )
    chatml = {IM_START, IM_END} <= set(special_tokens)
    return PipelineTokenizer(
        Vocabulary(
            model=BPE(tokens=tuple(tokens), merges=tuple(merges)),
            added_tokens=tuple(AddedToken(id=i, text=t) for i, t in enumerate(special_tokens)),
            pre_tokenizer=byte_level_step(expressions),
            decoder=BYTE_LEVEL,
            bos_token=END_OF_TEXT if END_OF_TEXT in special_tokens else None,
            eos_token=END_OF_TEXT if END_OF_TEXT in special_tokens else None,
            pad_token=PAD if PAD in special_tokens else None,
            chat_template=CHATML if chatml else None,
        )
    )


def _check(vocab_size: int, special_tokens: Sequence[str]) -> None:
    smallest = 256 + len(special_tokens)
    if vocab_size < smallest:
        raise UserError(
            f"vocab_size = {vocab_size}: at least {smallest} are needed, 256 for the bytes and "
            f"{len(special_tokens)} for special tokens"
        )
    # One character would stand for a byte in the file.
    if short := [token for token in special_tokens if len(token) < 2]:
        raise UserError(f"the special token {short[0]!r} is too short: use two characters or more")
    if len(set(special_tokens)) < len(special_tokens):
        raise UserError("special_tokens names one token twice")


def _learn_merges(
    texts: Iterable[str],
    expressions: Sequence[str],
    tokens: list[bytes],
    *,
    vocab_size: int,
    min_frequency: int,
) -> list[tuple[int, int]]:
    """Compiled, or in plain Python for a pattern that is no automaton."""
    from lmworks.tokenizers import bpe_trainer, compiled_trainer
    from lmworks.tokenizers.automaton import Unsupported
    from lmworks.tokenizers.pre_tokenizers import Cut, PreTokenizer
    from lmworks.tokenizers.word_counts import WordCounter

    cuts = tuple(Cut(expression) for expression in expressions)
    sizes = {"vocab_size": vocab_size, "min_frequency": min_frequency}
    try:
        counter = WordCounter(cuts)
    except Unsupported:
        words = _count_words(texts, PreTokenizer(cuts=cuts))
        return bpe_trainer.learn_merges(words, tokens, **sizes)
    with track("counting words") as bar:
        for text in texts:
            counter.add(text)
            bar.advance()
    found = counter.finish()
    if not len(found):
        raise UserError("there is no text to learn a tokenizer from")
    return compiled_trainer.learn_merges(found, tokens, **sizes)


def _count_words(texts: Iterable[str], cuts: PreTokenizer) -> Counter[str]:
    words: Counter[str] = Counter()
    with track("counting words") as bar:
        for text in texts:
            words.update(cuts.words(text))
            bar.advance()
    if not words:
        raise UserError("there is no text to learn a tokenizer from")
    return words
