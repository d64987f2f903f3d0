"""Stage `train_tokenizer`: a vocabulary learnt from text; the kinds are in trainers/."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core.config import REFERENCE, option
from lmworks.core.progress import track
from lmworks.core.stages import Run, stage
from lmworks.tokenizers.texts import find_languages, read_texts
from lmworks.tokenizers.trainers.base import Counts, Wanted, trainer_for

if TYPE_CHECKING:
    from lmworks.tokenizers.tokenizer import PipelineTokenizer

__all__ = ["SPECIAL_TOKENS", "TrainTokenizerConfig", "read_texts", "train_bpe", "train_tokenizer"]

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
_MEASURED_BYTES = 2_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig:
    """Learn a vocabulary from a corpus, a file, or a folder of text.

    Examples:
        lmworks tokenizer train --corpus runs/corpus --out runs/tokenizer
        lmworks tokenizer train --corpus book.txt --vocab-size 8000 --pattern llama3 --out tok
        lmworks tokenizer train --corpus texts --model wordpiece --vocab-size 16000 --out tok
    """

    corpus: str = option(role=REFERENCE, help="corpus, text folder, .txt, .jsonl or .parquet file")
    model: Literal["bpe", "sentencepiece-bpe", "unigram", "wordpiece"] = option(
        "bpe", help="kind of vocabulary"
    )
    vocab_size: int = option(4096, help="entries, special tokens and the 256 bytes included")
    pattern: str = option("", help="how text is cut: gpt2, cl100k, llama3, o200k, bert-cased, ...")
    min_frequency: int = option(2, help="a pair seen less often is not merged")


@stage("train_tokenizer", makes="tokenizer", version=2)
def train_tokenizer(config: TrainTokenizerConfig, run: Run) -> dict[str, Any]:
    """Train, save, and measure on held-out text; see TrainTokenizerConfig."""
    corpus = run.inputs["corpus"]
    files = [file for some in find_languages(corpus).values() for file in some]
    tokenizer = train_on(
        (text for file in files for text in read_texts(file)),
        config.model,
        Wanted(
            vocab_size=config.vocab_size,
            pattern=config.pattern,
            min_frequency=config.min_frequency,
        ),
    )
    tokenizer.save(run.folder)
    heldout = corpus / "heldout.jsonl"
    measured = heldout if heldout.is_file() and heldout.stat().st_size else files[0]
    return {
        "vocab_size": tokenizer.vocab_size,
        "num_merges": _num_merges(tokenizer),
        "measured_on": measured.name,
        "bytes_per_token": _bytes_per_token(tokenizer, read_texts(measured)),
    }


def _num_merges(tokenizer: PipelineTokenizer) -> int:
    return len(getattr(tokenizer.vocabulary.model, "merges", ()))


def _bytes_per_token(tokenizer: PipelineTokenizer, texts: Iterable[str]) -> float:
    num_bytes = num_tokens = 0
    with track("measuring") as bar:
        for text in texts:
            num_bytes += len(text.encode("utf-8", "replace"))
            num_tokens += len(tokenizer.encode(text))
            bar.advance()
            if num_bytes > _MEASURED_BYTES:
                break
    return num_bytes / max(1, num_tokens)


def train_on(texts: Iterable[str], model: str, wanted: Wanted) -> PipelineTokenizer:
    """Learn a vocabulary of any kind.

    Raises: UserError for a vocabulary smaller than what it must hold, or no text at all.
    """
    trainer = trainer_for(model)(wanted)
    from lmworks.tokenizers.counting import count_texts
    from lmworks.tokenizers.tokenizer import PipelineTokenizer

    words = count_texts(trainer.blank(), texts)
    return PipelineTokenizer(trainer.learn(Counts(languages={"": words})))


def train_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    pattern: str = "gpt2",
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    min_frequency: int = 2,
) -> PipelineTokenizer:
    """Learn byte-level BPE; special tokens take the first ids, in the order given.

    The vocabulary comes out smaller than `vocab_size` when the text has no more pairs to merge.

    Raises: UserError for a vocabulary smaller than the alphabet, or no text at all.
    """
    wanted = Wanted(
        vocab_size=vocab_size,
        pattern=pattern,
        special_tokens=tuple(special_tokens),
        min_frequency=min_frequency,
    )
    return train_on(texts, "bpe", wanted)
