"""`load_tokenizer(reference)`: one door to every format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lmworks.core.errors import UserError
from lmworks.core.files import read_json
from lmworks.core.references import resolve
from lmworks.tokenizers.tokenizer import PipelineTokenizer
from lmworks.tokenizers.vocabulary import Vocabulary

_IN_A_FOLDER = ("tokenizer.json", "tekken.json", "tokenizer.model", "spiece.model", "vocab.txt")


def load_tokenizer(ref: str | Path) -> PipelineTokenizer:
    """The tokenizer of a folder, a file of any known kind, or any other reference.

    Files: `tokenizer.json`, SentencePiece `.model`, `.tiktoken` ranks, `tekken.json`, BERT's
    `vocab.txt`, and GGUF.

    Raises: UserError when there is none, or when its kind can't be read.
    """
    path = resolve(str(ref)).path
    if path is None:
        raise UserError(f"{ref}: a remote endpoint gives no tokenizer; name local files for it")
    try:
        return PipelineTokenizer(_read(path))
    except UserError as error:
        where = "" if str(path) in str(error) else f"{path}: "
        raise UserError(f"{where}{error}") from error


def _read(path: Path) -> Vocabulary:
    from lmworks.core.gguf import find_gguf
    from lmworks.tokenizers import gguf

    found = path
    if path.is_dir():
        found = next((path / name for name in _IN_A_FOLDER if (path / name).is_file()), path)
    if found.is_file() and (reader := _reader(found)):
        return reader(found)
    if weights := find_gguf(path):
        return gguf.load(weights)
    if (config := path / "adapter_config.json").is_file():  # an adapter has its base's
        base = read_json(config, "adapter config")
        name = base.get("base_model_name_or_path") if isinstance(base, dict) else None
        if isinstance(name, str) and (under := resolve(name).path) and under != path:
            return _read(under)
    raise UserError(f"{path} holds no tokenizer: neither {', '.join(_IN_A_FOLDER)} nor a GGUF file")


def _reader(path: Path) -> Callable[[Path], Vocabulary] | None:
    from lmworks.tokenizers import clip_bpe, huggingface, sentencepiece, tiktoken, vocab_txt

    name = path.name
    if name == "claude.json":
        return tiktoken.load_ranks_json
    if name.endswith(".json"):
        return tiktoken.load_tekken if "tekken" in name else huggingface.load
    if name.endswith(".tiktoken"):
        return tiktoken.load
    if name.endswith((".model", ".spm")) or ".model.v" in name:
        return sentencepiece.load
    if name.endswith("bpe_simple_vocab_16e6.txt.gz"):
        return clip_bpe.load
    return vocab_txt.load if name.endswith("vocab.txt") else None
