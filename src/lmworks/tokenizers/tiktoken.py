"""tiktoken's rank files, both ways, and Mistral's tekken.json, which is the same in JSON.

A rank file is a line per token: its bytes in base64 and its rank, which is also its id. There are
no merges in it: two neighbours merge when their bytes joined are a token, the lowest rank first.
We list those pairs, so that the one merge loop serves, and say that all pairs of a token share its
rank. How text is cut and which tokens are special are not in the file; for the published names
they are known.

Source: tiktoken, released code and files; mistral-common, released file.
"""

from __future__ import annotations

import array
import base64
import binascii
import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.files import read_json, write_text
from lmworks.tokenizers import calls
from lmworks.tokenizers.bpe import BPE, Merges
from lmworks.tokenizers.patterns import compiled, pattern
from lmworks.tokenizers.post_processors import bos_first
from lmworks.tokenizers.pre_tokenizers import BYTE_LEVEL, byte_level_step
from lmworks.tokenizers.vocabulary import AddedToken, Vocabulary

_FIM = {"<|fim_prefix|>": 1, "<|fim_middle|>": 2, "<|fim_suffix|>": 3}

_QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_QWEN35 = re.findall(
    r"\S+",
    "<|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|> <|quad_end|> "
    "<|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> <tool_call> "
    "</tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> "
    "<|file_sep|> <tool_response> </tool_response> <think> </think> <|audio_start|> <|audio_end|> "
    "<tts_pad> <tts_text_bos> <tts_text_eod> <tts_text_bos_single> <|audio_pad|>",
)


def _numbered(first: int, texts: list[str]) -> dict[str, int]:
    return {text: first + i for i, text in enumerate(texts)}


# Name: (pattern, special tokens).
ENCODINGS: dict[str, tuple[str, dict[str, int]]] = {
    "r50k_base": ("gpt2", {"<|endoftext|>": 50256}),
    "p50k_base": ("gpt2", {"<|endoftext|>": 50256}),
    "cl100k_base": (
        "cl100k",
        {"<|endoftext|>": 100257, "<|endofprompt|>": 100276}
        | {text: 100257 + number for text, number in _FIM.items()},
    ),
    "o200k_base": ("o200k", {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}),
    "qwen": ("qwen2", _numbered(151643, [*_QWEN, *(f"<|extra_{i}|>" for i in range(205))])),
    "qwen3_6": ("qwen35", _numbered(248044, [*_QWEN, *_QWEN35])),
}
_COMPOSED = ("qwen", "qwen3_6")  # their text is composed (NFC) before it is cut


def load(path: Path, *, encoding: str | None = None, bare: bool = False) -> Vocabulary:
    """Read a rank file; its name says which encoding it is, unless `encoding` does.

    A name that is not known is cut as cl100k and has no special tokens.

    Args:
        bare: whatever the name, no special tokens.

    Raises: UserError naming the line that is damaged.
    """
    name = encoding or path.name.split(".")[0]
    cut, specials = ENCODINGS.get("" if bare else name, ("cl100k", {}))
    try:
        ranks = dict(_ranks(path.read_bytes().splitlines()))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    except UserError as error:
        raise UserError(f"{path} is no tiktoken rank file: {error}") from error
    vocabulary = from_ranks(ranks, pattern(cut), specials)
    if name in _COMPOSED:
        vocabulary = dataclasses.replace(vocabulary, normalizer={"type": "NFC"})
    return vocabulary


def load_ranks_json(path: Path) -> Vocabulary:
    """Read the JSON that @anthropic-ai/tokenizer keeps: a pattern, special tokens, ranks in base64.

    Raises: UserError naming what is damaged.
    """
    data = read_json(path, "tokenizer")
    try:
        mark, first, *tokens = data["bpe_ranks"].split()
        if mark != "!":
            raise UserError("its ranks don't begin with an exclamation mark")
        ranks = {
            base64.b64decode(token, validate=True): int(first) + i for i, token in enumerate(tokens)
        }
        specials = {str(text): int(i) for text, i in data["special_tokens"].items()}
        return from_ranks(ranks, (str(data["pat_str"]),), specials)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise UserError(
            f"{path} holds no ranks that can be read ({type(error).__name__}: {error})"
        ) from error


def _ranks(lines: Iterable[bytes]) -> Iterable[tuple[bytes, int]]:
    for number, line in enumerate(lines, 1):
        token, _, rank = line.partition(b" ")
        if not token:
            continue
        try:
            yield binascii.a2b_base64(token, strict_mode=True), int(rank)
        except ValueError as error:
            raise UserError(f"line {number} is not a token in base64 and a rank") from error


