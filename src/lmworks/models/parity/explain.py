"""Why an operation differs: every change is tried on the stage, both ways round, and ranked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lmworks.models.config import ModelConfig
from lmworks.models.parity.changes import changes_of
from lmworks.models.parity.differences import NOISE as TOLERANCES
from lmworks.models.parity.fits import fits_of
from lmworks.models.parity.report import Cause
from lmworks.models.parity.trial import (
    EMBEDDING,
    END,
    NO_CHANGE,
    Change,
    Stage,
    one_stage,
    stage_names,
    stage_of,
)

Trace = dict[str, torch.Tensor]
_BETTER = 3  # times nearer than without the change


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a side beside what it computes."""

    config: ModelConfig | None
    state: dict[str, torch.Tensor]
    own: bool


@dataclass(kw_only=True)
class Explained:
    """Causes, best first, and how many changes were tried."""

    causes: list[Cause] = field(default_factory=list)
    tried: int = 0


def explain(
    operation: str,
    ids: torch.Tensor,
    names: tuple[str, str],
    traces: Sequence[Trace],
    known: Sequence[Known],
    rounded: list[str],
) -> Explained:
    """Try all changes on the operation's stage, with either side as the reference."""
    result = Explained()
    name = stage_of(operation)
    ranked: list[tuple[Any, Cause]] = []
    for reference in (0, 1):
        stage = stage_for(name, ids, traces, known, reference, rounded)
        if stage is None:
            continue
        other = _other(known[1 - reference], name)
        search = Search(stage, stage_names(operation, name), other)
        for rank, change, error, count in search.found():
            cause = Cause(
                cause=change.cause,
                port=names[1 - reference],
                reference=names[reference],
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


def _other(known: Known, stage: str) -> tuple[ModelConfig | None, dict[str, torch.Tensor]]:
    """The port's config and weights of the stage, as far as they are known."""
    if known.config is not None:
        config, state = one_stage(known.config, known.state, stage)
        return config, state
    if not stage.startswith("layers."):
        return None, known.state
    prefix = stage + "."
    return None, {
        "layers.0." + name.removeprefix(prefix): tensor
        for name, tensor in known.state.items()
        if name.startswith(prefix)
    }


def stage_for(
    name: str,
    ids: torch.Tensor,
    traces: Sequence[Trace],
    known: Sequence[Known],
    reference: int,
    rounded: list[str],
) -> Stage | None:
    """The stage with one side as the reference, or None if that side is not known well enough."""
    config, port = known[reference].config, traces[1 - reference]
    if config is None or not known[reference].state:
        return None
    given = ids if name == EMBEDDING else _given(name, config, port)
    if given is None:
        return None
    theirs = known[1 - reference].state
    state = known[reference].state | {key: theirs[key] for key in rounded if key in theirs}
    if name.startswith("layers.") and int(name.split(".")[1]) >= config.num_hidden_layers:
        return None
    layers = _layers(config, state) if name.startswith("layers.") else []
    config, state = one_stage(config, state, name)
    wanted = {
        stage_names(operation, name): value
        for operation, value in port.items()
        if stage_of(operation) == name
    }
    return Stage(name=name, config=config, state=state, given=given, wanted=wanted, layers=layers)


def _layers(config: ModelConfig, state: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The weights of each layer, named as those of layer 0."""
    layers: list[dict[str, torch.Tensor]] = [{} for _ in config.layers]
    for name, tensor in state.items():
        if name.startswith("layers."):
            _, number, rest = name.split(".", 2)
            layers[int(number)][f"layers.0.{rest}"] = tensor
    return layers


def _given(name: str, config: ModelConfig, port: Trace) -> torch.Tensor | None:
    """The stream that the port's stage got."""
    if name == END:
        return port.get(f"layers.{config.num_hidden_layers - 1}")
    number = int(name.split(".")[1])
    return port.get(EMBEDDING if number == 0 else f"layers.{number - 1}")


class Search:
    """All changes of one stage; iterate over what accounts for the operation."""

    def __init__(self, stage: Stage, operation: str, other: Any) -> None:
        self._stage, self._operation, self._other = stage, operation, other
        self.tried = 0
        self._baseline = stage.error(NO_CHANGE, operation)

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
