"""`tokenizer.json` and `tokenizer_config.json`, both ways: BPE, Unigram and WordPiece.

What is not understood is refused by name: a tokenizer that is nearly right gives wrong ids in
silence. Truncation and padding in the file are settings of a caller: kept, and not applied.
"""

from __future__ import annotations

import array
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.files import read_json, write_json, write_text
from lmworks.tokenizers import decoders, normalizers, post_processors, pre_tokenizers
from lmworks.tokenizers.bpe import BPE, Merges, utf8
from lmworks.tokenizers.unigram import Unigram
from lmworks.tokenizers.vocabulary import AddedToken, Step, Vocabulary, from_alphabet
from lmworks.tokenizers.wordpiece import WordPiece

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
_LONGEST = 300  # characters of a message
_ROOM_FOR_GAPS = 100_000  # ids that stand for nothing; more is a mistake in the file


def load(path: Path) -> Vocabulary:
    """Read `tokenizer.json` and the config and chat template beside it.

    Raises: UserError naming what is damaged or unknown.
    """
    data = read_json(path, "tokenizer")
    config = path.with_name("tokenizer_config.json")
    settings = read_json(config, "tokenizer config") if config.is_file() else {}
    try:
        return from_json(data, settings, _template(path.parent, settings))
    except UserError as error:
        whole = str(error)  # what it quotes may be half the file
        raise UserError(f"{path}: {whole[:_LONGEST]}{'...' * (len(whole) > _LONGEST)}") from error


def from_json(
    data: dict[str, Any], settings: dict[str, Any] | None = None, template: str | None = None
) -> Vocabulary:
    """The vocabulary in the content of a `tokenizer.json`.

    Args:
        settings: the content of `tokenizer_config.json`.

    Raises: UserError as `load`.
    """
    try:
        return _vocabulary(data, data["model"], {} if settings is None else settings, template)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise UserError(
            "this is not a tokenizer.json that can be read "
            f"({type(error).__name__}: {' '.join(str(error).split())[:80]})"
        ) from error


def _vocabulary(
    data: dict[str, Any], model: dict[str, Any], settings: dict[str, Any], template: str | None
) -> Vocabulary:
    read = _MODELS[_kind(model)]
    ids = _ids(model)
    roles = {role: _named(settings, role) for role in _ROLES}
    roles["unk_token"] = roles["unk_token"] or model.get("unk_token") or None
    added = _added_tokens(data.get("added_tokens") or [], ids, roles)
    byte_level = _is_byte_level(data)
    _check_ids(ids, added)
    vocabulary = Vocabulary(
        model=read(model, ids, byte_level=byte_level),
        added_tokens=tuple(added),
        normalizer=_step(data, "normalizer"),
        pre_tokenizer=_step(data, "pre_tokenizer"),
        post_processor=post_processors.checked(_step(data, "post_processor")),
        decoder=_step(data, "decoder"),
        truncation=data.get("truncation"),
        padding=data.get("padding"),
        chat_template=template,
        **roles,
    )
    _check_steps(vocabulary, byte_level)
    return vocabulary


def _kind(model: dict[str, Any]) -> str:
    kind = model.get("type") or _untyped(model)
    if kind not in _MODELS:
        raise UserError(
            f"tokenizer models of type {kind!r} can't be read; known: {', '.join(_MODELS)}"
        )
    return str(kind)


def _untyped(model: dict[str, Any]) -> str:
    """Old files state no type."""
    if "merges" in model:
        return "BPE"
    return "WordPiece" if "max_input_chars_per_word" in model else "of no stated type"


def _step(data: dict[str, Any], name: str) -> Step | None:
    """A step; an empty sequence does nothing and is none."""
    step = data.get(name)
    if step is not None and step["type"] == "Sequence":
        (inner,) = [value for key, value in step.items() if key != "type"]
        return step if inner else None
    return step


def _check_steps(vocabulary: Vocabulary, byte_level: bool) -> None:
    normalizers.build(vocabulary.normalizer)
    pre_tokenizers.build(vocabulary.pre_tokenizer)
    decoders.build(vocabulary.decoder)
    if byte_level and "ByteLevel" not in _kinds(vocabulary.decoder):
        raise UserError("the pre-tokenizer is ByteLevel, and the decoder is not")


def _is_byte_level(data: dict[str, Any]) -> bool:
    return any("ByteLevel" in _kinds(data.get(n)) for n in ("pre_tokenizer", "normalizer"))


def _kinds(step: Step | None) -> set[str]:
    if step is None:
        return set()
    if step["type"] != "Sequence":
        return {str(step["type"])}
    (inner,) = [value for key, value in step.items() if key != "type"]
    return set().union(*map(_kinds, inner)) if inner else set()


