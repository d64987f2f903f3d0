"""A fixed draw of texts on which models are compared, from whatever the user has.

Short beginnings of many documents say more than a long stretch of one: what is drawn anew for an
interval are documents, so many of them make it narrow. A dozen are the least that gives one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lmworks.core.errors import UserError

if TYPE_CHECKING:
    from lmworks.data.documents import Document
    from lmworks.tokenizers.base import Tokenizer

_SHORTEST = 200  # characters: what is shorter says little


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleTexts:
    """N beginnings of documents.

    Attributes:
        texts: as they were cut.
        rows: of each the token ids (T,) int64 after the separator that stands before a document.
        num_bytes: (N,) of each as UTF-8.
        groups: (N,) str: texts of one group are alike and are resampled together.
    """

    texts: tuple[str, ...]
    rows: tuple[np.ndarray, ...]
    num_bytes: np.ndarray
    groups: np.ndarray

    @property
    def num_tokens(self) -> int:
        """Places at which a model is judged."""
        return sum(len(row) - 1 for row in self.rows)

    def words(self) -> str:
        """`40 texts in 38 groups, 10,412 tokens`."""
        groups = len(set(self.groups))
        return f"{len(self.rows):,} texts in {groups:,} groups, {self.num_tokens:,} tokens"


def sample_texts(
    source: Path | None,
    tokenizer: Tokenizer,
    *,
    max_documents: int = 40,
    characters: int = 1000,
    seed: int = 0,
) -> SampleTexts:
    """Draw documents and cut each after some characters, at a word's end.

    Args:
        source: a corpus (its held-out documents), a folder of documents, one document, or a
            .jsonl file with `text` in each row; None: docstrings of Python's library.
        max_documents: 0 takes all.
    Raises: UserError for a source without readable text of at least 200 characters.
    """
    from lmworks.training.tokens import document_separator

    if max_documents < 0 or characters < _SHORTEST:
        raise UserError(
            f"{max_documents} documents of {characters} characters: take some, of at least "
            f"{_SHORTEST} each"
        )
    documents = [d for d in _documents(source) if len(d.text.strip()) >= _SHORTEST]
    if not documents:
        raise UserError(f"{source} holds no text of {_SHORTEST} characters to measure on")
    order = np.random.default_rng(seed).permutation(len(documents))[: max_documents or None]
    drawn = [documents[index] for index in sorted(order)]
    texts = [_cut(document.text.strip(), characters) for document in drawn]
    separator = document_separator(tokenizer)
    return SampleTexts(
        texts=tuple(texts),
        rows=tuple(np.array([separator, *ids]) for ids in tokenizer.encode_batch(texts)),
        num_bytes=np.array([len(text.encode("utf-8", "replace")) for text in texts]),
        groups=np.array([document.group for document in drawn], dtype=str),
    )


def _cut(text: str, characters: int) -> str:
    if len(text) <= characters:
        return text
    end = text.rfind(" ", characters // 2, characters)
    return text[: end if end > 0 else characters]


def _documents(source: Path | None) -> Iterator[Document]:
    from lmworks.data.documents import read_documents
    from lmworks.data.python_docs import TOPICS, read_python_docs

    if source is None:
        # Quantisers calibrate on the topics unless they are told otherwise: these are others.
        yield from (d for d in read_python_docs() if not d.source.startswith(TOPICS))
    elif (source / "heldout.jsonl").is_file():
        yield from read_documents(source / "heldout.jsonl")
    elif source.suffix == ".jsonl":
        yield from _lines(source)
    else:
        yield from _files(source)


def _lines(path: Path) -> Iterator[Document]:
    """Rows of a .jsonl file. Raises: UserError naming the line that is none."""
    import json

    from lmworks.data.documents import Document

    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):  # `splitlines` would split at U+2028 as well
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise UserError(f"{path}, line {number} is not valid JSON") from None
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise UserError(f"{path}, line {number} has no `text`")
            name = str(row.get("id") or number)
            group = str(row.get("group") or name)
            yield Document(id=name, group=group, source=str(path), title=name, text=row["text"])


def _files(source: Path) -> Iterator[Document]:
    from lmworks.data.documents import Document
    from lmworks.data.folder import FolderConfig, read_folder

    for document in read_folder(source, FolderConfig()):
        if isinstance(document, Document):
            yield document
        elif source.is_file():
            raise UserError(f"{source} gives no text: {document.evidence}")
