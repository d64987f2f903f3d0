"""`load_embedder`: from a reference to something that turns texts into vectors.

    embedder = load_embedder("minilm-l6")
    vectors = embedder.encode(["a text", "another one"])      # (2, 384) float32

| reference | vector |
|---|---|
| a folder of sentence-transformers | as its steps say: pooling, length one, prompts, limit |
| an encoder or a decoder without them | the mean of its last states, of length one |

Rows run in batches of one length (`row_batches.py`); who stands beside a text does not change its
vector beyond rounding. Left out: images, and matrices of vectors per token (ColBERT).

Sources: pooling: Reimers & Gurevych 2019, arXiv 1908.10084, section 3; vectors that can be cut off:
Kusupati et al. 2022 (Matryoshka), arXiv 2205.13147.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lmworks.core.errors import UserError, unknown_name
from lmworks.core.references import resolve
from lmworks.inference.row_batches import RowBatches, RowRequest
from lmworks.inference.text_rows import Row, TextRows, stacked

if TYPE_CHECKING:
    from lmworks.models.config import Pooling
    from lmworks.models.model import Model
    from lmworks.tokenizers.tokenizer import PipelineTokenizer

PoolingName = Literal["auto", "mean", "first", "last"]
_ENDLESS = 8192  # tokens of a text, where the model's context is longer


class Embedder:
    """Texts to vectors. Any number of threads may call it.

    Args:
        model: anything that has states; one that ends in a vector pools as it was made to.
        pooling: which states make the vector; auto: the model's own way, else the mean.
        normalize: vectors of length one; None: the model's own way, else yes.
        max_length: tokens of a text; None: the model's context, at most 8192.
        prompts: texts that go before a text, by name, such as {"query": "query: "}.
        default_prompt: the prompt of texts that name none.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: PipelineTokenizer,
        name: str = "local",
        *,
        pooling: PoolingName = "auto",
        normalize: bool | None = None,
        max_length: int | None = None,
        lower: bool = False,
        prompts: Mapping[str, str] | None = None,
        default_prompt: str = "",
    ) -> None:
        from lmworks.models.config import EmbeddingHeadConfig

        self.model, self.tokenizer, self.name = model, tokenizer, name
        head = model.config.head
        own = isinstance(head, EmbeddingHeadConfig)
        self.pooling: Pooling | None = None if own and pooling == "auto" else _pooling(pooling)
        self.normalize = (not own or head.normalize) if normalize is None else normalize  # type: ignore[union-attr]
        context = model.config.max_position_embeddings
        length = min(max_length or _ENDLESS, context)
        self.rows = TextRows(tokenizer, length, lower=lower)
        self.prompts, self.default_prompt = dict(prompts or {}), default_prompt
        self._batches = RowBatches(self._vectors)

    @property
    def max_length(self) -> int:
        """Tokens of a text that the model reads."""
        return self.rows.max_length

    @property
    def dimensions(self) -> int:
        """Numbers of a vector."""
        size = getattr(self.model.config.head, "size", None)
        return self.model.config.hidden_size if self.pooling or size is None else int(size)

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        dimensions: int | None = None,
        prompt: str | None = None,
        truncate: bool = True,
    ) -> np.ndarray:
        """Vectors (N, dimensions) float32 of N texts, or (dimensions,) of one that stands alone.

        Args:
            dimensions: keep the first so many numbers, at length one again where vectors are
                (Matryoshka); of use for models that were trained for it.
            prompt: the name of a prompt; None: the model's default, "" for none.
            truncate: cut texts that are too long; without it they raise TextTooLong.
        Raises: UserError for dimensions or a prompt that there are not.
        """
        single = isinstance(texts, str)
        rows = self.text_rows([texts] if isinstance(texts, str) else texts, prompt, truncate)
        vectors = self.finish(self.submit(rows).wait(), dimensions)
        found: np.ndarray = vectors[0] if single else vectors
        return found

    def text_rows(
        self, texts: Sequence[str], prompt: str | None = None, truncate: bool = False
    ) -> list[Row]:
        """Texts as rows for `submit`; errors as in `encode`."""
        name = self.default_prompt if prompt is None else prompt
        if name and name not in self.prompts:
            raise unknown_name("prompt", name, self.prompts)
        start = self.prompts[name] if name else ""
        return self.rows.of_texts([start + text for text in texts], truncate=truncate)

    def submit(self, rows: Sequence[Row]) -> RowRequest:
        """Queue rows; `wait` gives a vector for each, which `finish` makes an array of."""
        return self._batches.submit(rows)

    def finish(self, vectors: Sequence[np.ndarray], dimensions: int | None = None) -> np.ndarray:
        """Vectors as (N, dimensions). Raises: UserError for more dimensions than there are."""
        size = self.dimensions
        if dimensions is not None and not 1 <= dimensions <= size:
            raise UserError(f"dimensions must be from 1 to this model's {size}, not {dimensions}")
        if not vectors:
            return np.empty((0, dimensions or size), dtype=np.float32)
        whole: np.ndarray = np.stack(vectors)
        if dimensions is None or dimensions == size:
            return whole
        cut: np.ndarray = whole[:, :dimensions]
        return unit(cut) if self.normalize else np.ascontiguousarray(cut)

    def close(self) -> None:
        """End what is under way."""
        self._batches.close()

    def _vectors(self, rows: Sequence[Row]) -> list[np.ndarray]:
        import torch

        from lmworks.models.heads import pool

        ids, types, mask = stacked(rows, self.rows.padding_id)
        has_types = self.model.embed_types is not None
        with torch.inference_mode():
            states = self.model.hidden_states(
                ids, attention_mask=mask, token_type_ids=types if has_types else None
            )
            if self.pooling is None:
                head: Any = self.model.head
                vectors = head(states, mask, ids)
            else:
                vectors = pool(states, self.pooling, mask, ids)
            if self.normalize:
                vectors = torch.nn.functional.normalize(vectors.float(), dim=-1)
            return list(vectors.float().numpy())


