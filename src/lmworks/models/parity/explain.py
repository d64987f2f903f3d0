"""Why an operation differs: every change is tried on the stage, both ways round, and ranked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from lmworks.models.parity.changes import changes_of
from lmworks.models.parity.differences import NOISE as TOLERANCES
from lmworks.models.parity.fits import fits_of
from lmworks.models.parity.pair import Pair
from lmworks.models.parity.report import Cause
from lmworks.models.parity.trial import NO_CHANGE, Change, Stage, stage_names, stage_of

_BETTER = 3  # times nearer than without the change


@dataclass(kw_only=True)
class Explained:
    """Causes, best first, and how many changes were tried."""

    causes: list[Cause] = field(default_factory=list)
    tried: int = 0


def explain(operation: str, whole: Pair) -> Explained:
    """Try all changes on the operation's stage, with either side as the reference."""
    result = Explained()
    pair, operation = whole.around(operation)
    name = stage_of(operation)
    ranked: list[tuple[Any, Cause]] = []
    for reference in (0, 1):
        stage = pair.stage(name, reference)
        if stage is None:
            continue
        search = Search(stage, stage_names(operation, name), pair.port_of(name, reference))
        for rank, change, error, count in search.found():
            cause = Cause(
                cause=change.cause,
                port=pair.names[1 - reference],
                reference=pair.names[reference],
                says=change.says,
                fix=change.fix,
                reproduced=count,
                of=len(stage.wanted),
                error=error,
                known=change.known,
            )
            ranked.append(((*rank, reference), cause))
        result.tried += search.tried
        if any(cause.reproduced == cause.of for _, cause in ranked):
            break
    result.causes = _distinct(cause for _, cause in sorted(ranked, key=lambda item: item[0]))
    return result


def _distinct(causes: Iterable[Cause]) -> list[Cause]:
    """The best of each kind: the same mistake seen from the other side is not a second one."""
    best: dict[str, Cause] = {}
    for cause in causes:
        best.setdefault(cause.cause, cause)
    first = next(iter(best.values()), None)
    if first is not None and first.known:  # what was seen needs no guess beside it
        return [cause for cause in best.values() if cause.known]
    return list(best.values())


class Search:
    """All changes of one stage; iterate over what accounts for the operation."""

    def __init__(self, stage: Stage, operation: str, other: Any) -> None:
        self._stage, self._operation, self._other = stage, operation, other
        self.tried = 0
        # Given what the port had before the layers that it left out, nothing is wrong here.
        self._baseline = math.inf if stage.skipped else stage.error(NO_CHANGE, operation)

    def found(self) -> list[tuple[Any, Change, float, int]]:
        """(rank, change, error, operations accounted for) of each that does; dear ones last."""
        tiers: dict[bool, list[Change]] = {False: [], True: []}
        for change in changes_of(self._stage, self._other):
            tiers[change.expense >= 2].append(change)
        for tier in tiers.values():
            if found := [hit for change in tier if (hit := self._try(change))]:
                return found
        return [hit for change in self._fits() if (hit := self._try(change))]

    def _fits(self) -> Iterator[Change]:
        yield from fits_of(self._stage, self._operation)

    def _try(self, change: Change) -> tuple[Any, Change, float, int] | None:
        self.tried += 1
        limits = {name: TOLERANCES[value.dtype] for name, value in self._stage.wanted.items()}
        limit = min(limits[self._operation], self._baseline / _BETTER)
        apart = self._stage.run(change, self._operation, limit)
        if apart is None:
            return None
        error = apart[self._operation]
        count = sum(error <= limits[name] for name, error in apart.items())
        size = round(math.log10(max(error, 1e-9)))
        return (-count, not change.known, size, change.expense), change, error, count