def _ids(model: dict[str, Any]) -> dict[str, int]:
    if isinstance(model["vocab"], list):  # Unigram: pairs of text and score
        texts = [str(text) for text, _ in model["vocab"]]
        if len(set(texts)) < len(texts):
            twice = next(text for text in texts if texts.count(text) > 1)
            raise UserError(f"the token {twice!r} stands in the vocabulary twice")
        return {text: i for i, text in enumerate(texts)}
    ids: dict[str, int] = model["vocab"]
    if set(map(type, ids.values())) - {int} or min(ids.values(), default=0) < 0:
        return {text: _id(token_id) for text, token_id in ids.items()}  # names the one
    return ids


def _check_ids(ids: dict[str, int], added: list[AddedToken]) -> None:
    by_id = {token_id: text for text, token_id in ids.items()}
    if len(by_id) < len(ids):
        twice = next(text for text, token_id in ids.items() if by_id[token_id] != text)
        raise UserError(f"the id {ids[twice]} is given twice: {twice!r}, {by_id[ids[twice]]!r}")
    for token in added:
        if by_id.setdefault(token.id, token.text) != token.text:
            raise UserError(f"the added token {token.text!r} has the id of {by_id[token.id]!r}")
        if ids.get(token.text, token.id) != token.id:
            raise UserError(f"{token.text!r} has two ids: {ids[token.text]} and {token.id}")
    if len({token.text for token in added}) < len(added):
        raise UserError("an added token is given twice")
    if by_id and max(by_id) >= 4 * len(by_id) + _ROOM_FOR_GAPS:
        raise UserError(f"the id {max(by_id)} is far beyond the {len(by_id)} tokens there are")


def _by_id(ids: dict[str, int], size: int, to_bytes: Callable[[str], bytes]) -> tuple[bytes, ...]:
    tokens = [b""] * size
    for text, token_id in ids.items():
        tokens[token_id] = to_bytes(text)
    return tuple(tokens)


def _read_bpe(model: dict[str, Any], ids: dict[str, int], *, byte_level: bool) -> BPE:
    if model.get("dropout"):
        raise UserError("the BPE option 'dropout' makes ids random and can't be read")
    unknown = model.get("unk_token")
    return BPE(
        tokens=_by_id(ids, max(ids.values(), default=-1) + 1, _bytes_of if byte_level else utf8),
        merges=_merges(model["merges"], ids),
        byte_level=byte_level,
        ignore_merges=bool(model.get("ignore_merges")),
        byte_fallback=bool(model.get("byte_fallback")),
        unk_id=None if unknown is None else ids.get(unknown),
        fuse_unk=bool(model.get("fuse_unk")),
        end_of_word_suffix=_string(model, "end_of_word_suffix"),
        continuing_subword_prefix=_string(model, "continuing_subword_prefix"),
    )


def _string(model: dict[str, Any], key: str) -> str:
    value = model.get(key) or ""
    if not isinstance(value, str):
        raise UserError(f"the model's {key} is no string")
    return value


def _read_unigram(model: dict[str, Any], ids: dict[str, int], *, byte_level: bool) -> Unigram:
    if byte_level:
        raise UserError("Unigram over a byte-level pre-tokenizer can't be read")
    scores = tuple(float(score) for _, score in model["vocab"])
    if not all(map(math.isfinite, scores)):
        raise UserError("a score of the Unigram model is no number")
    unknown = model.get("unk_id")
    if unknown is not None and not 0 <= _id(unknown) < len(scores):
        raise UserError(f"unk_id = {unknown} is none of {len(scores)} tokens")
    return Unigram(
        tokens=_by_id(ids, len(scores), utf8),
        scores=scores,
        unk_id=unknown,
        byte_fallback=bool(model.get("byte_fallback")),
    )


def _read_word_piece(model: dict[str, Any], ids: dict[str, int], *, byte_level: bool) -> WordPiece:
    unknown = str(model.get("unk_token") or "[UNK]")
    if unknown not in ids:
        raise UserError(f"the unknown token {unknown!r} is not in the vocabulary")
    return WordPiece(
        tokens=_by_id(ids, max(ids.values()) + 1, utf8),
        unk_id=ids[unknown],
        continuing_subword_prefix=str(model.get("continuing_subword_prefix", "##")),
        max_input_chars_per_word=int(model.get("max_input_chars_per_word", 100)),
    )


