"""Contrastive objectives for encoders: a text's vector near that of what belongs to it.

In a batch the other rows' texts are the wrong answers, so all vectors are needed together;
`rows_at_once` makes them a few rows at a time with the same result (see `in_parts`). Matryoshka
dimensions train the first numbers of a vector to be a vector by themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F

from lmworks.core.config import option
from lmworks.core.errors import UserError
from lmworks.training.objectives.base import Loss
from lmworks.training.objectives.in_parts import in_parts
from lmworks.training.objectives.preference_parts import check_positive

if TYPE_CHECKING:
    from lmworks.training.embedding_rows import EmbeddingBatch

Vectors = tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class InBatch:
    """Find a text's own among those of the whole batch (InfoNCE, multiple negatives ranking).

    Wrong answers of a row's own (`negative`) stand in the same choice. A text that another row has
    as well is not held against it.

    Source: van den Oord et al. 2018, arXiv 1807.03748, eq. 4; Henderson et al. 2017, arXiv
        1705.00652, section 4.4; Matryoshka: Kusupati et al. 2022, arXiv 2205.13147, eq. 1.
    """

    whole_batch: ClassVar[bool] = True

    scale: float = option(20.0, help="what cosines are multiplied by, one over a temperature")
    symmetric: bool = option(False, help="whether the positives have to find their anchors too")
    dimensions: list[int] = option(
        [], help="sizes at which the vectors shall be of use, Matryoshka"
    )
    rows_at_once: int = option(0, help="rows that go through the model at a time; 0: all")

    def __post_init__(self) -> None:
        check_positive("in_batch", "scale", self.scale)

    def __call__(self, model: Any, batch: EmbeddingBatch) -> Loss:
        """Mean over rows. Metric: share of rows that find their own first."""
        vectors = embed(model, batch, self.rows_at_once)
        excluded = _same_text(batch)
        value = over_dimensions(
            vectors, self.dimensions, lambda parts: self._loss(parts, excluded).mean()
        )
        with torch.no_grad():
            found = self._scores(vectors, excluded).argmax(dim=1)
            right = (found == torch.arange(len(found), device=found.device)).float().mean()
        return Loss(value=value, num_targets=batch.num_targets, metrics={"accuracy": right.item()})

    def _scores(self, vectors: Vectors, excluded: torch.Tensor) -> torch.Tensor:
        """(B, B + negatives): scaled cosines, those that do not count at minus infinity."""
        anchors, positives, negatives = vectors
        others = F.normalize(torch.cat([positives, *negatives]).float(), dim=-1)
        scores = F.normalize(anchors.float(), dim=-1) @ others.T * self.scale
        return scores.masked_fill(excluded, -torch.inf)

    def _loss(self, vectors: Vectors, excluded: torch.Tensor) -> torch.Tensor:
        scores = self._scores(vectors, excluded)
        own = torch.arange(len(scores), device=scores.device)
        loss = F.cross_entropy(scores, own, reduction="none")
        if not self.symmetric:
            return loss
        back = scores[:, : len(scores)].T
        return (loss + F.cross_entropy(back, own, reduction="none")) / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Triplet:
    """Keep what belongs to a text nearer to it than what does not, by a margin.

    Source: Schroff et al. 2015 (FaceNet), arXiv 1503.03832, eq. 1; distances are not squared, as in
        sentence-transformers.
    """

    margin: float = option(0.3, help="how much farther off the wrong text has to be")
    distance: Literal["cosine", "euclidean"] = option("cosine", help="how far is told")
    dimensions: list[int] = option(
        [], help="sizes at which the vectors shall be of use, Matryoshka"
    )

    def __post_init__(self) -> None:
        check_positive("triplet", "margin", self.margin)

    def __call__(self, model: Any, batch: EmbeddingBatch) -> Loss:
        """Mean over rows. Metric: share of rows whose own text is nearer.

        Raises: UserError for rows without a wrong text.
        """
        if not batch.negatives:
            raise UserError("triplet: the rows have no 'negative': give some, or use in_batch")
        vectors = embed(model, batch, 0)
        value = over_dimensions(vectors, self.dimensions, lambda parts: self._loss(parts).mean())
        with torch.no_grad():
            near, far = self._distances(vectors)
            right = (near < far).float().mean().item()
        return Loss(value=value, num_targets=batch.num_targets, metrics={"accuracy": right})

    def _loss(self, vectors: Vectors) -> torch.Tensor:
        near, far = self._distances(vectors)
        return (near - far + self.margin).clamp(min=0)

    def _distances(self, vectors: Vectors) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) to the right text, and to the nearest wrong one."""
        anchors, positives, negatives = vectors
        far = torch.stack([self._apart(anchors, each) for each in negatives])
        return self._apart(anchors, positives), far.min(dim=0).values

    def _apart(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        if self.distance == "euclidean":
            return F.pairwise_distance(first.float(), second.float())
        return 1 - F.cosine_similarity(first.float(), second.float())


def embed(model: Any, batch: EmbeddingBatch, rows_at_once: int) -> Vectors:
    """Vectors (B, E) of anchors, positives and each of the negatives."""

    def encode(part: Any) -> torch.Tensor:
        found: torch.Tensor = model(part.input_ids, attention_mask=part.attention_mask)
        return found

    anchors, positives, *negatives = (
        in_parts(encode, texts, rows_at_once)
        for texts in (batch.anchors, batch.positives, *batch.negatives.values())
    )
    return anchors, positives, negatives


def over_dimensions(
    vectors: Vectors, dimensions: Sequence[int], loss: Callable[[Vectors], torch.Tensor]
) -> torch.Tensor:
    """The loss of the vectors, or its sum over their first so many numbers.

    Raises: UserError for more numbers than a vector has.
    """
    anchors, positives, negatives = vectors
    size = anchors.shape[1]
    if any(not 0 < wanted <= size for wanted in dimensions):
        raise UserError(f"dimensions = {[*dimensions]}: the vectors have {size} numbers")
    if not dimensions:
        return loss(vectors)
    losses = [
        loss((anchors[:, :n], positives[:, :n], [each[:, :n] for each in negatives]))
        for n in dimensions
    ]
    return torch.stack(losses).sum()


def _same_text(batch: EmbeddingBatch) -> torch.Tensor:
    """(B, B + negatives) True where a text stands a second time that is the row's own."""
    own = batch.text_keys[:, 0]
    keys = batch.text_keys.T.flatten()  # positives, then each column of negatives
    same = own[:, None] == keys[None, :]
    count = len(own)
    same[torch.arange(count, device=own.device), torch.arange(count, device=own.device)] = False
    return same
