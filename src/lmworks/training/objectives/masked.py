"""Masked language modelling: tokens taken out of a text, told from both sides.

Of the chosen places most hold the mask token, some another token, some their own, so that a model
can't rely on a mask standing where it is asked. Which places are chosen is drawn anew whenever a
window is read (RoBERTa's dynamic masks); their number is the same in every row, as in BERT's code,
so that rows weigh alike however they are split. Special tokens are never chosen, nor put in.

Source: Devlin et al. 2019, arXiv 1810.04805, section 3.1; whole words: the code it was released
with, 2019-05-31; dynamic masks: Liu et al. 2019, arXiv 1907.11692, section 4.1.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lmworks.core.config import option
from lmworks.core.errors import UserError
from lmworks.training.batches import IGNORED, Batch
from lmworks.training.objectives.causal import token_cross_entropy
from lmworks.training.objectives.text import (
    Architecture,
    PlainText,
    TokenFacts,
    check_share,
    tensors,
)

if TYPE_CHECKING:
    from lmworks.models.model import Model
    from lmworks.training.objectives.base import Loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLM(PlainText):
    """Tokens from what stands around them."""

    share: float = option(0.15, help="of the tokens, those that are asked for")
    mask_share: float = option(0.8, help="of those, the ones that a mask stands for")
    random_share: float = option(0.1, help="... and that another token stands for")
    whole_words: bool = option(False, help="choose all tokens of a word or none")

    architectures: ClassVar[tuple[Architecture, ...]] = ("encoder",)
    needs_mask: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_share(self.share)
        if self.mask_share < 0 or self.random_share < 0 or self.mask_share + self.random_share > 1:
            raise UserError(
                f"mask_share {self.mask_share} and random_share {self.random_share}: shares, not "
                "above 1 together"
            )

    def corrupt(self, windows: np.ndarray, random: np.random.Generator, facts: TokenFacts) -> Batch:
        """Labels are the tokens at the chosen places."""
        ids = windows[:, :-1]
        chosen = choose(ids, random, facts, share=self.share, whole_words=self.whole_words)
        fate = random.random(ids.shape)
        seen = np.where(chosen & (fate < self.mask_share), facts.mask_id, ids)
        other = chosen & (fate >= self.mask_share) & (fate < self.mask_share + self.random_share)
        seen[other] = facts.drawn_ids(random, int(other.sum()))
        labels = np.where(chosen, ids, IGNORED)
        return Batch(**tensors(input_ids=seen, labels=labels), inputs=facts.inputs(ids))

    def __call__(self, model: Model, batch: Batch) -> Loss:
        """Mean cross-entropy of the tokens at the chosen places; in evaluation their accuracy."""
        hidden = model.hidden_states(batch.input_ids, **batch.inputs)
        return token_cross_entropy(model, hidden, batch.labels, accuracy=not model.training)


def choose(
    ids: np.ndarray,
    random: np.random.Generator,
    facts: TokenFacts,
    *,
    share: float,
    whole_words: bool = False,
) -> np.ndarray:
    """(B, T) bool: places drawn without special tokens, `share` of T in every row.

    With whole words a row may have a few less, where no word fits any more, and one word more than
    its share rather than none. A row of special tokens alone has none.
    """
    length = ids.shape[1]
    count = max(1, round(share * length))
    if whole_words:
        return _whole_words(facts.words(ids), facts.special[ids], random, count)
    keys = random.random(ids.shape)
    keys[facts.special[ids]] = 2.0
    chosen = np.zeros(ids.shape, dtype=bool)
    first = np.argsort(keys, axis=1)[:, :count]
    np.put_along_axis(chosen, first, True, axis=1)
    return chosen & (keys < 1)


def _whole_words(
    words: np.ndarray, special: np.ndarray, random: np.random.Generator, count: int
) -> np.ndarray:
    chosen = np.zeros(words.shape, dtype=bool)
    for row in range(len(words)):
        found, sizes = np.unique(words[row][~special[row]], return_counts=True)
        order = random.permutation(len(found))
        taken: list[int] = []
        room = count
        for index in order:
            if sizes[index] <= room:
                taken.append(found[index])
                room -= sizes[index]
            if not room:
                break
        if not taken and len(found):
            taken.append(found[order[0]])
        chosen[row] = np.isin(words[row], taken) & ~special[row]
    return chosen
