"""A tokenizer from one format to another, and the proof that it is the same one afterwards.

Each writer refuses what its format has no place for. What they can't see (two formats that name a
step alike and mean different things by it) shows when the file is read again: ids, ids with special
tokens around, and the text of ids are compared on a probe and on the text of every token, and a
file that differs is not kept.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError, unknown_name
from lmworks.core.tables import load_target
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.vocabulary import Vocabulary

_HERE = "lmworks.tokenizers"
FORMATS = {
    "huggingface": f"{_HERE}.convert:_huggingface",
    "tiktoken": f"{_HERE}.convert:_tiktoken",
    "gguf": f"{_HERE}.convert:_gguf",
    "sentencepiece": f"{_HERE}.convert:_sentencepiece",
}
_BARE = ("tiktoken", "sentencepiece")  # nothing in it about what is put around a text

PROBE = (
    "Hello, world! It's 2024-01-31, isn't it? WE'LL see: naïve café, Grüße, œuvre.",
    "  two  spaces\n\n\n and\ttabs \r\n and an end ",
    "def f(x):\n    return {'a': [1, 2.5e-3], \"b\": x->y}  # done!!! ====",
    "你好，世界 こんにちは 각 мир и война हिन्दी العربية עברית ไทย ελληνικά",
    "👩‍👩‍👧 🇩🇪 👍🏽 e\u0301 ﬁ ½ ²³ \u00a0\u200b\u2003 ١٢٣ 1234567",
    "",
)
_MARKERS = "<s></s> <unk> <pad> [CLS] [SEP] [MASK] <|endoftext|> <|im_start|>user"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Converted:
    """What was written, and on how many texts it was found to be the same."""

    path: Path
    what: str
    num_texts: int


def convert(tokenizer: PipelineTokenizer, to: str, out: Path) -> Converted:
    """Write `tokenizer` in another format.

    Args:
        to: one of `FORMATS`.
        out: a folder for huggingface, else a file.

    Raises: UserError for what the format can't hold, or when the file read again is another
        tokenizer; nothing is left behind then.
    """
    if to not in FORMATS:
        raise unknown_name("format", to, FORMATS)
    write: Callable[[Vocabulary, Path], tuple[str, Vocabulary]] = load_target(FORMATS[to])
    _check_target(to, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".converting-", dir=out.parent))
    try:
        _, again = write(tokenizer.vocabulary, folder / out.name)
        texts = list(_probe(tokenizer))
        _compare(tokenizer, PipelineTokenizer(again), texts, bare=to in _BARE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    what, _ = write(tokenizer.vocabulary, out)
    return Converted(path=out, what=what, num_texts=len(texts))


def _check_target(to: str, out: Path) -> None:
    if to == "huggingface":
        if out.is_file():
            raise UserError(f"{out} is a file: name a folder for tokenizer.json")
        return
    endings = {"tiktoken": ".tiktoken", "gguf": ".gguf", "sentencepiece": ".model"}
    if out.suffix != endings[to]:
        raise UserError(f"{out}: give the file a name that ends in {endings[to]}")
    if out.is_dir():
        raise UserError(f"{out} is a folder: name a file")


def _huggingface(vocabulary: Vocabulary, out: Path) -> tuple[str, Vocabulary]:
    from lmworks.tokenizers import huggingface

    huggingface.save(vocabulary, out)
    return "tokenizer.json and its config", huggingface.load(out / "tokenizer.json")


def _tiktoken(vocabulary: Vocabulary, out: Path) -> tuple[str, Vocabulary]:
    """Read back with the steps and special tokens that the file has no place for."""
    from lmworks.tokenizers import tiktoken

    tiktoken.save(vocabulary, out)
    return (
        "ranks alone; whoever reads them has to know the pattern and the special tokens",
        dataclasses.replace(vocabulary, model=tiktoken.load(out, bare=True).model),
    )


def _gguf(vocabulary: Vocabulary, out: Path) -> tuple[str, Vocabulary]:
    from lmworks.core.gguf import write_gguf
    from lmworks.tokenizers import gguf

    # llama.cpp opens no file without an architecture, and asks no more for a vocabulary.
    metadata = {"general.architecture": "llama"} | gguf.to_metadata(vocabulary)
    write_gguf(out, metadata, {})
    kind = metadata["tokenizer.ggml.model"]
    pre = metadata.get("tokenizer.ggml.pre")
    return f"kind {kind}{f', pattern {pre}' if pre else ''}, no tensors", gguf.load(out)


def _sentencepiece(vocabulary: Vocabulary, out: Path) -> tuple[str, Vocabulary]:
    from lmworks.tokenizers import sentencepiece, sentencepiece_writer

    sentencepiece_writer.save(vocabulary, out)
    return "a SentencePiece model", sentencepiece.load(out)


def _probe(tokenizer: PipelineTokenizer) -> Iterator[str]:
    """The probe, and the text of every ordinary token that is one."""
    yield from PROBE
    special = set(tokenizer.special_tokens.values())
    for token_id in range(tokenizer.vocab_size):
        data = b"" if token_id in special else tokenizer.token_bytes(token_id)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            continue
        if text:
            yield text


def _compare(
    ours: PipelineTokenizer, again: PipelineTokenizer, texts: list[str], *, bare: bool
) -> None:
    before = ours.encode_batch(texts)
    for text, ids, new in zip(texts, before, again.encode_batch(texts)):
        if ids != new:
            raise _differs(text, "has other ids", ids, new)
    special = "x".join(["", *sorted(ours.special_tokens)[:50], ""])
    for text in (*PROBE, f"{_MARKERS} {special}"):
        one, other = (
            each.encoding(text, add_special_tokens=not bare).ids for each in (ours, again)
        )
        if one != other:
            raise _differs(text, "with special tokens has other ids", one, other)
        # How the unknown token looks is said in .model files alone.
        if ours.unk_token_id not in one and ours.decode(one) != again.decode(other):
            raise _differs(text, "comes back as", ours.decode(one), again.decode(other))


def _differs(text: str, how: str, before: Any, after: Any) -> UserError:
    return UserError(
        "read again it would be another tokenizer, so nothing was written: "
        f"{text[:40]!r} {how}: {str(before)[:60]} before, {str(after)[:60]} after"
    )
