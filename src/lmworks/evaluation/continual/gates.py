"""Gates: a model that learnt something is served only if that is shown, and nothing else was lost.

Both models, the one that is served now and the candidate, are measured on the same held-out rows.
The task that was learnt has to be shown better: its whole interval lies below zero. Every earlier
task has to be shown not worse by more than a tolerance: its whole interval lies below that. Too few
rows to tell is no pass. Since *all* gates have to open, a candidate that is bad in any one way gets
through with no more than the chance that the one gate in its way errs, however many there are
(Berger 1982, an intersection-union test): no correction for their number is needed.

Source: Berger 1982, "Multiparameter hypothesis testing and acceptance sampling", Technometrics
24(4), theorem 1; not worse by a margin: Piaggio et al. 2012, JAMA 308(24).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from lmworks.evaluation.continual.gate_config import GateConfig
from lmworks.evaluation.scores import Scores
from lmworks.evaluation.statistics import MIN_GROUPS, Interval, paired_interval
from lmworks.training.continual.tasks import PREFERENCES, Kind

Role = Literal["new", "old"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
    """One task's verdict.

    Attributes:
        difference: candidate less current, in the unit of the kind; below zero: better.
        limit: below which the whole interval has to lie.
    """

    task: str
    kind: Kind
    role: Role
    num_rows: int
    num_groups: int
    current: float
    candidate: float
    difference: Interval
    limit: float
    passed: bool
    why: str


def gate(
    task: str, kind: Kind, role: Role, current: Scores, candidate: Scores, config: GateConfig
) -> Gate:
    """Compare two models on the held-out rows of one task."""
    difference = paired_interval(
        candidate.bits,
        current.bits,
        current.num_bytes,
        current.groups,
        confidence=config.confidence,
    )
    before, after = current.bits_per_byte, candidate.bits_per_byte
    # Preferences have no natural zero: what they may lose is told in bits per byte as it is.
    scale = 1.0 if kind in PREFERENCES else before
    must_gain = role == "new" and config.new == "better"
    limit = 0.0 if must_gain else max(config.tolerance * scale, config.least)
    groups = len(set(current.groups.tolist()))
    passed = difference.known and difference.high < limit
    if not difference.known:
        why = f"{groups} groups of held-out rows, {MIN_GROUPS} are needed to tell"
    elif passed:
        why = "shown better" if must_gain or difference.high < 0 else "no loss beyond the tolerance"
    elif must_gain:
        why = "shown worse" if difference.low > 0 else "not shown better"
    elif difference.low > limit:
        why = "lost more than the tolerance"
    else:
        why = "a loss beyond the tolerance can't be ruled out"
    return Gate(
        task=task,
        kind=kind,
        role=role,
        num_rows=len(current.bits),
        num_groups=groups,
        current=before,
        candidate=after,
        difference=difference,
        limit=limit,
        passed=passed,
        why=why,
    )


def table(gates: list[Gate]) -> str:
    """Markdown: a row per gate."""
    titles = ("Task", "Kind", "Now", "Candidate", "Change", "May be up to", "Verdict")
    head = f"| {' | '.join(titles)} |\n" + "|---" * len(titles) + "|"
    lines = [head]
    for one in gates:
        ends = one.difference
        known = f" [{ends.low:+.4f}, {ends.high:+.4f}]" if ends.known else ""
        mark = "open" if one.passed else "shut"
        name = one.task.replace("|", "\\|") + (" (new)" if one.role == "new" else "")
        lines.append(
            f"| {name} | {one.kind} | {one.current:.4f} | {one.candidate:.4f} | "
            f"{ends.estimate:+.4f}{known} | {one.limit:+.4f} | {mark}: {one.why} |"
        )
    return "\n".join(lines) + "\n"
