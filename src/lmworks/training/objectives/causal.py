"""Causal language modelling: each token from the ones before it.

The same objective serves pre-training (every label counts) and supervised fine-tuning (only the
answers' labels count): the difference is the mask in the batch, not the loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F

from lmworks.models.moe import expert_loads
from lmworks.training.batches import IGNORED
from lmworks.training.objectives.base import Loss

if TYPE_CHECKING:
    import torch

    from lmworks.models.model import Model
    from lmworks.training.batches import Batch


def causal(model: Model, batch: Batch) -> Loss:
    """Mean cross-entropy over the labels that count.

    Args:
        batch: input_ids (B, T); labels (B, T), IGNORED where nothing is asked.
    Returns: Loss(value (), nats per target token; num_targets; auxiliary, the routers' losses while
        training a model with experts, whose metrics are that loss and the load of the busiest
        expert, 1 if all have the same).
    Source: Bengio et al. 2003, section 3 (maximum likelihood of the next word).
    """
    hidden = model.hidden_states(batch.input_ids)  # (B, T, H)
    labels = batch.labels
    counted = labels != IGNORED
    num_targets = int(counted.sum())
    # The vocabulary is the widest product of a small model: spare it where no label counts.
    if num_targets < labels.numel():
        hidden, labels = hidden[counted], labels[counted]
    logits = model.logits(hidden).flatten(0, -2)  # (num_targets, V)
    auxiliary = model.auxiliary_loss()
    return Loss(
        value=F.cross_entropy(logits, labels.flatten()),
        num_targets=num_targets,
        auxiliary=auxiliary,
        metrics={} if auxiliary is None else _router_metrics(model, auxiliary),
    )


def _router_metrics(model: Model, auxiliary: torch.Tensor) -> dict[str, float]:
    loads = expert_loads(model)
    busiest = max((float(load.max() / load.mean()) for load in loads), default=1.0)
    return {"auxiliary": auxiliary.item(), "busiest": busiest}
