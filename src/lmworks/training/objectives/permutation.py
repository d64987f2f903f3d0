"""Permutation language modelling: tokens foretold in a drawn order, each from those before it.

Two streams, in one forward: the row's tokens, and behind them a question for each token that is
asked for, which holds the mask token and stands where that token stands. `visible` says who knows
what. Tokens that are not asked for see each other; one that is asked for sees them, those asked for
before it in the drawn order, and itself; its question sees the same but for the token itself. No
token sees a question. With `positions` and `visible` in the model nothing else is needed, and a
model of any attention layers can learn so.

Differs from the paper: places are drawn one by one and not as short spans; no memory of the row
before, no second segment; the order is told by the model's own positions and not by XLNet's.
Source: Yang et al. 2019, arXiv 1906.08237, sections 2.3 and 2.4.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lmworks.core.config import option
from lmworks.models.config.base import POSITIONS, VISIBLE
from lmworks.training.batches import IGNORED, Batch
from lmworks.training.objectives.causal import token_cross_entropy
from lmworks.training.objectives.text import PlainText, TokenFacts, check_share, tensors

if TYPE_CHECKING:
    from lmworks.models.model import Model
    from lmworks.training.objectives.base import Loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class PermutationLM(PlainText):
    """Tokens in a drawn order, each from those before it in that order."""

    share: float = option(1 / 6, help="of the tokens, the last in the order, that are asked for")

    told: ClassVar[frozenset[str]] = frozenset({POSITIONS, VISIBLE})
    needs_mask: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_share(self.share)

    def corrupt(self, windows: np.ndarray, random: np.random.Generator, facts: TokenFacts) -> Batch:
        """Rows of T tokens and K questions; special tokens are not asked for."""
        ids = windows[:, :-1]
        order = drawn_order(ids, random, facts, share=self.share)
        return two_streams(ids, order, facts)

    def __call__(self, model: Model, batch: Batch) -> Loss:
        """Mean cross-entropy of the tokens asked for; in evaluation their accuracy."""
        hidden = model.hidden_states(batch.input_ids, **batch.inputs)
        return token_cross_entropy(model, hidden, batch.labels, accuracy=not model.training)


def drawn_order(
    ids: np.ndarray, random: np.random.Generator, facts: TokenFacts, *, share: float
) -> np.ndarray:
    """(B, T): 1, 2, 3 ... for the tokens that are asked for, 0 for those that are known before."""
    rows, length = ids.shape
    keys = random.random((rows, length))
    special = facts.special[ids]
    keys[special] = 2.0
    count = max(1, round(share * length))
    order = np.zeros((rows, length), dtype=np.int64)
    first = np.argsort(keys, axis=1)[:, :count]
    np.put_along_axis(order, first, np.arange(1, first.shape[1] + 1), axis=1)
    order[special] = 0
    return order


def two_streams(ids: np.ndarray, order: np.ndarray, facts: TokenFacts) -> Batch:
    """The batch of tokens (B, T) that are asked for in `order` (B, T), see `drawn_order`.

    A row that has fewer questions than another is filled up with some that ask nothing.
    """
    asked = max(1, int((order > 0).sum(axis=1).max()))
    # The places of the questions from left to right, among them those that fill up a row.
    places = np.sort(np.argsort(order == 0, axis=1, kind="stable")[:, :asked], axis=1)
    rank = np.take_along_axis(order, places, axis=1)  # (B, K)
    real = rank > 0
    same = _same_document(ids, facts)
    tokens = (order[:, None] <= order[:, :, None]) & same
    near = np.take_along_axis(same, places[:, :, None], axis=1)
    questions = (order[:, None] < rank[:, :, None]) & near  # (B, K, T)
    questions |= ~real[:, :, None] & (np.arange(ids.shape[1]) == places[:, :, None])
    # The first of all, where nothing is known before it, looks at its own question alone.
    alone = ~questions.any(axis=2)
    size = ids.shape[1] + asked
    visible = np.zeros((len(ids), size, size), dtype=bool)
    visible[:, : ids.shape[1], : ids.shape[1]] = tokens
    visible[:, ids.shape[1] :, : ids.shape[1]] = questions
    row, question = np.nonzero(alone)
    visible[row, ids.shape[1] + question, ids.shape[1] + question] = True
    labels = np.full((len(ids), size), IGNORED)
    labels[:, ids.shape[1] :] = np.where(real, np.take_along_axis(ids, places, axis=1), IGNORED)
    seen = np.concatenate([ids, np.full(places.shape, facts.mask_id)], axis=1)
    stands = np.broadcast_to(_positions(ids, facts), ids.shape)
    positions = np.concatenate([stands, np.take_along_axis(stands, places, axis=1)], axis=1)
    inputs = tensors(positions=positions, visible=visible)
    return Batch(**tensors(input_ids=seen, labels=labels), inputs=inputs)


def _same_document(ids: np.ndarray, facts: TokenFacts) -> np.ndarray:
    if not facts.apart:
        return np.ones((len(ids), ids.shape[1], ids.shape[1]), dtype=bool)
    documents = facts.documents(ids)
    same: np.ndarray = documents[:, :, None] == documents[:, None]
    return same


def _positions(ids: np.ndarray, facts: TokenFacts) -> np.ndarray:
    """(1 or B, T): where each token stands, in its document if documents are apart."""
    places = np.arange(ids.shape[1])[None]
    if not facts.apart:
        return places
    starts = np.where(ids == facts.separator, places, 0)
    return places - np.maximum.accumulate(starts, axis=1)
