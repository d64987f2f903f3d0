"""`tokenizer.json` and `tokenizer_config.json`, both ways, for byte-level BPE.

What is not understood is refused by name: a tokenizer that is nearly right gives wrong ids in
silence. Left out for now: Unigram, WordPiece, SentencePiece-style BPE, added tokens that swallow
the spaces around them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.files import read_json, write_json, write_text
from lmworks.tokenizers.bpe import Vocabulary, from_alphabet, to_alphabet
from lmworks.tokenizers.patterns import PATTERNS

_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD")


def load(path: Path) -> Vocabulary:
    """Read `tokenizer.json` and the config and chat template beside it.

    Raises: UserError naming what is damaged or unknown.
    """
    data = read_json(path, "tokenizer")
    try:
        model = data["model"]
        kind = model.get("type") or ("BPE" if "merges" in model else "of no stated type")
        if kind != "BPE":
            raise UserError(f"{path}: tokenizer models of type {kind!r} can't be read; known: BPE")
        return _vocabulary(path, data, model)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise UserError(
            f"{path} is not a tokenizer.json that can be read "
            f"({type(error).__name__}: {str(error)[:80]})"
        ) from error


def _vocabulary(path: Path, data: dict[str, Any], model: dict[str, Any]) -> Vocabulary:
    for option in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(option):
            raise UserError(f"{path}: the BPE option {option!r} can't be read")
    by_text: dict[str, int] = model["vocab"]
    added = data.get("added_tokens") or []
    for entry in added:
        if entry.get("lstrip") or entry.get("rstrip") or entry.get("single_word"):
            raise UserError(f"{path}: the added token {entry['content']!r} swallows its neighbours")
    specials = {entry["content"]: int(entry["id"]) for entry in added}
    size = max([*by_text.values(), *specials.values()]) + 1
    if size > len(by_text) + len(specials):
        raise UserError(f"{path}: the ids of the vocabulary have gaps")
    tokens: list[bytes] = [b""] * size
    for text, token_id in by_text.items():
        if text not in specials:
            tokens[token_id] = _bytes_of(text, path)
    for text, token_id in specials.items():
        tokens[token_id] = text.encode()
    config = path.with_name("tokenizer_config.json")
    settings = read_json(config, "tokenizer config") if config.is_file() else {}
    return Vocabulary(
        tokens=tuple(tokens),
        merges=tuple(_merges(model["merges"], by_text, path)),
        special_tokens=specials,
        expressions=_expressions(data.get("pre_tokenizer"), path),
        normalization=_normalization(data.get("normalizer"), path),
        ignore_merges=bool(model.get("ignore_merges")),
        control_tokens=frozenset(e["content"] for e in added if e.get("special")),
        bos_token=_named(settings, "bos_token"),
        eos_token=_named(settings, "eos_token"),
        pad_token=_named(settings, "pad_token"),
        chat_template=_template(path.parent, settings),
    )


def _bytes_of(text: str, path: Path) -> bytes:
    try:
        return from_alphabet(text)
    except KeyError as error:
        raise UserError(f"{path}: the token {text!r} is not in the byte alphabet") from error


def _merges(merges: list[Any], ids: dict[str, int], path: Path) -> list[tuple[int, int]]:
    pairs = []
    for number, entry in enumerate(merges):
        left, right = entry.split(" ") if isinstance(entry, str) else entry
        if left not in ids or right not in ids:
            raise UserError(f"{path}: merge {number} uses {entry!r}, which the vocabulary lacks")
        pairs.append((ids[left], ids[right]))
    return pairs


def _expressions(step: dict[str, Any] | None, path: Path) -> tuple[str, ...]:
    """Pre-tokenizers as expressions that are applied one after the other."""
    if step is None:
        return ()
    kind = step["type"]
    if kind == "Sequence":
        parts = [_expressions(inner, path) for inner in step["pretokenizers"]]
        return tuple(expression for part in parts for expression in part)
    if kind == "ByteLevel":
        if step.get("add_prefix_space"):
            raise UserError(f"{path}: ByteLevel with add_prefix_space can't be read")
        return PATTERNS["gpt2"] if step.get("use_regex", True) else ()
    if kind == "Digits":
        return (r"\p{N}",) if step.get("individual_digits") else (r"\p{N}+",)
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        import regex

        pattern = step["pattern"]
        return (pattern.get("Regex") or regex.escape(pattern["String"]),)
    raise UserError(
        f"{path}: the pre-tokenizer {kind!r} with these settings can't be read; "
        "known: Sequence, ByteLevel, Digits, Split (isolated)"
    )


def _normalization(step: dict[str, Any] | None, path: Path) -> str | None:
    if step is None:
        return None
    if step["type"] in _NORMALIZERS:
        return str(step["type"])
    if step["type"] == "Sequence" and not step["normalizers"]:
        return None
    raise UserError(
        f"{path}: the normalizer {step['type']!r} can't be read; known: {', '.join(_NORMALIZERS)}"
    )


def _named(settings: dict[str, Any], key: str) -> str | None:
    value = settings.get(key)
    return value.get("content") if isinstance(value, dict) else value


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    own_file = folder / "chat_template.jinja"
    if own_file.is_file():
        return own_file.read_text(encoding="utf-8")
    value = settings.get("chat_template")
    if isinstance(value, list):  # several named ones: the default is what people mean
        value = next((t["template"] for t in value if t["name"] == "default"), None)
    return value


def save(vocabulary: Vocabulary, folder: Path) -> None:
    """Write the three files, whole or not at all, the same bytes for the same vocabulary."""
    ids = {name: vocabulary.special_tokens.get(name or "") for name in _roles(vocabulary).values()}
    specials = vocabulary.special_tokens
    numbers = set(specials.values())
    texts = [
        token.decode() if i in numbers else to_alphabet(token)
        for i, token in enumerate(vocabulary.tokens)
    ]
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token_id,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": text in vocabulary.control_tokens,
            }
            for text, token_id in sorted(specials.items(), key=lambda item: item[1])
        ],
        "normalizer": {"type": vocabulary.normalization} if vocabulary.normalization else None,
        "pre_tokenizer": _pre_tokenizer(vocabulary.expressions),
        "post_processor": None,
        "decoder": _byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": vocabulary.ignore_merges,
            "vocab": {text: token_id for token_id, text in enumerate(texts)},
            "merges": [[texts[left], texts[right]] for left, right in vocabulary.merges],
        },
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,
    } | {role: name for role, name in _roles(vocabulary).items() if ids.get(name) is not None}
    write_text(folder / "tokenizer.json", json.dumps(data, ensure_ascii=False, indent=1) + "\n")
    write_json(folder / "tokenizer_config.json", settings)
    if vocabulary.chat_template:
        write_text(folder / "chat_template.jinja", vocabulary.chat_template)


def _roles(vocabulary: Vocabulary) -> dict[str, str | None]:
    return {
        "bos_token": vocabulary.bos_token,
        "eos_token": vocabulary.eos_token,
        "pad_token": vocabulary.pad_token,
    }


def _byte_level() -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }


def _pre_tokenizer(expressions: tuple[str, ...]) -> dict[str, Any]:
    splits: list[dict[str, Any]] = [
        {
            "type": "Split",
            "pattern": {"Regex": expression},
            "behavior": "Isolated",
            "invert": False,
        }
        for expression in expressions
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, _byte_level()]}
