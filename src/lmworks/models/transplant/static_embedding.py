"""A small static embedding of tokens: what stands near them in text, made dense.

Words that stand among the same neighbours mean much the same. Neighbours within a window are
counted, nearer ones more; counts become positive pointwise mutual information; the largest
singular directions of that matrix are the vectors. The text is read in both tokenisations, over
one table in which shared tokens are one, so that new tokens, shared tokens and the old pieces of
new ones all lie in one space.

A count-based embedding is exact and repeatable where training a skip-gram model is neither, and
factorises nearly the same matrix (Levy and Goldberg 2014).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from lmworks.core.errors import UserError
from lmworks.core.progress import say, track
from lmworks.models.transplant.base import Auxiliary, Relation
from lmworks.models.transplant.settings import StaticEmbeddingConfig

if TYPE_CHECKING:
    import torch

    from lmworks.tokenizers.base import Tokenizer

_MOST_TOKENS = 20_000_000  # of the text, in both tokenisations; more changes little
_AT_ONCE = 1 << 20  # tokens counted together
_OVERSAMPLING = 16
_POWERS = 4


def static_embedding(
    old: Tokenizer,
    new: Tokenizer,
    relation: Relation,
    texts: Iterable[str],
    config: StaticEmbeddingConfig,
    *,
    seed: int = 0,
) -> Auxiliary:
    """Vectors of length 1 for the tokens of both vocabularies that `texts` hold often enough.

    Raises: UserError when the text is too short to compare any tokens.
    Source: Levy, Goldberg and Dagan 2015, "Improving distributional similarity with lessons learned
        from word embeddings": PPMI, contexts smoothed with the power 0.75, root of the singular
        values.
    """
    import torch

    table = _one_table(relation)
    pairs = _Pairs(relation.num_old + len(relation.missing), config.window)
    for here, there in _readings(old, new, table, texts):
        pairs.add(here, there)
    rows, columns, counts = pairs.finish()
    kept = np.flatnonzero(pairs.seen.max(0) >= config.min_count)
    if len(kept) < 2:
        raise UserError("the text is too short to compare tokens: give more with --text")
    place = np.full(pairs.size, -1)
    place[kept] = np.arange(len(kept))
    inside = (place[rows] >= 0) & (place[columns] >= 0)
    matrix = _ppmi(place[rows[inside]], place[columns[inside]], counts[inside], len(kept))
    vectors = torch.zeros(pairs.size, min(config.dim, len(kept)))
    vectors[torch.from_numpy(kept)] = _directions(matrix, vectors.shape[1], seed)
    return Auxiliary(new=vectors[torch.from_numpy(table)], old=vectors[: relation.num_old])


def _one_table(relation: Relation) -> np.ndarray:
    """(N,) place of every new id: that of its old id, or one behind all old ids."""
    table = relation.shared.copy()
    table[relation.missing] = relation.num_old + np.arange(len(relation.missing))
    return table


def _readings(
    old: Tokenizer, new: Tokenizer, table: np.ndarray, texts: Iterable[str]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each text in both tokenisations, as places in the table."""
    total = 0
    with track("reading text for the auxiliary embedding") as bar:
        for text in texts:
            here = np.array(old.encode(text), dtype=np.int64)
            there = table[np.array(new.encode(text), dtype=np.int64)]
            yield here, there
            bar.advance()
            total += len(here) + len(there)
            if total > _MOST_TOKENS:
                say(f"  the auxiliary embedding is made of the first {total:,} tokens of the text")
                return


class _Pairs:
    """How much each pair of neighbours weighs, and how often each token is seen in each reading."""

    def __init__(self, size: int, window: int) -> None:
        self.size, self.seen = size, np.zeros((2, size), dtype=np.int64)
        self._window, self._gap = window, np.full(window, -1)  # no pair reaches over a gap
        self._keys: np.ndarray = np.empty(0, np.int64)
        self._weights: np.ndarray = np.empty(0)
        self._held: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        self._num_held = 0

    def add(self, here: np.ndarray, there: np.ndarray) -> None:
        """One text in both readings."""
        for held, tokens in zip(self._held, (here, there)):
            held += [tokens, self._gap]
            self._num_held += len(tokens)
        if self._num_held > _AT_ONCE:
            self._flush()

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, columns and weights of all pairs, each pair once, in order."""
        self._flush()
        return self._keys // self.size, self._keys % self.size, self._weights

    def _flush(self) -> None:
        keys, weights = [self._keys], [self._weights]
        for reading, held in enumerate(self._held):
            tokens = np.concatenate([*held, self._gap])
            held.clear()
            self.seen[reading] += np.bincount(tokens[tokens >= 0], minlength=self.size)
            for distance in range(1, self._window + 1):
                left, right = tokens[:-distance], tokens[distance:]
                both = (left >= 0) & (right >= 0)
                left, right = left[both], right[both]
                keys += [left * self.size + right, right * self.size + left]
                weight = (self._window - distance + 1) / self._window
                weights.append(np.full(2 * len(left), weight))
        self._num_held = 0
        self._keys, place = np.unique(np.concatenate(keys), return_inverse=True)
        self._weights = np.bincount(place, np.concatenate(weights), len(self._keys))


def _ppmi(rows: np.ndarray, columns: np.ndarray, counts: np.ndarray, size: int) -> torch.Tensor:
    """log of P(row, column) / (P(row) P(column)), where it is above zero: sparse (S, S)."""
    import torch

    per_row = np.bincount(rows, counts, size)
    smoothed = np.bincount(columns, counts, size) ** 0.75
    chance = per_row[rows] * smoothed[columns] / smoothed.sum()
    values = np.log(counts / chance)
    kept = values > 0
    index = torch.from_numpy(np.stack([rows[kept], columns[kept]]))
    numbers = torch.from_numpy(values[kept].astype(np.float32))
    return torch.sparse_coo_tensor(index, numbers, (size, size), check_invariants=False).coalesce()


def _directions(matrix: torch.Tensor, dim: int, seed: int) -> torch.Tensor:
    """(S, dim) left singular vectors times the root of their values, each row of length 1.

    Source: Halko, Martinsson and Tropp 2011, arXiv 0909.4061, algorithms 4.4 and 5.1.
    """
    import torch

    size = matrix.shape[0]
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(size, min(size, dim + _OVERSAMPLING), generator=generator)
    turned = matrix.t().coalesce()
    for _ in range(_POWERS):
        basis = torch.linalg.qr(torch.sparse.mm(matrix, basis)).Q
        basis = torch.linalg.qr(torch.sparse.mm(turned, basis)).Q
    left, values, _ = torch.linalg.svd(torch.sparse.mm(matrix, basis), full_matrices=False)
    vectors = left[:, :dim] * values[:dim].sqrt()
    return torch.nn.functional.normalize(vectors, dim=1)
