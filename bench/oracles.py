"""The tools that define ids and offsets, each asked for many texts at once, on one core."""

from __future__ import annotations

import base64
import gzip
import json
import os
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

Ids = list[int]
Spans = list[tuple[int, int]]


class Oracle:
    """Ids of texts; None for one that the tool can't take."""

    def ids(self, texts: Sequence[str]) -> list[Ids | None]:
        try:
            return list(self.batch(texts))
        except Exception:  # one of them; so each on its own
            return [self._one(text) for text in texts]

    def _one(self, text: str) -> Ids | None:
        try:
            return next(iter(self.batch([text])))
        except Exception:  # what their tool can't take
            return None

    def batch(self, texts: Sequence[str]) -> Sequence[Ids]:
        raise NotImplementedError

    def spans(self, text: str) -> Spans | None:
        """Start and end in characters of each token; end -1 where only starts are said."""
        return None


class Tokenizers(Oracle):
    def __init__(self, theirs: Any) -> None:
        self.theirs = theirs
        theirs.no_truncation()
        theirs.no_padding()
        theirs.encode_special_tokens = True  # the text of special tokens is text, as for `encode`

    def batch(self, texts: Sequence[str]) -> Sequence[Ids]:
        found = self.theirs.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def spans(self, text: str) -> Spans | None:
        return self.theirs.encode(text, add_special_tokens=False).offsets  # type: ignore[no-any-return]


class Tiktoken(Oracle):
    def __init__(self, theirs: Any, composed: bool) -> None:
        self.theirs, self.composed = theirs, composed

    def batch(self, texts: Sequence[str]) -> Sequence[Ids]:
        if self.composed:
            texts = [unicodedata.normalize("NFC", text) for text in texts]
        encode = self.theirs.encode_ordinary
        return [encode(text) for text in texts]

    def spans(self, text: str) -> Spans | None:
        decoded, starts = self.theirs.decode_with_offsets(self.batch([text])[0])
        return [(start, -1) for start in starts] if decoded == text else None


class SentencePiece(Oracle):
    def __init__(self, path: Path) -> None:
        import sentencepiece

        self.theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))

    def batch(self, texts: Sequence[str]) -> Sequence[Ids]:
        return self.theirs.encode(list(texts), num_threads=1)  # type: ignore[no-any-return]

    def spans(self, text: str) -> Spans | None:
        """Of the bytes of one character SentencePiece gives the span to the last."""
        pieces = self.theirs.encode(text, return_type="proto").pieces
        places, at = {0: 0}, 0
        for number, character in enumerate(text, 1):
            at += len(character.encode())
            places[at] = number
        spans = [(places.get(p.begin, -9), places.get(p.end, -9)) for p in pieces]
        for i in range(len(pieces) - 1, 0, -1):
            before = self.theirs.is_byte(pieces[i - 1].id)
            if before and spans[i - 1][0] == spans[i - 1][1] == spans[i][0]:
                spans[i - 1] = spans[i]
        return spans


class Each(Oracle):
    """A tool that takes one text."""

    def __init__(self, encode: Callable[[str], Ids]) -> None:
        self.encode = encode

    def batch(self, texts: Sequence[str]) -> Sequence[Ids]:
        return [self.encode(text) for text in texts]


def oracle(path: Path, tool: str, others: dict[str, tuple[Path, str]]) -> Oracle:
    """The tool that defines the ids of a file. Raises: ImportError when it isn't installed."""
    if tool.startswith("tokenizers"):
        from tokenizers import Tokenizer

        return Tokenizers(Tokenizer.from_file(str(others[tool[14:]][0] if tool[14:] else path)))
    if tool == "clip":
        return Tokenizers(_clip(path))
    if tool == "sentencepiece":
        return SentencePiece(path)
    if tool == "mistral_common":
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer

        theirs = Tekkenizer.from_file(path)
        return Each(lambda text: theirs.encode(text, bos=False, eos=False))
    if tool == "llama.cpp":
        from llama_vocab import LlamaVocabulary

        return Each(LlamaVocabulary(path).encode)
    return Tiktoken(_tiktoken(path), path.stem.startswith("qwen"))


def _tiktoken(path: Path) -> Any:
    import tiktoken

    from lmworks.tokenizers.patterns import PATTERNS
    from lmworks.tokenizers.tiktoken import ENCODINGS

    if path.suffix == ".json":
        data = json.loads(path.read_text())
        _, first, *tokens = data["bpe_ranks"].split()
        ranks = {base64.b64decode(token): int(first) + i for i, token in enumerate(tokens)}
        expression, special = data["pat_str"], data["special_tokens"]
    else:
        name, special = ENCODINGS[path.stem]
        lines = (line.split() for line in path.read_text().splitlines())
        ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        expression = PATTERNS[name][0]
    return tiktoken.Encoding(
        path.stem, pat_str=expression, mergeable_ranks=ranks, special_tokens=special
    )


def _clip(path: Path) -> Any:
    """Hugging Face's CLIP tokenizer over the vocabulary as CLIP's code makes it of the merges."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    with gzip.open(path) as file:
        lines = file.read().decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    letters = list(bytes_to_unicode().values())
    texts = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    texts += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {text: i for i, text in enumerate(texts)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges).backend_tokenizer
