"""Tokens that pre-training objectives ask for: the mask, and sentinels for spans left out.

Vocabularies made for such objectives have them under well-known names; others are given new special
tokens behind all that are there, so that no old id changes.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmworks.tokenizers.tokenizer import PipelineTokenizer

MASKS = ("[MASK]", "<mask>", "<|mask|>")  # BERT and ELECTRA, RoBERTa and MPNet, ours
_SENTINEL = re.compile(r"<extra_id_(\d+)>")  # T5


def mask_token_id(tokenizer: PipelineTokenizer) -> int | None:
    """The id of the mask token, if the vocabulary has one."""
    known = tokenizer.vocabulary.added_ids
    return next((known[text] for text in MASKS if text in known), None)


def sentinel_ids(tokenizer: PipelineTokenizer) -> list[int]:
    """The ids of `<extra_id_0>`, `<extra_id_1>` ..., as far as they go without a gap."""
    known = tokenizer.vocabulary.added_ids
    found = {int(m[1]): i for text, i in known.items() if (m := _SENTINEL.fullmatch(text))}
    ids: list[int] = []
    while len(ids) in found:
        ids.append(found[len(ids)])
    return ids


def with_reserved(
    tokenizer: PipelineTokenizer, *, mask: bool = False, num_sentinels: int = 0
) -> PipelineTokenizer:
    """The tokenizer with a mask token and so many sentinels; itself if it has them all."""
    from lmworks.tokenizers.tokenizer import PipelineTokenizer
    from lmworks.tokenizers.vocabulary import AddedToken

    have = len(sentinel_ids(tokenizer))
    texts = [f"<extra_id_{i}>" for i in range(have, num_sentinels)]
    if mask and mask_token_id(tokenizer) is None:
        texts.insert(0, MASKS[-1])
    if not texts:
        return tokenizer
    first, vocabulary = tokenizer.vocab_size, tokenizer.vocabulary
    new = [AddedToken(id=first + i, text=text, in_vocabulary=False) for i, text in enumerate(texts)]
    added = (*vocabulary.added_tokens, *new)
    return PipelineTokenizer(dataclasses.replace(vocabulary, added_tokens=added))
