"""Tokenizer files that are damaged or of an unknown kind are refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmworks.core.errors import UserError
from lmworks.tokenizers.load import load_tokenizer
from lmworks.tokenizers.train import train_bpe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train_bpe(["the cat sat on the mat. " * 20], vocab_size=280).save(tmp_path)
    return tmp_path


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def test_a_truncated_file(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text()[:500])
    with pytest.raises(UserError, match="is not valid JSON"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda d: d["model"].update(type="Unigram"),
            "of type 'Unigram' can't be read; known: BPE",
        ),
        (lambda d: d["model"].update(byte_fallback=True), "the BPE option 'byte_fallback'"),
        (lambda d: d["model"]["merges"].append(["zzz", "a"]), r"merge \d+ uses"),
        (
            lambda d: d["model"]["merges"].append(["z", "q"]),
            "token that the vocabulary does not hold",
        ),
        (lambda d: d["model"]["vocab"].update({"a": 5000}), "the vocabulary have gaps"),
        (lambda d: d.update(pre_tokenizer={"type": "Metaspace"}), "the pre-tokenizer 'Metaspace'"),
        (lambda d: d.update(normalizer={"type": "Strip"}), "the normalizer 'Strip'"),
        (lambda d: d.pop("model"), "is not a tokenizer.json"),
        (lambda d: d["added_tokens"][0].update(lstrip=True), "swallows its neighbours"),
    ],
)
def test_what_is_not_understood_is_named(
    folder: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    change(folder, edit)
    with pytest.raises(UserError, match=message):
        load_tokenizer(folder)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)


def test_an_endpoint_has_no_tokenizer() -> None:
    with pytest.raises(UserError, match="a remote endpoint gives no tokenizer"):
        load_tokenizer("http://127.0.0.1:1/v1#model")
