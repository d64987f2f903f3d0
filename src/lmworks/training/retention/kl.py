"""KL to the base: in a share of the steps the model is drawn to what the base says of general text.

Unlike replay it learns nothing new from that text: where the base is unsure it stays unsure. It
costs a second copy of the weights, and the base's forward in those steps.

Source: Li & Hoiem 2016, arXiv 1606.09282, section 3 (learning without forgetting: the old model's
answers as targets); Hinton et al. 2015, arXiv 1503.02531, section 2. Differs: temperature 1, and
the KL divergence in the place of the cross-entropy, which is 0 at the base.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from lmworks.training.batches import IGNORED, Batch
from lmworks.training.objectives.base import Loss
from lmworks.training.retention.base import Retention

if TYPE_CHECKING:
    from lmworks.models.model import Model
    from lmworks.training.retention.config import RetentionConfig

_LOGIT_CELLS = 8_000_000  # logits of each model held at once, 32 MB


class KLToBase(Retention):
    """Draws the model to the base on general text; `strength` is the share of such steps."""

    rehearses = True

    def __init__(
        self,
        model: Model,
        general: Callable[[int], Batch],
        config: RetentionConfig,
        share: float,
    ) -> None:
        super().__init__(model, general, config, share)
        self._base = copy.deepcopy(model).eval().requires_grad_(False)

    def learn(self, model: Model, batch: Batch) -> Loss:
        """Mean over the tokens of KL(base || model), nats."""
        counted = batch.labels != IGNORED
        hidden = model.hidden_states(batch.input_ids, **batch.inputs)[counted]  # (N, H)
        with torch.no_grad():
            taught = self._base.hidden_states(batch.input_ids, **batch.inputs)[counted]
        rows = max(1, _LOGIT_CELLS // model.config.vocab_size)

        def part(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
            logits, base = model.logits(mine), self._base.logits(theirs)
            return F.kl_div(
                logits.log_softmax(-1), base.log_softmax(-1), log_target=True, reduction="sum"
            )

        # The vocabulary is wide: logits of a part are made again in the backward, not kept.
        parts = [
            checkpoint(part, mine, theirs, use_reentrant=False)
            for mine, theirs in zip(hidden.split(rows), taught.split(rows))
        ]
        count = int(counted.sum())
        return Loss(value=torch.stack(parts).sum() / count, num_targets=count)
