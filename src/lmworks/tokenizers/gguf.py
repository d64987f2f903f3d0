"""The vocabulary in a GGUF file, both ways, for byte-level BPE (`tokenizer.ggml.model` gpt2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError, unknown_name
from lmworks.core.gguf import read_gguf
from lmworks.tokenizers.bpe import Vocabulary, from_alphabet, to_alphabet
from lmworks.tokenizers.patterns import GGUF_NAMES, PATTERNS

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # values of tokenizer.ggml.token_type


def load(path: Path) -> Vocabulary:
    """Read the vocabulary of a GGUF file.

    Raises: UserError when it holds none, one of another kind, or a damaged one.
    """
    metadata = read_gguf(path).metadata
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None:
        raise UserError(f"{path} holds no vocabulary")
    if kind != "gpt2":
        raise UserError(f"{path}: vocabularies of kind {kind!r} can't be read; known: gpt2")
    pre = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if pre not in GGUF_NAMES:
        raise unknown_name("pre-tokenizer in tokenizer.ggml.pre", str(pre), GGUF_NAMES)
    texts = metadata["tokenizer.ggml.tokens"]
    kinds = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(texts)
    if len(kinds) != len(texts):
        raise UserError(f"{path}: {len(texts)} tokens but {len(kinds)} token types")
    specials = {
        text: i
        for i, (text, kind) in enumerate(zip(texts, kinds, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    }
    numbers = set(specials.values())
    ids = {text: i for i, text in enumerate(texts)}

    def named(role: str) -> str | None:
        token_id = metadata.get(f"tokenizer.ggml.{role}_token_id")
        return texts[token_id] if token_id is not None and token_id < len(texts) else None

    try:
        tokens = [t.encode() if i in numbers else from_alphabet(t) for i, t in enumerate(texts)]
        pairs = [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]]
        merges = [(ids[left], ids[right]) for left, right in pairs]
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: the vocabulary is damaged near {str(error)[:60]}") from error
    return Vocabulary(
        tokens=tuple(tokens),
        merges=tuple(merges),
        special_tokens=specials,
        expressions=PATTERNS[GGUF_NAMES[pre]],
        control_tokens=frozenset(t for t, i in specials.items() if kinds[i] == _CONTROL),
        bos_token=named("bos"),
        eos_token=named("eos"),
        pad_token=named("padding"),
        chat_template=metadata.get("tokenizer.chat_template"),
    )


def to_metadata(vocabulary: Vocabulary) -> dict[str, Any]:
    """The `tokenizer.*` keys for this vocabulary.

    Raises: UserError when llama.cpp knows no pre-tokenizer that cuts text the same way.
    """
    names = {PATTERNS[ours]: theirs for theirs, ours in GGUF_NAMES.items()}
    if vocabulary.expressions not in names or vocabulary.normalization:
        raise UserError("GGUF files can't hold this tokenizer: its word pattern has no name there")
    specials = vocabulary.special_tokens
    numbers = {token_id: text for text, token_id in specials.items()}
    texts = [
        numbers[i] if i in numbers else to_alphabet(token)
        for i, token in enumerate(vocabulary.tokens)
    ]

    def kind(token_id: int) -> int:
        if token_id not in numbers:
            return _NORMAL
        return _CONTROL if numbers[token_id] in vocabulary.control_tokens else _USER_DEFINED

    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": names[vocabulary.expressions],
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [kind(i) for i in range(len(texts))],
        "tokenizer.ggml.merges": [f"{texts[a]} {texts[b]}" for a, b in vocabulary.merges],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    }
    roles = {
        "bos": vocabulary.bos_token,
        "eos": vocabulary.eos_token,
        "padding": vocabulary.pad_token,
    }
    for role, text in roles.items():
        if text in specials:
            metadata[f"tokenizer.ggml.{role}_token_id"] = specials[text]
    if vocabulary.chat_template:
        metadata["tokenizer.chat_template"] = vocabulary.chat_template
    return metadata
