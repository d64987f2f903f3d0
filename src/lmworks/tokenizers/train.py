"""Stage `train_tokenizer`: a vocabulary learnt from text; the kinds are in trainers/."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.progress import say
from lmworks.core.stages import Run, stage
from lmworks.tokenizers.texts import find_languages, read_texts
from lmworks.tokenizers.trainers.base import Counts, Wanted, trainer_for

if TYPE_CHECKING:
    from lmworks.tokenizers.tokenizer import PipelineTokenizer
    from lmworks.tokenizers.word_counts import WordCounts

__all__ = ["SPECIAL_TOKENS", "TrainTokenizerConfig", "read_texts", "train_bpe", "train_tokenizer"]

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig:
    """Learn a vocabulary from a corpus, a file, or a folder of text.

    Examples:
        lmworks tokenizer train --corpus runs/corpus --out runs/tokenizer
        lmworks tokenizer train --corpus book.txt --vocab-size 8000 --pattern llama3 --out tok
        lmworks tokenizer train --corpus texts --model unigram --temperature 3 --out tok
        lmworks tokenizer train --corpus texts --fair --parallel lines --vocab-size 32000
    """

    corpus: str = option(role=REFERENCE, help="corpus, text folder, .txt, .jsonl or .parquet file")
    model: Literal["bpe", "sentencepiece-bpe", "unigram", "wordpiece"] = option(
        "bpe", help="kind of vocabulary"
    )
    vocab_size: int = option(4096, help="entries, special tokens and the 256 bytes included")
    pattern: str = option("", help="how text is cut: gpt2, o200k, bert-cased, regex:..., ...")
    min_frequency: int = option(2, help="what is seen less often becomes no token")
    special_tokens: list[str] = option(
        [], help="special token, in place of the kind's own", repeat="--special-token"
    )
    keep: list[str] = option([], help="token that is found whole in any text", repeat="--keep")
    reserve: int = option(0, help="special tokens more, for later use")
    alphabet: float = option(0.0, help="characters kept: a number, or a share such as 0.9995")
    temperature: float = option(1.0, help="above 1, languages with little text weigh more")
    fair: bool = option(False, help="each merge helps the language that is compressed worst")
    parallel: str = option("", role=REFERENCE, help="text of the same lines in every language")


@stage("train_tokenizer", makes="tokenizer", version=2)
def train_tokenizer(config: TrainTokenizerConfig, run: Run) -> dict[str, Any]:
    """Train, save, and measure on held-out text; see TrainTokenizerConfig."""
    from lmworks.tokenizers.counting import count_files
    from lmworks.tokenizers.languages import check_parallel, sentences, weighted
    from lmworks.tokenizers.tokenizer import PipelineTokenizer

    trainer = trainer_for(config.model)(_wanted(config))
    corpus = run.inputs["corpus"]
    languages = find_languages(corpus)
    _check_languages(config, languages)
    parallel: Mapping[str, Sequence[Path]] = languages
    if config.parallel:
        folder = run.inputs["parallel"]
        parallel = check_parallel(languages, find_languages(folder), folder)
    num_sentences = sentences(parallel)
    blank = trainer.blank()
    counted = count_files(blank, languages, work=run.work / "corpus")
    words, by_language = weighted(counted, config.temperature)
    measured = None
    if config.fair:
        texts = words
        if config.parallel:
            texts = count_files(blank, parallel, work=run.work / "parallel")
        measured = _measured(texts, num_sentences)
        if num_sentences is None:
            say("no parallel lines: languages are compared in bytes, unfair across scripts")
    tokenizer = PipelineTokenizer(trainer.learn(Counts(languages=words, measured=measured)))
    tokenizer.save(run.folder)
    figures = {
        "vocab_size": tokenizer.vocab_size,
        "num_merges": len(getattr(tokenizer.vocabulary.model, "merges", ())),
        **_compression(tokenizer, corpus, languages, parallel, num_sentences),
    }
    if config.temperature > 1:
        figures["weights"] = by_language
    if left_out := sum(some.left_out for some in words.values()):
        figures["occurrences_left_out"] = left_out
    return figures


def _wanted(config: TrainTokenizerConfig) -> Wanted:
    return Wanted(
        vocab_size=config.vocab_size,
        pattern=config.pattern,
        min_frequency=config.min_frequency,
        special_tokens=tuple(config.special_tokens) or None,
        keep=tuple(config.keep),
        reserve=config.reserve,
        alphabet=config.alphabet,
    )


def _check_languages(config: TrainTokenizerConfig, languages: Mapping[str, Any]) -> None:
    if config.fair and config.model == "unigram":
        raise UserError("fair: a Unigram vocabulary has no merges; choose another model")
    if config.fair and config.temperature != 1:
        raise UserError("fair: languages are balanced merge by merge; leave out temperature")
    given = {
        "fair": config.fair,
        "parallel": config.parallel,
        "temperature": config.temperature != 1,
    }
    if len(languages) == 1 and any(given.values()):
        name = next(name for name, value in given.items() if value)
        raise UserError(
            f"{name} needs several languages: give a folder with a file or a sub-folder for each"
        )


def _measured(
    words: Mapping[str, WordCounts], num_sentences: int | None
) -> dict[str, tuple[WordCounts, int]]:
    """Words, and how many sentences or bytes they are."""
    import numpy as np

    return {
        name: (
            some,
            num_sentences or int((np.diff(some.ends, prepend=0) * some.counts).sum()),
        )
        for name, some in words.items()
    }


def _compression(
    tokenizer: PipelineTokenizer,
    corpus: Path,
    languages: Mapping[str, Sequence[Path]],
    parallel: Mapping[str, Sequence[Path]],
    num_sentences: int | None,
) -> dict[str, Any]:
    from lmworks.tokenizers.languages import compression, measure

    if len(languages) > 1:
        return compression(tokenizer, parallel, num_sentences)
    (files,) = languages.values()
    heldout = corpus / "heldout.jsonl"
    measured = heldout if heldout.is_file() and heldout.stat().st_size else files[0]
    num_bytes, num_tokens = measure(tokenizer, read_texts(measured))
    return {
        "measured_on": measured.name,
        "bytes_per_token": num_bytes / max(1, num_tokens),
    }


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
