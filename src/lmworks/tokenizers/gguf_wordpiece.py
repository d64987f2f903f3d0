"""WordPiece in a GGUF file (`tokenizer.ggml.model` bert).

There a token that begins a word carries ▁ and one that goes on carries nothing, the other way
round than in BERT's own files.

Source: llama.cpp's conversion and loader.
"""

from __future__ import annotations

from typing import Any

from lmworks.core.errors import UserError
from lmworks.tokenizers import gguf_metadata as keys
from lmworks.tokenizers import post_processors
from lmworks.tokenizers.sentencepiece import CONTROL
from lmworks.tokenizers.vocab_txt import bert_normalizer
from lmworks.tokenizers.vocabulary import AddedToken, Step, Vocabulary
from lmworks.tokenizers.wordpiece import WordPiece

_MARK, _PREFIX = "▁", "##"
_CHARACTERS = 100  # of a word, beyond which it is unknown; not said in the file
_CLEANING = {"clean_text": True, "handle_chinese_chars": True}
_LOWER, _STRIP = "normalizer.lowercase", "normalizer.strip_accents"


def read(metadata: keys.Metadata) -> Vocabulary:
    """The vocabulary. Raises: UserError for a damaged one."""
    written = keys.tokens(metadata)
    kinds = keys.token_types(metadata, len(written))
    texts = [_plain(text, kind) for text, kind in zip(written, kinds)]
    ids = {text: i for i, text in enumerate(texts)}
    if len(ids) < len(texts):
        raise UserError("the vocabulary is damaged: two tokens are the same without ▁")
    unknown = _one(metadata, "unknown", ids, "[UNK]")
    if unknown is None:
        raise UserError("the vocabulary is damaged: it has no unknown token")
    pad = _one(metadata, "padding", ids, "[PAD]")
    special = {i for i, kind in enumerate(kinds) if kind == CONTROL} | {unknown}
    special |= {i for i in (pad, *_ends(metadata, ids)) if i is not None}
    return Vocabulary(
        model=WordPiece(tokens=tuple(text.encode() for text in texts), unk_id=unknown),
        added_tokens=tuple(AddedToken(id=i, text=texts[i]) for i in sorted(special)),
        normalizer=_normalizer(metadata, texts),
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=_around(metadata, ids, texts),
        decoder={"type": "WordPiece", "prefix": _PREFIX, "cleanup": True},
        chat_template=keys.template(metadata),
        pad_token=None if pad is None else texts[pad],
        unk_token=texts[unknown],
    )


def _plain(text: str, kind: int) -> str:
    if kind == CONTROL or (text.startswith("[") and text.endswith("]") and len(text) > 2):
        return text
    return text[1:] if text.startswith(_MARK) else _PREFIX + text


def _one(metadata: keys.Metadata, key: str, ids: dict[str, int], usual: str) -> int | None:
    found = keys.token_id(metadata, key, len(ids))
    return ids.get(usual) if found is None else found


def _ends(metadata: keys.Metadata, ids: dict[str, int]) -> list[int | None]:
    key = "bos" if "tokenizer.ggml.bos_token_id" in metadata else "cls"
    first = _one(metadata, key, ids, "[CLS]")
    return [first, _one(metadata, "seperator", ids, "[SEP]")]


def _around(metadata: keys.Metadata, ids: dict[str, int], texts: list[str]) -> Step | None:
    first, last = _ends(metadata, ids)
    if first is None or last is None:
        return None
    return {"type": "BertProcessing", "sep": [texts[last], last], "cls": [texts[first], first]}


def _normalizer(metadata: keys.Metadata, texts: list[str]) -> Step:
    """A file that says nothing is taken for uncased when no token has a capital letter."""
    plain = not any(text != text.lower() for text in texts if not text.startswith(("[", "<")))
    lower = keys.flag(metadata, _LOWER, plain)
    strip = keys.flag(metadata, _STRIP, lower)
    return dict(bert_normalizer(lowercase=lower)) | {
        "strip_accents": None if strip == lower else strip
    }


def write(vocabulary: Vocabulary) -> keys.Metadata:
    """The `tokenizer.*` keys. Raises: UserError for what the kind has no place for."""
    model = vocabulary.model
    assert isinstance(model, WordPiece)
    _check(vocabulary, model)
    texts, kinds = keys.written_types(vocabulary)
    written = [_marked(text, kind) for text, kind in zip(texts, kinds)]
    if [_plain(text, kind) for text, kind in zip(written, kinds)] != texts:
        raise UserError("GGUF files can't hold this tokenizer: two of its tokens look alike there")
    normalizer = vocabulary.normalizer or {}
    lower = bool(normalizer.get("lowercase", True))
    strip = normalizer.get("strip_accents")
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": written,
        "tokenizer.ggml.token_type": kinds,
        f"tokenizer.ggml.{_LOWER}": lower,
        f"tokenizer.ggml.{_STRIP}": lower if strip is None else bool(strip),
        "tokenizer.ggml.unknown_token_id": model.unk_id,
    }
    if vocabulary.pad_token is not None:
        metadata["tokenizer.ggml.padding_token_id"] = vocabulary.added_ids[vocabulary.pad_token]
    before, after = post_processors.ends(vocabulary.post_processor)
    if len(before) != 1 or len(after) != 1:
        raise UserError(
            "GGUF files can't hold this tokenizer: bert puts one token before a text and one after"
        )
    metadata["tokenizer.ggml.bos_token_id"] = texts.index(before[0])
    metadata["tokenizer.ggml.seperator_token_id"] = texts.index(after[0])
    return metadata | keys.written_template(vocabulary)


def _marked(text: str, kind: int) -> str:
    if kind == CONTROL:
        return text
    return text[len(_PREFIX) :] if text.startswith(_PREFIX) else _MARK + text


def _check(vocabulary: Vocabulary, model: WordPiece) -> None:
    normalizer = dict(vocabulary.normalizer or {})
    told = {key: normalizer.get(key, True) for key in _CLEANING}
    cuts = (vocabulary.pre_tokenizer or {}).get("type")
    if (
        normalizer.get("type") != "BertNormalizer"
        or told != _CLEANING
        or cuts != "BertPreTokenizer"
    ):
        raise UserError("GGUF files can't hold this tokenizer: its steps are not BERT's")
    if model.continuing_subword_prefix != _PREFIX or model.max_input_chars_per_word != _CHARACTERS:
        raise UserError(
            f"GGUF files can't hold this tokenizer: its words go on with "
            f"{model.continuing_subword_prefix!r} and have at most "
            f"{model.max_input_chars_per_word} characters, and there it is ## and {_CHARACTERS}"
        )
