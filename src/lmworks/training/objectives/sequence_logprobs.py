"""Log-probabilities of answers, the one thing that every preference objective is made of.

Logits are computed only where an answer is, and a slice at a time, each computed again for its
gradient: memory does not grow with the vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from lmworks.training.batches import IGNORED, Batch
from lmworks.training.objectives.in_parts import in_slices

if TYPE_CHECKING:
    from lmworks.training.preferences.batches import PreferenceBatch


def token_logprobs(model: Any, batch: Batch) -> torch.Tensor:
    """(B, T) nats: of each label, 0 where none is asked; with its graph."""
    hidden = model.hidden_states(batch.input_ids, **batch.inputs)
    counted = batch.labels != IGNORED
    found = label_logprobs(model, hidden[counted], batch.labels[counted])
    return found.new_zeros(counted.shape).masked_scatter(counted, found)


def label_logprobs(model: Any, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(M, H), (M,) -> (M,) nats, float32."""

    def score(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return -F.cross_entropy(model.logits(states).float(), wanted, reduction="none")

    return in_slices(score, hidden, labels, vocab_size=model.config.vocab_size)


def sequence_logprobs(model: Any, batch: Batch) -> torch.Tensor:
    """(B,) nats: the log-probability of each row's labels together."""
    return token_logprobs(model, batch).sum(dim=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairLogprobs:
    """What the model makes of both answers of each pair, with its graph.

    Attributes:
        chosen, rejected: (B,) nats, summed over the answer.
        chosen_length, rejected_length: (B,) tokens of the answers.
        whole: (B,) nats of all that stands in the chosen row, prompt too; where asked for.
        auxiliary: the routers' loss, for a model that has some.
    """

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_length: torch.Tensor
    rejected_length: torch.Tensor
    whole: torch.Tensor | None = None
    auxiliary: torch.Tensor | None = None


def pair_logprobs(model: Any, batch: PreferenceBatch, *, whole: bool = False) -> PairLogprobs:
    """Both answers in one forward.

    Args:
        whole: score the prompt of the chosen row too.
    """
    labels = [batch.whole if whole else batch.chosen.labels, batch.rejected.labels]
    width = max(x.shape[1] for x in labels)
    both = Batch(
        input_ids=torch.cat([_wide(x.input_ids, width, 0) for x in (batch.chosen, batch.rejected)]),
        labels=torch.cat([_wide(x, width, IGNORED) for x in labels]),
    )
    found = token_logprobs(model, both)
    chosen, rejected = found.chunk(2)
    counted = _wide(batch.chosen.labels, width, IGNORED) != IGNORED
    return PairLogprobs(
        chosen=(chosen * counted).sum(dim=1) if whole else chosen.sum(dim=1),
        rejected=rejected.sum(dim=1),
        chosen_length=counted.sum(dim=1),
        rejected_length=(batch.rejected.labels != IGNORED).sum(dim=1),
        whole=chosen.sum(dim=1) if whole else None,
        auxiliary=model.auxiliary_loss(),
    )


def _wide(values: torch.Tensor, width: int, filler: int) -> torch.Tensor:
    return F.pad(values, (0, width - values.shape[1]), value=filler)
