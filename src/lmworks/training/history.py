"""What happened in a training, as columns that go into its checkpoint and its report."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(kw_only=True)
class History:
    """Training loss per step, held-out loss now and then, and what was out of the ordinary.

    Attributes:
        loss, grad_norm: of each step that changed the weights; nats for objectives over text.
        heldout_step, heldout_loss: looks at held-out rows, before these steps.
        num_targets: target tokens (pairs, rows) seen so far.
        metrics: the objective's figures of each step, such as a router's loss.
        skipped: numbers of batches that were left out.
        events: {"step", "kind", "message"}: spikes, returns to a snapshot, samples, the end.
    """

    loss: list[float] = dataclasses.field(default_factory=list)
    grad_norm: list[float] = dataclasses.field(default_factory=list)
    heldout_step: list[int] = dataclasses.field(default_factory=list)
    heldout_loss: list[float] = dataclasses.field(default_factory=list)
    num_targets: int = 0
    metrics: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    skipped: list[int] = dataclasses.field(default_factory=list)
    events: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        # Of this process, and never kept with the rest: the same seed gives the same history.
        self.spent: dict[str, float] = {}  # seconds by part of a step, see `step_clock`
        self.tokens, self.row_length, self.precision = 0, 0, "float32"
