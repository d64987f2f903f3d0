"""Causal language modelling: each token from the ones before it.

The same objective serves pre-training (every label counts) and supervised fine-tuning (only the
answers' labels count): the difference is the mask in the batch, not the loss. Nor is the loss
another one where places are masked, spans left out or orders drawn: `token_cross_entropy` is that
of all objectives that ask for tokens.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch.nn.functional as F

from lmworks.models.moe import expert_loads
from lmworks.training.batches import IGNORED, Batch
from lmworks.training.objectives.base import Loss
from lmworks.training.objectives.text import PlainText, TokenFacts, tensors
from lmworks.training.objectives.vocabulary_loss import vocabulary_loss

if TYPE_CHECKING:
    import numpy as np
    import torch

    from lmworks.models.model import Model


def causal(model: Model, batch: Batch) -> Loss:
    """Mean cross-entropy over the labels that count.

    Args:
        batch: input_ids (B, T); labels (B, T), IGNORED where nothing is asked.
    Returns: as `token_cross_entropy`.
    Source: Bengio et al. 2003, section 3 (maximum likelihood of the next word).
    """
    hidden = model.hidden_states(batch.input_ids, **batch.inputs)  # (B, T, H)
    return token_cross_entropy(model, hidden, batch.labels)


def token_cross_entropy(
    model: Model, hidden: torch.Tensor, labels: torch.Tensor, *, accuracy: bool = False
) -> Loss:
    """Mean cross-entropy of what the model's head says at the places that have a label.

    Args:
        hidden: (B, T, H) after the final norm.
        labels: (B, T), IGNORED where nothing is asked.
        accuracy: whether the share of places where the likeliest token is the right one is told.
    Returns: Loss(value (), nats per target token; num_targets; auxiliary, the routers' losses while
        training a model with experts, whose metrics are that loss and the load of the busiest
        expert, 1 if all have the same).
    """
    counted = labels != IGNORED
    num_targets = int(counted.sum())
    # The vocabulary is the widest product of a small model: spare it where no label counts.
    if num_targets < labels.numel():
        hidden, labels = hidden[counted], labels[counted]
    hidden, labels = hidden.flatten(0, -2), labels.flatten()
    auxiliary = model.auxiliary_loss()
    metrics = {} if auxiliary is None else _router_metrics(model, auxiliary)
    if accuracy:
        logits = model.logits(hidden)  # (num_targets, V)
        value = F.cross_entropy(logits, labels)
        metrics["accuracy"] = float((logits.argmax(-1) == labels).float().mean())
    else:
        value = vocabulary_loss(model, hidden, labels)
    return Loss(
        value=value,
        num_targets=num_targets,
        auxiliary=auxiliary,
        metrics=metrics,
    )


def _router_metrics(model: Model, auxiliary: torch.Tensor) -> dict[str, float]:
    loads = expert_loads(model)
    busiest = max((float(load.max() / load.mean()) for load in loads), default=1.0)
    return {"auxiliary": auxiliary.item(), "busiest": busiest}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalLM(PlainText):
    """Each token from the ones before it."""

    def corrupt(self, windows: np.ndarray, random: np.random.Generator, facts: TokenFacts) -> Batch:
        """Nothing is corrupted: labels are the ids, one place on."""
        inputs = facts.inputs(windows[:, :-1])
        return Batch(**tensors(input_ids=windows[:, :-1], labels=windows[:, 1:]), inputs=inputs)

    def __call__(self, model: Model, batch: Batch) -> Loss:
        """See `causal`."""
        return causal(model, batch)