_MODELS: dict[str, Callable[..., BPE | Unigram | WordPiece]] = {
    "BPE": _read_bpe,
    "Unigram": _read_unigram,
    "WordPiece": _read_word_piece,
}


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
    named = {text for role, text in roles.items() if role != "unk_token" and text in ids}
    unsaid = sorted({str(text) for text in named} - known)
    added += [AddedToken(id=ids[text], text=text) for text in unsaid]
    return sorted(added, key=lambda token: token.id)


def _bytes_of(text: str) -> bytes:
    try:
        return from_alphabet(text)
    except KeyError:  # no cut and no merge leads to it; only an added token can have such a text
        return b""


def _merges(merges: list[Any], ids: dict[str, int]) -> Merges:
    found = array.array("i")
    for number, entry in enumerate(merges):
        try:
            left, right = entry.split(" ") if type(entry) is str else entry
            found.append(ids[left])
            found.append(ids[right])
        except KeyError as error:
            raise UserError(f"merge {number} uses {entry!r}, which the vocabulary lacks") from error
    return Merges(found)


def _named(settings: dict[str, Any], key: str) -> str | None:
    value = settings.get(key)
    value = value.get("content") if isinstance(value, dict) else value
    return value or None


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        try:
            return own_file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"the chat template {own_file} is not UTF-8 text") from error
    value = settings.get("chat_template")
    if isinstance(value, list):  # several named ones: the default is what people mean
        value = next((t["template"] for t in value if t["name"] == "default"), None)
    if value is not None and not isinstance(value, str):
        raise UserError("the chat_template in tokenizer_config.json is no string")
    return value


def save(vocabulary: Vocabulary, folder: Path) -> None:
    """Write the three files, whole or not at all, the same bytes for the same vocabulary."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,
    }
    text = json.dumps(to_json(vocabulary), ensure_ascii=False, indent=1)
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in set(text)):
        raise UserError("the tokenizer holds a lone surrogate, which no file in UTF-8 can hold")
    write_text(folder / "tokenizer.json", text + "\n")
    write_json(folder / "tokenizer_config.json", settings | vocabulary.roles())
    if vocabulary.chat_template:
        write_text(folder / "chat_template.jinja", vocabulary.chat_template)


def to_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """What a `tokenizer.json` holds."""
    return {
        "version": "1.0",
        "truncation": vocabulary.truncation,
        "padding": vocabulary.padding,
        "added_tokens": [
            {"id": token.id, "content": token.text}
            | {flag: getattr(token, flag) for flag in _FLAGS}
            for token in vocabulary.added_tokens
        ],
        "normalizer": _plain_normalizer(vocabulary.normalizer),
        "pre_tokenizer": vocabulary.pre_tokenizer,
        "post_processor": vocabulary.post_processor,
        "decoder": _plain_decoder(vocabulary.decoder),
        "model": _model(vocabulary),
    }


def _plain_normalizer(step: Step | None) -> Step | None:
    """Our SentencePiece step in steps that others know."""
    if step is None or step["type"] != "SentencePiece":
        return step
    return normalizers.sentencepiece_as_sequence(step)


def _plain_decoder(step: Step | None) -> Step | None:
    if step is None or step["type"] != "SentencePiece":
        return step
    return decoders.sentencepiece_as_sequence(step)


def _model(vocabulary: Vocabulary) -> dict[str, Any]:
    model, texts = vocabulary.model, vocabulary.texts
    outside = {token.id for token in vocabulary.added_tokens if not token.in_vocabulary}
    ids = {t: i for i, t in enumerate(texts) if i not in outside and (t or i < len(model.tokens))}
    if isinstance(model, Unigram):
        return {
            "type": "Unigram",
            "unk_id": model.unk_id,
            "byte_fallback": model.byte_fallback,
            "vocab": [[texts[i], score] for i, score in enumerate(model.scores)],
        }
    if isinstance(model, WordPiece):
        return {
            "type": "WordPiece",
            "unk_token": texts[model.unk_id],
            "continuing_subword_prefix": model.continuing_subword_prefix,
            "max_input_chars_per_word": model.max_input_chars_per_word,
            "vocab": {text: i for text, i in ids.items() if text},
        }
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None if model.unk_id is None else texts[model.unk_id],
        "continuing_subword_prefix": model.continuing_subword_prefix or None,
        "end_of_word_suffix": model.end_of_word_suffix or None,
        "fuse_unk": model.fuse_unk,
        "byte_fallback": model.byte_fallback,
        "ignore_merges": model.ignore_merges,
        "vocab": {text: i for text, i in ids.items() if text},
        "merges": [[texts[left], texts[right]] for left, right in model.merges],
    }
