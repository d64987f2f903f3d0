"""BERT's `vocab.txt`: a token per line, the line's number is its id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.files import read_json
from lmworks.tokenizers.vocabulary import AddedToken, Step, Vocabulary
from lmworks.tokenizers.wordpiece import WordPiece

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def load(path: Path) -> Vocabulary:
    """Read the tokens, and whether to lowercase from the config beside them.

    Where no config says it, a vocabulary without capital letters is taken for an uncased one.

    Raises: UserError for tokens that stand twice, or no unknown token.
    """
    try:
        texts = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read as UTF-8 text") from error
    texts = [text.removesuffix("\r") for text in texts]
    ids = {text: i for i, text in enumerate(texts)}
    if len(ids) < len(texts):
        twice = next(text for i, text in enumerate(texts) if ids[text] != i)
        raise UserError(f"{path}: the token {twice!r} stands in it twice")
    if "[UNK]" not in ids:
        raise UserError(f"{path}: no [UNK] among {len(texts)} tokens: not a BERT vocabulary")
    config = path.with_name("tokenizer_config.json")
    settings = read_json(config, "tokenizer config") if config.is_file() else {}
    return from_texts(texts, lowercase=_lowercase(settings, texts))


def _lowercase(settings: dict[str, Any], texts: list[str]) -> bool:
    said = settings.get("do_lower_case")
    if isinstance(said, bool):
        return said
    return not any(text != text.lower() for text in texts if not text.startswith("["))


def from_texts(texts: list[str], *, lowercase: bool) -> Vocabulary:
    """BERT's pipeline around the tokens."""
    ids = {text: i for i, text in enumerate(texts)}
    special = [text for text in _SPECIAL if text in ids]
    return Vocabulary(
        model=WordPiece(tokens=tuple(text.encode() for text in texts), unk_id=ids["[UNK]"]),
        added_tokens=tuple(AddedToken(id=ids[t], text=t) for t in sorted(special, key=ids.get)),  # type: ignore[arg-type]
        normalizer=bert_normalizer(lowercase=lowercase),
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=_around(ids),
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
        pad_token="[PAD]" if "[PAD]" in ids else None,
        unk_token="[UNK]",
    )


def bert_normalizer(*, lowercase: bool) -> Step:
    """BERT's normalizer."""
    return {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": lowercase,
    }


def _around(ids: dict[str, int]) -> Step | None:
    if not {"[CLS]", "[SEP]"} <= set(ids):
        return None
    sep, cls = (["[SEP]", ids["[SEP]"]], ["[CLS]", ids["[CLS]"]])
    return {"type": "BertProcessing", "sep": sep, "cls": cls}
