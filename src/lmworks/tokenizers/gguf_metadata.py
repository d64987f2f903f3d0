"""What all kinds of vocabulary in a GGUF file have in common: tokens, their types, roles, flags.

Everything read is checked before it is used; what is damaged is named by its key.
"""

from __future__ import annotations

import math
from typing import Any

from lmworks.core.errors import UserError
from lmworks.tokenizers import post_processors
from lmworks.tokenizers.sentencepiece import CONTROL, NORMAL, UNUSED, USER_DEFINED
from lmworks.tokenizers.vocabulary import AddedToken, Step, Vocabulary

Metadata = dict[str, Any]

ROLES = {
    "bos_token": "bos",
    "eos_token": "eos",
    "pad_token": "padding",
    "unk_token": "unknown",
}


def strings(metadata: Metadata, key: str) -> list[str]:
    """The list of strings under `tokenizer.ggml.` and `key`."""
    values = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UserError(f"the vocabulary is damaged: tokenizer.ggml.{key} is no list of strings")
    return values


def tokens(metadata: Metadata) -> list[str]:
    """The texts of all tokens, each of which stands there once."""
    texts = strings(metadata, "tokens")
    if len(set(texts)) < len(texts):
        raise UserError("the vocabulary is damaged: a token stands in it twice")
    return texts


def token_types(metadata: Metadata, size: int) -> list[int]:
    """The type of each token; all are normal where the file says nothing."""
    kinds = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * size
    if not isinstance(kinds, list) or len(kinds) != size:
        raise UserError(f"the vocabulary is damaged: {size} tokens, but not as many types")
    return kinds


def scores(metadata: Metadata, size: int) -> list[float]:
    """The score of each token."""
    values = metadata.get("tokenizer.ggml.scores")
    if not isinstance(values, list) or len(values) != size:
        raise UserError(f"the vocabulary is damaged: {size} tokens, but not as many scores")
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        raise UserError("the vocabulary is damaged: a score is no number")
    return values


def flag(metadata: Metadata, key: str, default: bool) -> bool:
    """A yes or no under `tokenizer.ggml.`."""
    value = metadata.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(value, bool):
        raise UserError(f"tokenizer.ggml.{key} = {value!r} is neither true nor false")
    return value


def token_id(metadata: Metadata, key: str, size: int) -> int | None:
    """The id under `tokenizer.ggml.KEY_token_id`. Raises: UserError when it is none of `size`."""
    found = metadata.get(f"tokenizer.ggml.{key}_token_id")
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < size:
        raise UserError(f"tokenizer.ggml.{key}_token_id = {found!r} is none of {size} tokens")
    return found


def roles(metadata: Metadata, texts: list[str]) -> dict[str, Any]:
    """`bos_token`, `eos_token`, `pad_token` and `unk_token`."""
    ids = {role: token_id(metadata, key, len(texts)) for role, key in ROLES.items()}
    return {role: None if i is None else texts[i] for role, i in ids.items()}


def added_tokens(metadata: Metadata, texts: list[str], kinds: list[int]) -> dict[int, AddedToken]:
    """Control tokens, which are special, user-defined ones, and those that have a role."""
    named = {token_id(metadata, key, len(texts)) for key in ROLES.values()}
    return {
        i: AddedToken(id=i, text=text, special=kind != USER_DEFINED)
        for i, (text, kind) in enumerate(zip(texts, kinds))
        if kind in (CONTROL, USER_DEFINED) or i in named
    }


def template(metadata: Metadata) -> str | None:
    """The chat template."""
    found = metadata.get("tokenizer.chat_template")
    if found is not None and not isinstance(found, str):
        raise UserError("the vocabulary is damaged: tokenizer.chat_template is no string")
    return found


def around(
    metadata: Metadata, named: dict[str, Any], texts: list[str], *, bos: bool, eos: bool
) -> Step | None:
    """The post-processor that `add_bos_token` and `add_eos_token` ask for.

    Args:
        bos, eos: what the kind does when the file doesn't say.
    """
    ends = []
    for role, default in (("bos", bos), ("eos", eos)):
        text = named[f"{role}_token"]
        wanted = flag(metadata, f"add_{role}_token", default) and text is not None
        ends.append([(str(text), texts.index(str(text)))] if wanted else [])
    return post_processors.around(*ends) if any(ends) else None


def written_roles(vocabulary: Vocabulary) -> Metadata:
    """Ids of the roles, what is put around a text, and the chat template.

    Raises: UserError when anything but the beginning and the end is put around a text.
    """
    ids = {text: i for i, text in enumerate(vocabulary.texts)}
    found: Metadata = {
        f"tokenizer.ggml.{ROLES[role]}_token_id": ids[text]
        for role, text in vocabulary.roles().items()
        if text in ids
    }
    before, after = post_processors.ends(vocabulary.post_processor)
    for role, texts in (("bos", before), ("eos", after)):
        named = getattr(vocabulary, f"{role}_token") or (texts[0] if texts else None)
        if texts and (texts != [named] or named not in ids):
            raise UserError(
                f"GGUF files can't hold this tokenizer: it puts {' '.join(texts)} around a text, "
                f"and the {role}_token is {named!r}"
            )
        if texts:
            found[f"tokenizer.ggml.{ROLES[f'{role}_token']}_token_id"] = ids[texts[0]]
        found[f"tokenizer.ggml.add_{role}_token"] = bool(texts)
    return found | written_template(vocabulary)


def written_template(vocabulary: Vocabulary) -> Metadata:
    """The chat template, if there is one."""
    text = vocabulary.chat_template
    return {"tokenizer.chat_template": text} if text else {}


def written_types(vocabulary: Vocabulary) -> tuple[list[str], list[int]]:
    """Texts and types of all tokens; an id that stands for nothing is `[PAD..]` and unused."""
    check_added(vocabulary)
    added = {token.id: token for token in vocabulary.added_tokens}
    texts, kinds = [], []
    for i, text in enumerate(vocabulary.texts):
        texts.append(text or f"[PAD{i}]")
        if i in added:
            kinds.append(CONTROL if added[i].special else USER_DEFINED)
        else:
            kinds.append(NORMAL if text else UNUSED)
    return texts, kinds


def check_added(vocabulary: Vocabulary) -> None:
    """Raises: UserError for an added token with a flag that GGUF has no place for."""
    for token in vocabulary.added_tokens:
        if token.lstrip or token.rstrip or token.single_word:
            raise UserError(
                f"GGUF files can't hold this tokenizer: {token.text!r} takes its neighbours "
                "into account (lstrip, rstrip or single_word)"
            )
