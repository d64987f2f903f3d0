"""Byte-level BPE in a GGUF file (`tokenizer.ggml.model` gpt2).

llama.cpp knows word patterns by name (`tokenizer.ggml.pre`, gguf_patterns.py), and a name also
decides whether a word that is a token skips the merges. A tokenizer that no name fits is refused
rather than written under one that nearly fits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lmworks.core.errors import UserError, unknown_name
from lmworks.tokenizers import gguf_metadata as keys
from lmworks.tokenizers import pre_tokenizers
from lmworks.tokenizers.bpe import BPE, Pair
from lmworks.tokenizers.gguf_patterns import NAMES
from lmworks.tokenizers.pre_tokenizers import BYTE_LEVEL, byte_level_step
from lmworks.tokenizers.sentencepiece import UNUSED
from lmworks.tokenizers.vocabulary import AddedToken, Vocabulary, from_alphabet


def read(metadata: keys.Metadata) -> Vocabulary:
    """The vocabulary. Raises: UserError for a damaged one or a name that is not known."""
    name = str(metadata.get("tokenizer.ggml.pre", "gpt-2"))
    if name not in NAMES:
        raise unknown_name("pre-tokenizer in tokenizer.ggml.pre", name, NAMES)
    pre = NAMES[name]
    texts = keys.tokens(metadata)
    kinds = keys.token_types(metadata, len(texts))
    pairs = list(merges(keys.strings(metadata, "merges"), texts))
    added = keys.added_tokens(metadata, texts, kinds)
    merged = {token for pair in pairs for token in pair}
    nothing = {i for i, kind in enumerate(kinds) if kind == UNUSED and i not in merged}
    named = keys.roles(metadata, texts)
    return Vocabulary(
        model=BPE(
            tokens=_tokens(texts, added, nothing - set(added)),
            merges=tuple(pairs),
            ignore_merges=pre.ignore_merges,
        ),
        added_tokens=tuple(added.values()),
        pre_tokenizer=byte_level_step(pre.expressions),
        decoder=BYTE_LEVEL,
        post_processor=keys.around(metadata, named, texts, bos=pre.add_bos, eos=False),
        chat_template=keys.template(metadata),
        **named,
    )


def _tokens(texts: list[str], added: dict[int, AddedToken], nothing: set[int]) -> tuple[bytes, ...]:
    def data(i: int, text: str) -> bytes:
        if i in nothing:
            return b""
        return text.encode() if i in added else from_alphabet(text)

    try:
        return tuple(data(i, text) for i, text in enumerate(texts))
    except (KeyError, UnicodeEncodeError) as error:
        raise UserError(f"a token uses {str(error)[:40]}, not a byte-level character") from error


def merges(written: list[str], texts: list[str]) -> list[Pair]:
    """Pairs of ids. Raises: UserError for a merge of tokens that are not there."""
    ids = {text: i for i, text in enumerate(texts)}
    pairs = []
    for number, merge in enumerate(written):
        at = merge.find(" ", 1)  # a token may be a space itself
        left, right = merge[: max(0, at)], merge[at + 1 :]
        if left not in ids or right not in ids:
            raise UserError(f"merge {number} uses {merge[:80]!r}, which the vocabulary lacks")
        pairs.append((ids[left], ids[right]))
    return pairs


def written_merges(model: BPE, texts: Sequence[str]) -> list[str]:
    """Merges as the file has them: the texts of both tokens and a space between them."""
    for left, _ in model.merges:
        if " " in texts[left][1:]:
            raise UserError(f"GGUF files can't hold this tokenizer: {texts[left]!r} has a space")
    return [f"{texts[left]} {texts[right]}" for left, right in model.merges]


def write(vocabulary: Vocabulary) -> keys.Metadata:
    """The `tokenizer.*` keys. Raises: UserError when llama.cpp has no name for how text is cut."""
    model = vocabulary.model
    assert isinstance(model, BPE)
    if model.end_of_word_suffix or model.continuing_subword_prefix:
        raise UserError("GGUF files can't hold this tokenizer: its tokens carry a prefix or suffix")
    texts, kinds = keys.written_types(vocabulary)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _pre_name(vocabulary, model),
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": written_merges(model, vocabulary.texts),
        "tokenizer.ggml.add_space_prefix": False,
    } | keys.written_roles(vocabulary)


def _pre_name(vocabulary: Vocabulary, model: BPE) -> str:
    if vocabulary.normalizer:
        kind = vocabulary.normalizer["type"]
        raise UserError(
            f"GGUF files can't hold this tokenizer: its normalizer ({kind}) has no place there"
        )
    cuts = _plain(pre_tokenizers.build(vocabulary.pre_tokenizer))
    fitting = [
        name
        for name, pre in NAMES.items()
        if _plain(pre_tokenizers.build(byte_level_step(pre.expressions))) == cuts
    ]
    if not fitting:
        raise UserError("GGUF files can't hold this tokenizer: its word pattern has no name there")
    for name in fitting:
        if NAMES[name].ignore_merges == model.ignore_merges:
            return name
    if not model.merges_reach_all(set(vocabulary.added_ids.values())):
        raise UserError(
            "GGUF files can't hold this tokenizer: whether a word that is a token skips the merges "
            f"goes with the name of its pattern there ({fitting[0]}), and this one has it otherwise"
        )
    return fitting[0]


def _plain(cuts: pre_tokenizers.PreTokenizer) -> pre_tokenizers.PreTokenizer:
    """Line breaks in expressions written one way."""
    return dataclasses.replace(
        cuts,
        cuts=tuple(
            dataclasses.replace(
                cut, expression=cut.expression.replace("\r", r"\r").replace("\n", r"\n")
            )
            for cut in cuts.cuts
        ),
    )
