"""Stage `extend_tokenizer`: a byte-level BPE vocabulary learns more merges from other text.

Training simply goes on: the text's words are cut and merged as the tokenizer does today, and the
most frequent pairs of what is left become new tokens behind the old ones. Old ids and old merges
stay as they are, so a text in which no new merge applies keeps its ids, and a model keeps its
rows. Learning N merges and then M more from one text gives what learning N + M at once gives.

Words that must be whole get the merges that they lack; what is not one piece of the pre-tokenizer
becomes an added token, which is found before anything is cut.

Left out: SentencePiece-style BPE, Unigram and WordPiece, whose trainers see text otherwise;
removing old tokens, since their ids must stay.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage
from lmworks.tokenizers.train import read_texts

if TYPE_CHECKING:
    from lmworks.tokenizers.bpe import BPE
    from lmworks.tokenizers.tokenizer import PipelineTokenizer
    from lmworks.tokenizers.vocabulary import AddedToken

Pair = tuple[int, int]
_MEASURED_BYTES = 2_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtendTokenizerConfig:
    """Learn more tokens from the text of a field; the old ones keep their ids.

    Examples:
        lmworks tokenizer extend --tokenizer smollm2-135m --corpus handbook.txt --add 4000 --out tok
        lmworks tokenizer extend --tokenizer runs/tokenizer --corpus runs/law --words terms.txt
    """

    tokenizer: str = option(role=REFERENCE, help="byte-level BPE tokenizer to start from")
    corpus: str = option(role=REFERENCE, help="corpus folder, or a .txt or .jsonl file")
    add: int = option(4000, help="new tokens to learn at most")
    min_frequency: int = option(2, help="a pair seen less often is not merged")
    words: str = option("", role=REFERENCE, help="file of words, one a line, that must be whole")
    special_tokens: list[str] = option(
        [], help="new special token, behind all others", repeat="--special-token"
    )


@stage("extend_tokenizer", makes="tokenizer")
def extend_tokenizer(config: ExtendTokenizerConfig, run: Run) -> dict[str, Any]:
    """Extend, save, and measure both on held-out text; see ExtendTokenizerConfig."""
    from lmworks.tokenizers.load import load_tokenizer

    base = load_tokenizer(run.inputs["tokenizer"])
    corpus = run.inputs["corpus"]
    train = corpus / "train.jsonl" if corpus.is_dir() else corpus
    extended = extend(
        base,
        read_texts(train),
        add=config.add,
        min_frequency=config.min_frequency,
        words=_lines(run.inputs["words"]) if config.words else (),
        special_tokens=config.special_tokens,
    )
    extended.save(run.folder)
    heldout = corpus / "heldout.jsonl"
    measured = heldout if heldout.is_file() and heldout.stat().st_size else train
    before, after = _bytes_per_token((base, extended), read_texts(measured))
    return {
        "vocab_size": extended.vocab_size,
        "num_added": extended.vocab_size - base.vocab_size,
        "measured_on": measured.name,
        "bytes_per_token_before": before,
        "bytes_per_token": after,
    }


def _lines(path: Path) -> list[str]:
    text = "".join(read_texts(path))
    return [line for line in text.splitlines() if line.strip()]


def _bytes_per_token(
    tokenizers: Sequence[PipelineTokenizer], texts: Iterable[str]
) -> tuple[float, ...]:
    num_bytes, num_tokens = 0, [0] * len(tokenizers)
    for text in texts:
        num_bytes += len(text.encode("utf-8", "replace"))
        for index, tokenizer in enumerate(tokenizers):
            num_tokens[index] += len(tokenizer.encode(text))
        if num_bytes > _MEASURED_BYTES:
            break
    return tuple(num_bytes / max(1, count) for count in num_tokens)


def extend(
    tokenizer: PipelineTokenizer,
    texts: Iterable[str],
    *,
    add: int,
    min_frequency: int = 2,
    words: Sequence[str] = (),
    special_tokens: Sequence[str] = (),
) -> PipelineTokenizer:
    """A tokenizer with up to `add` tokens more, learnt from `texts`; the old ids are unchanged.

    Args:
        min_frequency: a pair seen less often in `texts` is not merged.
        words: each becomes one token, at the start of a text and, where it begins with no white
            space, after a space too; these come on top of `add`.
        special_tokens: new special tokens, with the last ids.
    Returns: a new tokenizer; fewer than `add` tokens are learnt when the text has no more pairs.
    Raises: UserError for a tokenizer that is no byte-level BPE, no text to learn from, special
        tokens that are there already or too short, or a word around an added token's text.
    Source: Sennrich et al. 2016, arXiv 1508.07909, algorithm 1, begun from merged symbols.
    """
    from lmworks.tokenizers.tokenizer import PipelineTokenizer

    model = _checked_model(tokenizer, add, special_tokens)
    words = [word for word in words if not _is_token(tokenizer, word)]
    vocabulary = tokenizer.vocabulary
    used, merges = _placeholders(tokenizer), list(model.merges)
    if add:
        merges += _learn(_symbols(tokenizer, _count(tokenizer, texts)), used, add, min_frequency)
    model = _with(model, used, merges)
    added = list(vocabulary.added_tokens)
    whole = [form for word in words for form in _forms(tokenizer, word)]
    model = _with_words(model, used, whole)
    apart = [word for word in words if not _forms(tokenizer, word)]
    added += _added(added, apart, len(model.tokens), special=False)
    added += _added(added, special_tokens, len(model.tokens), special=True)
    return PipelineTokenizer(
        dataclasses.replace(vocabulary, model=model, added_tokens=tuple(added))
    )


def _checked_model(tokenizer: PipelineTokenizer, add: int, special: Sequence[str]) -> BPE:
    from lmworks.tokenizers.bpe import BPE

    model = tokenizer.vocabulary.model
    if not isinstance(model, BPE) or not model.byte_level or model.end_of_word_suffix:
        kind = type(model).__name__
        raise UserError(
            f"only byte-level BPE can be extended, and this tokenizer is {kind} of another kind: "
            "train a new one with `lmworks tokenizer train`"
        )
    if add < 0:
        raise UserError(f"add = {add}: a number of tokens from 0 up")
    if short := [text for text in special if len(text) < 2]:
        raise UserError(f"the special token {short[0]!r} is too short: use two characters or more")
    taken = set(tokenizer.vocabulary.added_ids)
    if twice := [t for i, t in enumerate(special) if t in taken or t in special[:i]]:
        raise UserError(f"the special token {twice[0]!r} is there already")
    return model


def _placeholders(tokenizer: PipelineTokenizer) -> list[bytes]:
    """Every token by id; what no merge may lead to stands as bytes that no text contains."""
    plain = list(tokenizer.vocabulary.tokens)
    apart = {token.id for token in tokenizer.vocabulary.added_tokens}
    return [b"\xff%d" % i if i in apart or not token else token for i, token in enumerate(plain)]


def _with(model: BPE, used: Sequence[bytes], merges: Sequence[Pair]) -> BPE:
    """The model with the tokens of `used` beyond its own, and all of `merges`."""
    size = len(model.tokens)
    new = [b"" if token.startswith(b"\xff") else token for token in used[size:]]
    if not any(new):  # nothing was learnt: ids of added tokens need no place in the model
        new = []
    ranks = model.ranks
    if ranks is not None:
        first = max(ranks, default=-1) + 1
        ranks = (*ranks, *range(first, first + len(merges) - len(model.merges)))
    return dataclasses.replace(
        model, tokens=(*model.tokens, *new), merges=tuple(merges), ranks=ranks
    )


def _count(tokenizer: PipelineTokenizer, texts: Iterable[str]) -> Mapping[str, int]:
    """How often each word occurs."""
    from lmworks.tokenizers.counting import count_texts

    found = count_texts(tokenizer, texts, allow_special=True)
    return {word.decode(): count for word, count in found.items()}


def _symbols(
    tokenizer: PipelineTokenizer, words: Mapping[str, int]
) -> Iterator[tuple[list[int], int]]:
    """Each word's ids as they are today, and its count.

    Left out: words that lose bytes on the way (vocabularies without some bytes), and those that
    still hold an added token's text, which must not come about by merging.
    """
    from lmworks.tokenizers.bpe import utf8

    tokens, encode = tokenizer.vocabulary.model.tokens, tokenizer.vocabulary.model.encode_piece
    added = _added_texts(tokenizer)
    for word, count in words.items():
        if added.search(word):
            continue
        ids = encode(word)
        if b"".join(tokens[i] for i in ids) == utf8(word):
            yield ids, count


def _added_texts(tokenizer: PipelineTokenizer) -> re.Pattern[str]:
    texts = [re.escape(token.text) for token in tokenizer.vocabulary.added_tokens if token.text]
    return re.compile("|".join(texts) if texts else r"(?!)")


def _learn(
    words: Iterable[tuple[list[int], int]], tokens: list[bytes], add: int, min_frequency: int
) -> list[Pair]:
    """The one door to the trainer: appends up to `add` tokens, returns the merges."""
    import numpy as np

    from lmworks.tokenizers.compiled_trainer import learn_merges
    from lmworks.tokenizers.word_counts import WordCounts

    data: list[int] = []
    ends, counts = [], []
    for ids, count in words:
        data += ids
        ends.append(len(data))
        counts.append(count)
    if not data:
        return []
    found = WordCounts(
        np.array(data, dtype=np.int32), np.array(ends, np.int64), np.array(counts, np.int64)
    )
    return learn_merges(found, tokens, vocab_size=len(tokens) + add, min_frequency=min_frequency)


def _is_token(tokenizer: PipelineTokenizer, word: str) -> bool:
    """Whether a word is an added token already, or nothing at all."""
    if found := _added_texts(tokenizer).search(word):
        if found[0] != word:
            raise UserError(f"the word {word!r} holds the added token {found[0]!r}: leave it out")
        return True
    return not word


def _forms(tokenizer: PipelineTokenizer, word: str) -> list[str]:
    """The word, and the word after a space, as far as they are one piece that merges can make."""
    word = tokenizer.normalizer.normalize(word)
    forms = [word] if word[:1].isspace() else [word, " " + word]
    return [form for form in forms if list(tokenizer.pre_tokenizer.words(form)) == [form]]


def _with_words(model: BPE, used: list[bytes], words: Sequence[str]) -> BPE:
    """Merges added until each word is one token.

    New merges come last in rank, so what is merged today is merged first, as before.
    """
    from lmworks.tokenizers.merging import merge

    ranked, merges = dict(model.ranked), list(model.merges)
    rank = len(merges) if model.ranks is None else max(model.ranks, default=-1) + 1
    ids_of = {token: i for i, token in enumerate(used)}
    for word in words:
        ids = merge(model.encode_piece(word), ranked)
        while len(ids) > 1:
            pair = (ids[0], ids[1])
            joined = used[pair[0]] + used[pair[1]]
            if joined not in ids_of:
                ids_of[joined] = len(used)
                used.append(joined)
            ranked[pair] = (rank, ids_of[joined])
            merges.append(pair)
            rank += 1
            ids = merge(ids, ranked)
    return _with(model, used, merges)


def _added(
    there: Sequence[AddedToken], texts: Sequence[str], first: int, *, special: bool
) -> list[AddedToken]:
    """Added tokens for the texts that are not `there`, with ids from `first` or behind all."""
    from lmworks.tokenizers.vocabulary import AddedToken

    first = max([first, *(token.id + 1 for token in there)])
    known = {token.text for token in there}
    new = [text for text in dict.fromkeys(texts) if text not in known]
    return [
        AddedToken(id=first + i, text=text, special=special, in_vocabulary=False)
        for i, text in enumerate(new)
    ]
