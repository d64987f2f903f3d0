"""Prefix language modelling: the beginning of a text is read both ways, the rest foretold.

Where the beginning ends is drawn for each row. Within it every token sees all of it; what follows
sees it and what came before. Asked for is the rest alone.

A prompt must then be read the same way: whoever continues a text with such a model tells it through
`visible` what the prompt is. `lmworks generate` and the server read prompts causally, as every
beginning of length 1 does.

Source: Raffel et al. 2020, arXiv 1910.10683, sections 3.2.1 and 3.2.3; Dong et al. 2019 (UniLM),
arXiv 1905.03197.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lmworks.models.config.base import VISIBLE
from lmworks.training.batches import IGNORED, Batch
from lmworks.training.objectives.causal import causal
from lmworks.training.objectives.text import PlainText, TokenFacts, tensors

if TYPE_CHECKING:
    from lmworks.models.model import Model
    from lmworks.training.objectives.base import Loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefixLM(PlainText):
    """The rest of a text from a beginning that is read both ways."""

    told: ClassVar[frozenset[str]] = frozenset({VISIBLE})

    def corrupt(self, windows: np.ndarray, random: np.random.Generator, facts: TokenFacts) -> Batch:
        """Labels of the beginning are left out, but for the one that its last token foretells."""
        ids, labels = windows[:, :-1], windows[:, 1:].copy()
        rows, length = ids.shape
        prefix = random.integers(1, length + 1, rows)[:, None]
        labels[np.arange(length) < prefix - 1] = IGNORED
        inputs = facts.inputs(ids)
        inputs |= tensors(visible=prefix_visible(prefix[:, 0], length))
        return Batch(**tensors(input_ids=ids, labels=labels), inputs=inputs)

    def __call__(self, model: Model, batch: Batch) -> Loss:
        """Mean cross-entropy of the rest."""
        return causal(model, batch)


def prefix_visible(prefix: np.ndarray, length: int) -> np.ndarray:
    """(B, T, T) bool for beginnings of `prefix` (B,) tokens: what each token may look at."""
    places = np.arange(length)
    both_ways = places < prefix[:, None, None]  # (B, 1, T), what all may look at
    seen: np.ndarray = both_ways | (places <= places[:, None])
    return seen
