"""Replaced-token detection: a small model fills gaps, a larger one finds what it filled in.

Both learn at once: the generator as a masked language model, the discriminator to tell, of every
token, whether it is the text's own. Where the generator fills in the right token, that is no
replacement. No gradient flows through what was drawn.

What is drawn from the generator depends on its weights and on one number for each place, which
comes with the batch: the same step gives the same text however its rows are split or resumed.

Source: Clark et al. 2020 (ELECTRA), arXiv 2003.10555, section 2. Its code leaves 15 % of the chosen
places as they are (`mask_share` 0.85); the paper masks all of them.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from lmworks.core.config import option
from lmworks.core.errors import UserError
from lmworks.training.batches import IGNORED, Batch
from lmworks.training.objectives.base import Loss
from lmworks.training.objectives.causal import token_cross_entropy
from lmworks.training.objectives.masked import choose
from lmworks.training.objectives.text import (
    Architecture,
    PlainText,
    TokenFacts,
    check_share,
    tensors,
)

if TYPE_CHECKING:
    from lmworks.models.generator_discriminator import GeneratorDiscriminator


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplacedBatch(Batch):
    """Masked ids, the tokens at the chosen places as labels, and what the draw is made with.

    Attributes:
        noise: (B, T) from 0 up to 1, one number for the draw at each place.
    """

    noise: torch.Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplacedToken(PlainText):
    """Which tokens of a text are its own, and which a small model put there."""

    share: float = option(0.15, help="of the tokens, those that the generator fills in")
    mask_share: float = option(1.0, help="of those, the ones that it is not shown")
    weight: float = option(50.0, help="of the discriminator's loss beside the generator's")
    temperature: float = option(1.0, help="of the draw; below 1, likelier tokens are drawn")
    generator_size: float = option(0.25, help="the generator's width, of the discriminator's")
    whole_words: bool = option(False, help="choose all tokens of a word or none")

    architectures: ClassVar[tuple[Architecture, ...]] = ("encoder",)
    needs_mask: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("share", "mask_share", "generator_size"):
            check_share(getattr(self, name), name)
        for name in ("weight", "temperature"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} = {getattr(self, name)}: a number above 0")

    def corrupt(
        self, windows: np.ndarray, random: np.random.Generator, facts: TokenFacts
    ) -> ReplacedBatch:
        """Chosen places are masked; what they will hold is drawn when the generator has spoken."""
        ids = windows[:, :-1]
        chosen = choose(ids, random, facts, share=self.share, whole_words=self.whole_words)
        hidden = chosen & (random.random(ids.shape) < self.mask_share)
        noise = random.random(ids.shape, dtype=np.float32)
        parts = tensors(
            input_ids=np.where(hidden, facts.mask_id, ids),
            labels=np.where(chosen, ids, IGNORED),
            noise=noise,
        )
        return ReplacedBatch(**parts, inputs=facts.inputs(ids))

    def __call__(self, model: GeneratorDiscriminator, batch: ReplacedBatch) -> Loss:
        """The generator's mean cross-entropy, and `weight` times the discriminator's mean.

        Returns: Loss(value (); num_targets, the chosen places; metrics, both parts, the share of
            tokens that were replaced, and in evaluation how many places the generator got right
            and how many tokens the discriminator judged right).
        """
        hidden = model.generator.hidden_states(batch.input_ids, **batch.inputs)
        told = token_cross_entropy(
            model.generator, hidden, batch.labels, accuracy=not model.training
        )
        ids = self.filled(model, batch, hidden)
        scores = model.discriminator(ids, **batch.inputs)  # (B, T)
        replaced = ids != originals(batch)
        judged = F.binary_cross_entropy_with_logits(scores, replaced.to(scores.dtype))
        metrics = {
            "generator": told.value.item(),
            "discriminator": judged.item(),
            "replaced": float(replaced.float().mean()),
        }
        if not model.training:
            metrics["accuracy"] = told.metrics["accuracy"]
            metrics["judged_right"] = float(((scores > 0) == replaced).float().mean())
        return Loss(
            value=told.value + self.weight * judged,
            num_targets=told.num_targets,
            auxiliary=model.auxiliary_loss(),
            metrics=metrics,
        )

    @torch.no_grad()
    def filled(
        self, model: GeneratorDiscriminator, batch: ReplacedBatch, hidden: torch.Tensor
    ) -> torch.Tensor:
        """(B, T): the text with the chosen places filled in by the generator's states (B, T, H)."""
        chosen = batch.labels != IGNORED
        logits = model.generator.logits(hidden[chosen]).float() / self.temperature
        shares = logits.softmax(-1).cumsum(-1)
        wanted = batch.noise[chosen][:, None] * shares[:, -1:]
        drawn = torch.searchsorted(shares, wanted, right=True)
        ids = originals(batch)
        ids[chosen] = drawn[:, 0].clamp(max=logits.shape[-1] - 1)
        return ids


def originals(batch: Batch) -> torch.Tensor:
    """(B, T): the text before anything was taken out of it."""
    return batch.labels.where(batch.labels != IGNORED, batch.input_ids)