def unit(vectors: np.ndarray) -> np.ndarray:
    """(N, E) at length one; a vector of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: np.ndarray = vectors / np.maximum(lengths, 1e-12)
    return found


def load_embedder(
    ref: str | Path,
    *,
    base: str = "",
    pooling: PoolingName = "auto",
    normalize: bool | None = None,
    max_length: int | None = None,
) -> Embedder:
    """The model that `ref` stands for, ready to turn texts into vectors; see `Embedder`.

    Args:
        base: the model under an adapter, instead of the one that its folder names.
    Raises: UserError when the reference leads nowhere, or the model has no states of a text.
    """
    from lmworks.models.load import load_single_model
    from lmworks.models.sentence_transformers import sentence_settings
    from lmworks.tokenizers.load import load_tokenizer

    path = resolve(str(ref)).path
    if path is None:
        raise UserError(f"{ref} is a remote endpoint: ask it for vectors itself")
    model = load_single_model(path, packed=True, base=base)
    check_embeds(model.config, str(ref))
    settings = sentence_settings(path)
    return Embedder(
        model,
        load_tokenizer(path),
        str(ref),
        pooling=pooling,
        normalize=normalize,
        max_length=max_length or settings.max_length,
        lower=settings.lower,
        prompts=settings.prompts,
        default_prompt=settings.default_prompt,
    )


def check_embeds(config: Any, name: str) -> None:
    """Raises: UserError for a model that makes no vectors of texts."""
    if config.encoder is not None or config.inputs is not None:
        raise UserError(f"{name} is no model of plain texts: vectors need an encoder or a decoder")


def _pooling(name: str) -> Pooling:
    from lmworks.models.config import FirstPooling, LastPooling, MeanPooling

    known: dict[str, Pooling] = {
        "auto": MeanPooling(),
        "mean": MeanPooling(),
        "first": FirstPooling(),
        "last": LastPooling(),
    }
    if name not in known:
        raise unknown_name("pooling", name, known)
    return known[name]
