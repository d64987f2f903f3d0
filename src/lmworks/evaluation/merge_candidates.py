"""Merges that a search tries: drawn at random over methods and parameters, then varied.

A candidate is a recipe in mergekit's keys. Numbers it may change live in a flat list, so that one
that did well can be moved a little whatever its method is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

# What is drawn beside the weights: name -> (low, high). `each`: one for every model.
_DENSITY = {"density": (0.2, 1.0)}
_SHARED: dict[str, dict[str, tuple[float, float]]] = {
    "linear": {},
    "slerp": {"t": (0.05, 0.95)},
    "task_arithmetic": {"lambda": (0.5, 1.5)},
    "ties": {"lambda": (0.5, 1.5)},
    "dare_linear": {"lambda": (0.5, 1.5)},
    "dare_ties": {"lambda": (0.5, 1.5)},
    "model_stock": {},
    "sce": {"select_topk": (0.1, 1.0)},
}
_EACH: dict[str, dict[str, tuple[float, float]]] = {
    "ties": _DENSITY,
    "dare_linear": _DENSITY,
    "dare_ties": _DENSITY,
}
_WEIGHTED = ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties")
WITH_BASE = tuple(name for name in _SHARED if name not in ("linear", "slerp"))
METHODS = tuple(_SHARED)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A method and its numbers; `weights` and `each` in the order of the models."""

    method: str
    weights: tuple[float, ...] = ()
    each: tuple[tuple[str, tuple[float, ...]], ...] = ()
    shared: tuple[tuple[str, float], ...] = ()

    @property
    def name(self) -> str:
        """What tables call it."""
        parts = [f"{key} {value:.3g}" for key, value in self.shared]
        if self.weights:
            parts.insert(0, "weights " + "/".join(f"{w:.2g}" for w in self.weights))
        parts += [f"{key} " + "/".join(f"{v:.2g}" for v in row) for key, row in self.each]
        return f"{self.method} {', '.join(parts)}".strip()

    def recipe(self, models: Sequence[str], base: str) -> dict[str, Any]:
        """mergekit's keys."""
        entries: list[dict[str, Any]] = []
        for index, model in enumerate(models):
            own = {key: round(row[index], 4) for key, row in self.each}
            if self.weights:
                own["weight"] = round(self.weights[index], 4)
            entries.append({"model": model, "parameters": own} if own else {"model": model})
        made: dict[str, Any] = {"merge_method": self.method, "models": entries}
        if self.shared:
            made["parameters"] = {key: round(value, 4) for key, value in self.shared}
        if self.method == "slerp":
            made["base_model"] = models[0]
        elif self.method != "linear":
            made["base_model"] = base
        return made | {"dtype": "float32"}


def known(count: int, with_base: bool) -> list[Candidate]:
    """What people try by hand: these are in every search."""
    even = (1 / count,) * count
    found = [Candidate("linear", weights=even)]
    if count == 2:
        found += [Candidate("slerp", shared=(("t", t),)) for t in (0.3, 0.5, 0.7)]
    if with_base:
        found += [
            Candidate("task_arithmetic", weights=even, shared=(("lambda", 1.0),)),
            Candidate("ties", even, (("density", (0.5,) * count),), (("lambda", 1.0),)),
        ]
        if count > 1:
            found.append(Candidate("model_stock"))
    return found


def drawn(methods: Sequence[str], count: int, random: np.random.Generator) -> Candidate:
    """One at random."""
    name = methods[int(random.integers(len(methods)))]
    weights = random.dirichlet(np.full(count, 1.5)) if name in _WEIGHTED else ()
    return Candidate(
        name,
        weights=tuple(map(float, weights)),
        each=tuple(
            (key, tuple(map(float, random.uniform(low, high, count))))
            for key, (low, high) in _EACH.get(name, {}).items()
        ),
        shared=tuple(
            (key, float(random.uniform(low, high))) for key, (low, high) in _SHARED[name].items()
        ),
    )


def varied(one: Candidate, random: np.random.Generator, *, step: float = 0.15) -> Candidate:
    """`one` with its numbers moved by normal steps, a share of their range, and kept within it."""

    def moved(value: float, low: float, high: float) -> float:
        return float(np.clip(value + step * (high - low) * random.standard_normal(), low, high))

    weights = tuple(moved(weight, 0.0, 1.0) for weight in one.weights)
    total = sum(weights)
    spans = _EACH.get(one.method, {})
    return Candidate(
        one.method,
        weights=tuple(w / total for w in weights) if total > 0 else one.weights,
        each=tuple((key, tuple(moved(v, *spans[key]) for v in row)) for key, row in one.each),
        shared=tuple((key, moved(v, *_SHARED[one.method][key])) for key, v in one.shared),
    )
