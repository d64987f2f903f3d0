"""The vocabulary in a GGUF file, both ways, for byte-level BPE (`tokenizer.ggml.model` gpt2).

llama.cpp knows word patterns by name (`tokenizer.ggml.pre`), and a name also decides whether a
word that is a token skips the merges. A tokenizer that no name fits is refused rather than written
under one that nearly fits. Flags that GGUF has no place for (lstrip, rstrip, single_word) are
refused as well. Tokens it calls control are special here; user-defined ones are added tokens that
are always found, as in llama.cpp.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError, unknown_name
from lmworks.core.gguf import read_gguf
from lmworks.tokenizers import pre_tokenizers
from lmworks.tokenizers.bpe import BPE
from lmworks.tokenizers.patterns import PATTERNS
from lmworks.tokenizers.post_processors import adds_bos, bos_first
from lmworks.tokenizers.pre_tokenizers import BYTE_LEVEL, byte_level_step
from lmworks.tokenizers.vocabulary import AddedToken, Vocabulary, from_alphabet

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # values of tokenizer.ggml.token_type

# tokenizer.ggml.pre: (our pattern, ignore_merges); the first name of equals is the one written.
_PRE = {
    "gpt-2": ("gpt2", False),
    "llama-bpe": ("llama3", True),
    "llama3": ("llama3", True),
    "llama-v3": ("llama3", True),
    "dbrx": ("llama3", False),
    "smaug-bpe": ("llama3", False),
    "qwen2": ("qwen2", False),
    "deepseek-r1-qwen": ("qwen2", False),
    "smollm": ("smollm", False),
}
_ROLES = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}


def load(path: Path) -> Vocabulary:
    """Read the vocabulary of a GGUF file.

    Raises: UserError when it holds none, one of another kind, or a damaged one.
    """
    try:
        return from_metadata(read_gguf(path).metadata)
    except UserError as error:
        where = "" if str(path) in str(error) else f"{path}: "
        raise UserError(f"{where}{error}") from error


def from_metadata(metadata: dict[str, Any]) -> Vocabulary:
    """The vocabulary in the `tokenizer.*` keys. Raises: UserError as `load`."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None:
        raise UserError("the file holds no vocabulary")
    if kind != "gpt2":
        raise UserError(f"vocabularies of kind {kind!r} can't be read; known: gpt2")
    pre = str(metadata.get("tokenizer.ggml.pre", "gpt-2"))
    if pre not in _PRE:
        raise unknown_name("pre-tokenizer in tokenizer.ggml.pre", pre, _PRE)
    name, ignore_merges = _PRE[pre]
    texts = _strings(metadata, "tokenizer.ggml.tokens")
    added = _added_tokens(metadata, texts)
    roles = {role: _named(metadata, key, texts) for role, key in _ROLES.items()}
    bos = roles["bos_token"]
    begins = bool(metadata.get("tokenizer.ggml.add_bos_token"))
    return Vocabulary(
        model=BPE(
            tokens=tuple(_tokens(texts, added)),
            merges=tuple(_merges(_strings(metadata, "tokenizer.ggml.merges"), texts)),
            ignore_merges=ignore_merges,
        ),
        added_tokens=tuple(added.values()),
        pre_tokenizer=byte_level_step(PATTERNS[name]),
        decoder=BYTE_LEVEL,
        post_processor=bos_first(bos, texts.index(bos)) if bos is not None and begins else None,
        chat_template=_template(metadata),
        bos_token=bos,
        eos_token=roles["eos_token"],
        pad_token=roles["pad_token"],
    )


def _strings(metadata: dict[str, Any], key: str) -> list[str]:
    values = metadata.get(key)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UserError(f"the vocabulary is damaged: {key} is no list of strings")
    return values


def _template(metadata: dict[str, Any]) -> str | None:
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise UserError("the vocabulary is damaged: tokenizer.chat_template is no string")
    return template


def _role_id(metadata: dict[str, Any], key: str, size: int) -> int | None:
    token_id = metadata.get(f"tokenizer.ggml.{key}_token_id")
    if token_id is None:
        return None
    if not isinstance(token_id, int) or not 0 <= token_id < size:
        raise UserError(f"tokenizer.ggml.{key}_token_id = {token_id!r} is none of {size} tokens")
    return token_id


