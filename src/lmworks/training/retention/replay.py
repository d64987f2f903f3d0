"""Replay: a share of the steps goes on learning general text as in pre-training.

Source: Robins 1995, "Catastrophic forgetting, rehearsal and pseudorehearsal"; de Masson d'Autume et
al. 2019, arXiv 1906.01076, section 3.2 (a sparse share of the steps is enough).
"""

from __future__ import annotations

from lmworks.training.retention.base import Retention


class Replay(Retention):
    """Learns general text in its steps; `strength` is their share."""

    rehearses = True
