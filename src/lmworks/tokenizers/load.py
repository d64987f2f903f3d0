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
    found = resolve(str(ref))
    if found.path is None:
        raise UserError(f"{ref}: a remote endpoint gives no tokenizer; name local files for it")
    return BPETokenizer(_read(found.path))


def _read(path: Path):  # type: ignore[no-untyped-def]
    from lmworks.tokenizers import gguf, huggingface

    if path.is_dir() and (path / "tokenizer.json").is_file():
        path = path / "tokenizer.json"
    if path.suffix == ".json" and path.is_file():
        return huggingface.load(path)
    from lmworks.core.gguf import find_gguf

    if found := find_gguf(path):
        return gguf.load(found)
    raise UserError(f"{path} holds no tokenizer: neither tokenizer.json nor a GGUF file is there")