def _named(metadata: dict[str, Any], key: str, texts: list[str]) -> str | None:
    token_id = _role_id(metadata, key, len(texts))
    return None if token_id is None else texts[token_id]


def _added_tokens(metadata: dict[str, Any], texts: list[str]) -> dict[int, AddedToken]:
    kinds = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(texts)
    if not isinstance(kinds, list) or len(kinds) != len(texts):
        raise UserError(f"the vocabulary is damaged: {len(texts)} tokens, but not as many types")
    named = {_role_id(metadata, key, len(texts)) for key in _ROLES.values()}
    return {
        i: AddedToken(id=i, text=text, special=kind != _USER_DEFINED)
        for i, (text, kind) in enumerate(zip(texts, kinds))
        if kind in (_CONTROL, _USER_DEFINED) or i in named
    }


def _tokens(texts: list[str], added: dict[int, AddedToken]) -> list[bytes]:
    if len(set(texts)) < len(texts):
        raise UserError("the vocabulary is damaged: a token stands in it twice")
    try:
        return [t.encode() if i in added else from_alphabet(t) for i, t in enumerate(texts)]
    except (KeyError, UnicodeEncodeError) as error:
        raise UserError(f"a token uses {str(error)[:40]}, not a byte-level character") from error


def _merges(merges: list[str], texts: list[str]) -> list[tuple[int, int]]:
    ids = {text: i for i, text in enumerate(texts)}
    pairs = []
    for number, merge in enumerate(merges):
        left, _, right = merge.partition(" ")
        if left not in ids or right not in ids:
            raise UserError(f"merge {number} uses {merge!r}, which the vocabulary lacks")
        pairs.append((ids[left], ids[right]))
    return pairs


def to_metadata(vocabulary: Vocabulary) -> dict[str, Any]:
    """The `tokenizer.*` keys for this vocabulary.

    Raises: UserError when llama.cpp has no name for how it cuts text, or no place for a flag.
    """
    model = vocabulary.model
    if not isinstance(model, BPE) or not model.byte_level:
        raise UserError(
            f"GGUF files can hold byte-level BPE only, so far; this is {type(model).__name__}"
        )
    _check_added(vocabulary)
    added = {token.id: token for token in vocabulary.added_tokens}

    def kind(token_id: int) -> int:
        if token_id not in added:
            return _NORMAL
        return _CONTROL if added[token_id].special else _USER_DEFINED

    texts = list(vocabulary.texts)
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _pre_name(vocabulary),
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": [kind(i) for i in range(len(texts))],
        "tokenizer.ggml.merges": [f"{texts[a]} {texts[b]}" for a, b in model.merges],
        "tokenizer.ggml.add_bos_token": adds_bos(vocabulary.post_processor, vocabulary.bos_token),
        "tokenizer.ggml.add_space_prefix": False,
    }
    for role, text in vocabulary.roles().items():
        metadata[f"tokenizer.ggml.{_ROLES[role]}_token_id"] = vocabulary.added_ids[text]
    if vocabulary.chat_template:
        metadata["tokenizer.chat_template"] = vocabulary.chat_template
    return metadata


def _pre_name(vocabulary: Vocabulary) -> str:
    for name, (pattern, ignore_merges) in _PRE.items():
        cuts = pre_tokenizers.build(byte_level_step(PATTERNS[pattern]))
        model = vocabulary.model
        assert isinstance(model, BPE)
        same = cuts == pre_tokenizers.build(vocabulary.pre_tokenizer)
        if same and ignore_merges == model.ignore_merges and not vocabulary.normalizer:
            return name
    raise UserError("GGUF files can't hold this tokenizer: its word pattern has no name there")


def _check_added(vocabulary: Vocabulary) -> None:
    for token in vocabulary.added_tokens:
        if token.lstrip or token.rstrip or token.single_word:
            raise UserError(
                f"GGUF files can't hold this tokenizer: {token.text!r} takes its neighbours "
                "into account (lstrip, rstrip or single_word)"
            )