def from_ranks(
    ranks: Mapping[bytes, int], expressions: tuple[str, ...], specials: Mapping[str, int]
) -> Vocabulary:
    """A vocabulary from tokens and their ranks. Raises: UserError when they don't fit together."""
    if not ranks:
        raise UserError("there is no token in it")
    size = max(ranks.values()) + 1
    if (
        min(ranks.values()) < 0
        or size > 2 * len(ranks) + 1000
        or len(set(ranks.values())) < len(ranks)
    ):
        raise UserError("the ranks have gaps or are given twice")
    clash = {i for i in specials.values() if i < size} & set(ranks.values())
    if clash:
        raise UserError(f"special tokens have ids that are ranks: {sorted(clash)[:3]}")
    for expression in expressions:
        compiled(expression)
    tokens = [b""] * size
    for token, rank in ranks.items():
        tokens[rank] = token
    merges, shared = _merges(tokens, ranks) if not calls.ready() else _compiled_merges(tokens)
    end = "<|endoftext|>" if "<|endoftext|>" in specials else None
    return Vocabulary(
        model=BPE(
            tokens=tuple(tokens),
            merges=merges,
            ranks=shared,
            ignore_merges=True,
        ),
        added_tokens=tuple(
            AddedToken(id=i, text=text, in_vocabulary=False)
            for text, i in sorted(specials.items(), key=lambda item: item[1])
        ),
        pre_tokenizer=byte_level_step(expressions),
        decoder=BYTE_LEVEL,
        bos_token=end,
        eos_token=end,
    )


def _merges(
    tokens: list[bytes], ranks: Mapping[bytes, int]
) -> tuple[list[tuple[int, int]], list[int]]:
    """Every pair of tokens that makes a token, by the rank of what it makes."""
    merges, shared = [], []
    for rank, token in enumerate(tokens):
        for at in range(1, len(token)):
            left, right = ranks.get(token[:at]), ranks.get(token[at:])
            if left is not None and right is not None:
                merges.append((left, right))
                shared.append(rank)
    return merges, shared


def _compiled_merges(tokens: list[bytes]) -> tuple[Merges, array.array[int]]:
    """As `_merges`, by a kernel."""
    import numpy as np

    from lmworks.tokenizers.compiled_tables import VocabularyTable

    left, right, rank = VocabularyTable(tokens).rank_merges()
    pairs = np.stack([left, right], axis=1)
    return Merges(array.array("i", pairs.tobytes())), array.array("i", rank.tobytes())


def save(vocabulary: Vocabulary, path: Path) -> None:
    """Write the ranks of a byte-level vocabulary.

    Raises: UserError when its ids are not in the order of its merges, so that ranks alone would
    give other ids, or when it is not byte-level BPE.
    """
    model = vocabulary.model
    if not isinstance(model, BPE) or not model.byte_level or model.end_of_word_suffix:
        raise UserError("tiktoken rank files hold byte-level BPE only")
    if vocabulary.normalizer is not None:
        kind = vocabulary.normalizer["type"]
        raise UserError(f"tiktoken changes no text, and this tokenizer's normalizer ({kind}) does")
    added = set(vocabulary.added_ids.values())
    if any(not token.special for token in vocabulary.added_tokens):
        text = next(token.text for token in vocabulary.added_tokens if not token.special)
        raise UserError(f"tiktoken has special tokens only, and {text!r} is always found")
    tokens = {t: i for i, t in enumerate(model.tokens) if t and i not in added}
    made = [tokens.get(model.tokens[left] + model.tokens[right]) for left, right in model.merges]
    ordered = [i for i in made if i is not None]
    if len(ordered) < len(made) or ordered != sorted(ordered):
        raise UserError("the ids are not in the order of the merges: ranks can't say the same")
    if not model.ignore_merges and not model.merges_reach_all(added):
        raise UserError("a word that is a token skips the merges in tiktoken, and here it doesn't")
    lines = [f"{base64.b64encode(token).decode()} {i}" for token, i in tokens.items()]
    write_text(path, "\n".join(lines) + "\n")


def load_tekken(path: Path) -> Vocabulary:
    """Read Mistral's tekken.json. Raises: UserError naming what is damaged."""
    data = read_json(path, "tekken tokenizer")
    try:
        config = data["config"]
        specials = _tekken_specials(data, int(config["default_num_special_tokens"]))
        first = len(specials)
        size = int(config["default_vocab_size"]) - first
        ranks = {
            base64.b64decode(entry["token_bytes"], validate=True): int(entry["rank"]) + first
            for entry in data["vocab"][:size]
        }
        return _tekken(ranks, str(config["pattern"]), specials)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error) as error:
        raise UserError(
            f"{path} is no tekken.json that can be read ({type(error).__name__}: {error})"
        ) from error


def _tekken(ranks: dict[bytes, int], expression: str, specials: dict[str, int]) -> Vocabulary:
    vocabulary = from_ranks(ranks, (expression,), {})
    roles: Any = {
        role: text
        for role, text in {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}.items()
        if text in specials
    }
    bos = roles.get("bos_token")
    added = [AddedToken(id=i, text=t, in_vocabulary=False) for t, i in specials.items()]
    return dataclasses.replace(
        vocabulary,
        added_tokens=tuple(added),
        post_processor=bos_first(bos, specials[bos]) if bos else None,
        **roles,
    )


def _tekken_specials(data: dict[str, Any], number: int) -> dict[str, int]:
    """Named ones, the rest filled up as their own code does."""
    named = data.get("special_tokens") or [
        {"rank": i, "token_str": text} for i, text in enumerate(_TEKKEN_SPECIALS)
    ]
    texts = {int(entry["rank"]): str(entry["token_str"]) for entry in named}
    return {texts.get(i, f"<SPECIAL_{i}>"): i for i in range(number)}


_TEKKEN_SPECIALS = re.findall(
    r"\S+",
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] "
    "[/TOOL_RESULTS] [TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX]",
)
