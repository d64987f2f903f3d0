"""`load_tokenizer(reference)`: one door to every format."""

from __future__ import annotations

from pathlib import Path

from lmworks.core.errors import UserError
from lmworks.core.references import resolve
from lmworks.tokenizers.bpe import BPETokenizer


def load_tokenizer(ref: str | Path) -> BPETokenizer:
    """The tokenizer of a folder, a `tokenizer.json`, a GGUF file, or any other reference.

    Raises: UserError when there is none, or when its kind can't be read.
    """
    path = resolve(str(ref)).path
    if path is None:
        raise UserError(f"{ref}: a remote endpoint gives no tokenizer; name local files for it")
    try:
        return _read(path)
    except UserError as error:
        where = "" if str(path) in str(error) else f"{path}: "
        raise UserError(f"{where}{error}") from error


def _read(path: Path) -> BPETokenizer:
    from lmworks.core.gguf import find_gguf
    from lmworks.tokenizers import gguf, huggingface

    if path.is_dir() and (path / "tokenizer.json").is_file():
        path = path / "tokenizer.json"
    if path.suffix == ".json" and path.is_file():
        return BPETokenizer(huggingface.load(path))
    if found := find_gguf(path):
        return BPETokenizer(gguf.load(found))
    raise UserError(f"{path} holds no tokenizer: neither tokenizer.json nor a GGUF file is there")
