"""`load_reranker`: from a reference to something that tells how well texts answer a query.

    reranker = load_reranker("runs/cross-encoder")
    scores = reranker.score("who wrote Emma?", ["Jane Austen did.", "It rains."])

A model that ends in one number reads query and text together (a cross-encoder); its score goes
through a sigmoid, as sentence-transformers has it. Any other makes a vector of each, and the score
is their cosine: faster, and less exact. `method` says which it is.

Source: Nogueira & Cho 2019, arXiv 1901.04085, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from lmworks.core.errors import UserError
from lmworks.core.references import resolve
from lmworks.inference.embedding import Embedder, load_embedder, unit
from lmworks.inference.row_batches import RowBatches, RowRequest
from lmworks.inference.text_rows import Row, TextRows, stacked

if TYPE_CHECKING:
    from lmworks.models.model import Model
    from lmworks.tokenizers.tokenizer import PipelineTokenizer

Method = Literal["cross-encoder", "cosine"]
_QUERY_PROMPTS, _TEXT_PROMPTS = ("query",), ("document", "passage")


class Reranker(Protocol):
    """Scores texts by a query. Any number of threads may call it."""

    method: Method

    def rows(self, query: str, texts: Sequence[str], *, truncate: bool = True) -> list[Row]:
        """What `submit` takes. Raises: TextTooLong without `truncate`; UserError for no text."""
        ...

    def submit(self, rows: Sequence[Row]) -> RowRequest:
        """Queue rows; `finish` makes scores of what they give."""
        ...

    def finish(self, results: Sequence[Any], *, raw: bool = False) -> np.ndarray:
        """(N,) float32, higher is better. `raw`: a cross-encoder's number as it is."""
        ...

    def score(self, query: str, texts: Sequence[str]) -> np.ndarray:
        """(N,) float32: from 0 to 1 of a cross-encoder, from -1 to 1 as a cosine."""
        ...

    def close(self) -> None:
        """End what is under way."""
        ...


class CrossEncoder:
    """Query and text read together by a model that ends in one number."""

    method: Method = "cross-encoder"

    def __init__(
        self,
        model: Model,
        tokenizer: PipelineTokenizer,
        name: str = "local",
        *,
        max_length: int | None = None,
    ) -> None:
        if not is_cross_encoder(model.config):
            raise UserError(f"{name} does not end in one number: it is no cross-encoder")
        self.model, self.tokenizer, self.name = model, tokenizer, name
        length = min(max_length or 8192, model.config.max_position_embeddings)
        self.text_rows = TextRows(tokenizer, length)
        self._batches = RowBatches(self._numbers)

    @property
    def max_length(self) -> int:
        """Tokens of query and text that the model reads."""
        return self.text_rows.max_length

    def rows(self, query: str, texts: Sequence[str], *, truncate: bool = True) -> list[Row]:
        """See `Reranker`."""
        return self.text_rows.of_pairs(query, texts, truncate=truncate)

    def submit(self, rows: Sequence[Row]) -> RowRequest:
        """See `Reranker`."""
        return self._batches.submit(rows)

    def finish(self, results: Sequence[Any], *, raw: bool = False) -> np.ndarray:
        """See `Reranker`."""
        numbers = np.array(results, dtype=np.float32)
        if raw:
            return numbers
        # Of what lies far below zero the exponential would overflow.
        small = np.exp(-np.abs(numbers))
        found: np.ndarray = np.where(numbers >= 0, 1, small) / (1 + small)
        return found

    def score(self, query: str, texts: Sequence[str]) -> np.ndarray:
        """See `Reranker`."""
        return self.finish(self.submit(self.rows(query, texts)).wait())

    def close(self) -> None:
        """See `Reranker`."""
        self._batches.close()

    def _numbers(self, rows: Sequence[Row]) -> list[float]:
        import torch

        ids, types, mask = stacked(rows, self.text_rows.padding_id)
        told = {"token_type_ids": types} if self.model.embed_types is not None else {}
        with torch.inference_mode():
            found: list[float] = self.model(ids, attention_mask=mask, **told).reshape(-1).tolist()
        return found


class CosineReranker:
    """Query and texts as vectors of an `Embedder`; the score is their cosine."""

    method: Method = "cosine"

    def __init__(self, embedder: Embedder) -> None:
        self.embedder, self.name = embedder, embedder.name
        known = embedder.prompts
        default = embedder.default_prompt
        self._query = next((name for name in _QUERY_PROMPTS if name in known), default)
        self._text = next((name for name in _TEXT_PROMPTS if name in known), default)

    @property
    def max_length(self) -> int:
        """Tokens of a text that the model reads."""
        return self.embedder.max_length

    def rows(self, query: str, texts: Sequence[str], *, truncate: bool = True) -> list[Row]:
        """See `Reranker`: the query's row, then those of the texts."""
        first = self.embedder.text_rows([query], self._query, truncate)
        return first + self.embedder.text_rows(texts, self._text, truncate)

    def submit(self, rows: Sequence[Row]) -> RowRequest:
        """See `Reranker`."""
        return self.embedder.submit(rows)

    def finish(self, results: Sequence[Any], *, raw: bool = False) -> np.ndarray:
        """See `Reranker`; `raw` changes nothing."""
        vectors = unit(self.embedder.finish(results))
        found: np.ndarray = vectors[1:] @ vectors[0]
        return found

    def score(self, query: str, texts: Sequence[str]) -> np.ndarray:
        """See `Reranker`."""
        return self.finish(self.submit(self.rows(query, texts)).wait())

    def close(self) -> None:
        """See `Reranker`."""
        self.embedder.close()


def is_cross_encoder(config: Any) -> bool:
    """Whether a model of this config ends in one number for its whole input."""
    from lmworks.models.config import ClassHeadConfig, ValueHeadConfig

    head = getattr(config, "head", None)
    if isinstance(head, ClassHeadConfig):
        return head.num_classes == 1 and head.pooling is not None
    return isinstance(head, ValueHeadConfig) and head.pooling is not None


def load_reranker(
    ref: str | Path, *, base: str = "", max_length: int | None = None
) -> CrossEncoder | CosineReranker:
    """The model that `ref` stands for, ready to score texts by a query; see the module.

    Args:
        base: the model under an adapter, instead of the one that its folder names.
    Raises: UserError when the reference leads nowhere, or the model reads no texts.
    """
    from lmworks.models.load import load_single_model
    from lmworks.models.sentence_transformers import sentence_settings
    from lmworks.models.size import model_size
    from lmworks.tokenizers.load import load_tokenizer

    path = resolve(str(ref)).path
    if path is None:
        raise UserError(f"{ref} is a remote endpoint: ask it to rerank itself")
    if not is_cross_encoder(model_size(path, base=base).config):
        return CosineReranker(load_embedder(ref, base=base, max_length=max_length))
    return CrossEncoder(
        load_single_model(path, packed=True, base=base),
        load_tokenizer(path),
        str(ref),
        max_length=max_length or sentence_settings(path).max_length,
    )
