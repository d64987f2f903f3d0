"""`tokenizer.json` and `tokenizer_config.json`, both ways, for byte-level BPE.

What is not understood is refused by name (see pipeline_json.py). Truncation and padding in the
file are settings of a caller, not of the tokenizer, and are passed over. Left out for now:
Unigram, WordPiece, SentencePiece-style BPE.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.files import read_json, write_json, write_text
from lmworks.tokenizers import pipeline_json
from lmworks.tokenizers.vocabulary import AddedToken, Vocabulary, from_alphabet

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_ROLES = ("bos_token", "eos_token", "pad_token")


def load(path: Path) -> Vocabulary:
    """Read `tokenizer.json` and the config and chat template beside it.

    Raises: UserError naming what is damaged or unknown.
    """
    data = read_json(path, "tokenizer")
    config = path.with_name("tokenizer_config.json")
    settings = read_json(config, "tokenizer config") if config.is_file() else {}
    try:
        model = data["model"]
        kind = model.get("type") or ("BPE" if "merges" in model else "of no stated type")
        if kind != "BPE":
            raise UserError(f"tokenizer models of type {kind!r} can't be read; known: BPE")
        return _vocabulary(data, model, settings, _template(path.parent, settings))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise UserError(
            f"{path} is not a tokenizer.json that can be read "
            f"({type(error).__name__}: {' '.join(str(error).split())[:80]})"
        ) from error


def _vocabulary(
    data: dict[str, Any], model: dict[str, Any], settings: dict[str, Any], template: str | None
) -> Vocabulary:
    for option in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(option):
            raise UserError(f"the BPE option {option!r} can't be read")
    ids: dict[str, int] = {text: _id(token_id) for text, token_id in model["vocab"].items()}
    roles = {role: _named(settings, role) for role in _ROLES}
    added = _added_tokens(data.get("added_tokens") or [], ids, roles)
    return Vocabulary(
        tokens=tuple(_tokens(ids, added)),
        merges=tuple(_merges(model["merges"], ids)),
        added_tokens=tuple(added),
        expressions=pipeline_json.read_pre_tokenizer(data.get("pre_tokenizer")),
        normalization=pipeline_json.read_normalizer(data.get("normalizer")),
        ignore_merges=bool(model.get("ignore_merges")),
        post_processor=_post_processor(data),
        chat_template=template,
        bos_token=roles["bos_token"],
        eos_token=roles["eos_token"],
        pad_token=roles["pad_token"],
    )


def _post_processor(data: dict[str, Any]) -> Any:
    pipeline_json.check_decoder(data.get("decoder"))
    return pipeline_json.read_post_processor(data.get("post_processor"))


def _id(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"{value!r} is no token id")
    return value


def _added_tokens(
    entries: list[dict[str, Any]], ids: dict[str, int], roles: dict[str, str | None]
) -> list[AddedToken]:
    """Those of the file, and what the config names as a role without the file saying so."""
    added = [
        AddedToken(
            id=_id(entry["id"]),
            text=str(entry["content"]),
            in_vocabulary=entry["content"] in ids,
            **{flag: bool(entry.get(flag)) for flag in _FLAGS},
        )
        for entry in entries
    ]
    known = {token.text for token in added}
    unsaid = sorted({text for text in roles.values() if text in ids} - known)
    added += [AddedToken(id=ids[text], text=text) for text in unsaid]
    return sorted(added, key=lambda token: token.id)


def _tokens(ids: dict[str, int], added: list[AddedToken]) -> list[bytes]:
    by_id = {token_id: text for text, token_id in ids.items()}
    for token in added:
        if by_id.setdefault(token.id, token.text) != token.text:
            raise UserError(f"the added token {token.text!r} has the id of {by_id[token.id]!r}")
    texts = {*ids, *(token.text for token in added)}
    if len(texts) != len(by_id) or max(by_id) + 1 != len(by_id):
        raise UserError("the ids of the vocabulary have gaps or are given twice")
    tokens = [b""] * len(by_id)
    plain = {token.id for token in added}
    for token_id, text in by_id.items():
        tokens[token_id] = text.encode() if token_id in plain else _bytes_of(text)
    return tokens


def _bytes_of(text: str) -> bytes:
    try:
        return from_alphabet(text)
    except KeyError as error:
        raise UserError(f"the token {text!r} is not in the byte alphabet") from error


def _merges(merges: list[Any], ids: dict[str, int]) -> Iterator[tuple[int, int]]:
    for number, entry in enumerate(merges):
        left, right = entry.split(" ") if isinstance(entry, str) else entry
        if left not in ids or right not in ids:
            raise UserError(f"merge {number} uses {entry!r}, which the vocabulary lacks")
        yield ids[left], ids[right]


def _named(settings: dict[str, Any], key: str) -> str | None:
    value = settings.get(key)
    value = value.get("content") if isinstance(value, dict) else value
    return value or None


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        return own_file.read_text(encoding="utf-8")
    value = settings.get("chat_template")
    if isinstance(value, list):  # several named ones: the default is what people mean
        value = next((t["template"] for t in value if t["name"] == "default"), None)
    if value is not None and not isinstance(value, str):
        raise UserError("the chat_template in tokenizer_config.json is no string")
    return value


def save(vocabulary: Vocabulary, folder: Path) -> None:
    """Write the three files, whole or not at all, the same bytes for the same vocabulary."""
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token.id, "content": token.text}
            | {flag: getattr(token, flag) for flag in _FLAGS}
            for token in vocabulary.added_tokens
        ],
        "normalizer": {"type": vocabulary.normalization} if vocabulary.normalization else None,
        "pre_tokenizer": pipeline_json.write_pre_tokenizer(vocabulary.expressions),
        "post_processor": vocabulary.post_processor,
        "decoder": pipeline_json.byte_level(),
        "model": _model(vocabulary),
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,
    }
    write_text(folder / "tokenizer.json", json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    write_json(folder / "tokenizer_config.json", settings | vocabulary.roles())
    if vocabulary.chat_template:
        write_text(folder / "chat_template.jinja", vocabulary.chat_template)


def _model(vocabulary: Vocabulary) -> dict[str, Any]:
    texts = vocabulary.texts()
    outside = {token.id for token in vocabulary.added_tokens if not token.in_vocabulary}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": vocabulary.ignore_merges,
        "vocab": {text: i for i, text in enumerate(texts) if i not in outside},
        "merges": [[texts[left], texts[right]] for left, right in vocabulary.merges],
    }
