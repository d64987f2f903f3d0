"""The seam of merge methods: a name leads to a `Method`, which lives in a file of its own.

A method is three things: the parameters that it reads, what it works out from whole tensors
(`facts`), and how a band of rows of the result is made (`combine`). Both are pure functions of
`Parts`. Other packages add theirs through the entry-point group `lmworks.merge method`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch

from lmworks.core.errors import UserError, unknown_name
from lmworks.core.tables import look_up
from lmworks.models.merging.parts import Parts, in_memory, one_thread

METHODS = {
    "linear": "lmworks.models.merging.linear:LINEAR",
    "slerp": "lmworks.models.merging.slerp:SLERP",
    "nuslerp": "lmworks.models.merging.nuslerp:NUSLERP",
    "multislerp": "lmworks.models.merging.multislerp:MULTISLERP",
    "karcher": "lmworks.models.merging.karcher:KARCHER",
    "task_arithmetic": "lmworks.models.merging.task_arithmetic:TASK_ARITHMETIC",
    "ties": "lmworks.models.merging.ties:TIES",
    "dare_linear": "lmworks.models.merging.dare:DARE_LINEAR",
    "dare_ties": "lmworks.models.merging.dare:DARE_TIES",
    "della_linear": "lmworks.models.merging.della:DELLA_LINEAR",
    "della": "lmworks.models.merging.della:DELLA",
    "breadcrumbs": "lmworks.models.merging.breadcrumbs:BREADCRUMBS",
    "breadcrumbs_ties": "lmworks.models.merging.breadcrumbs:BREADCRUMBS_TIES",
    "sce": "lmworks.models.merging.sce:SCE",
    "model_stock": "lmworks.models.merging.model_stock:MODEL_STOCK",
    "nearswap": "lmworks.models.merging.nearswap:NEARSWAP",
    "passthrough": "lmworks.models.merging.passthrough:PASSTHROUGH",
}

Band = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter:
    """One number, switch or word that a method reads.

    Attributes:
        each: set for every model apart, not once for all.
        default: None if it must be given.
        low, high: the numbers that it can be.
        optional: it may be left out, and is None then.
    """

    kind: type = float
    each: bool = False
    default: Any = None
    low: float | None = None
    high: float | None = None
    optional: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A way to make one tensor out of several.

    Attributes:
        combine: (parts, band, facts) -> those rows of the result.
        facts: what `combine` must know of whole tensors.
        base: whether differences are taken from a base model.
        fewest, most: models beside the base.
    """

    combine: Callable[[Parts, Band, Any], torch.Tensor]
    facts: Callable[[Parts], Any] = lambda parts: None
    parameters: Mapping[str, Parameter] = dataclasses.field(default_factory=dict)
    base: Literal["required", "optional", "unused"] = "unused"
    fewest: int = 1
    most: int | None = None

    def merge(self, parts: Parts) -> Iterator[torch.Tensor]:
        """The result, band by band, in the type that was computed in."""
        with torch.inference_mode(), one_thread():
            facts = self.facts(parts)
        for band in parts.bands():
            with torch.inference_mode():
                yield self.combine(parts, band, facts)


def method(name: str) -> Method:
    """The method called `name`. Raises: UserError naming the nearest known one."""
    found: Method = look_up(METHODS, name, seam="merge method")
    return found


def merge_tensors(
    name: str,
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None = None,
    *,
    each: Mapping[str, Sequence[Any]] | None = None,
    shared: Mapping[str, Any] | None = None,
    seed: int = 0,
    band_bytes: int = 1 << 20,
) -> torch.Tensor:
    """Merge tensors of one shape that are in memory.

    Args:
        name: one of METHODS.
        each: parameters of each tensor, in their order.
        shared: parameters of all.
        seed: of the masks that are drawn.
    Raises: UserError for a parameter that is unknown, missing or out of its range.
    """
    chosen = method(name)
    each, shared = each or {}, shared or {}
    for given in (*each, *shared):
        if given not in chosen.parameters:
            raise unknown_name(f"parameter of {name}", given, chosen.parameters)
    values = [{key: row[index] for key, row in each.items()} for index in range(len(tensors))]
    parts = in_memory(
        tensors,
        base,
        values=[settled(chosen, name, given, each=True) for given in values],
        shared=settled(chosen, name, shared, each=False),
        seed=seed,
        band_bytes=band_bytes,
    )
    whole = list(chosen.merge(parts))
    return torch.cat(whole) if tensors[0].ndim else whole[0]


def settled(
    method: Method, name: str, given: Mapping[str, Any], *, each: bool, where: str = ""
) -> dict[str, Any]:
    """The parameters of one kind with their defaults, checked.

    Args:
        where: the tensor or model that they hold for, for an error.
    Raises: UserError for one that is missing, of a wrong kind or out of its range.
    """
    wanted = {key: p for key, p in method.parameters.items() if p.each == each}
    place = f"{where}: " if where else ""
    values: dict[str, Any] = {}
    for key, parameter in wanted.items():
        value = given.get(key)
        if value is None:
            value = parameter.default
            if value is None and not parameter.optional:
                raise UserError(f"{place}{name} needs the parameter {key!r}: give it")
        values[key] = None if value is None else checked(parameter, name, key, value, place)
    return values


def checked(parameter: Parameter, name: str, key: str, value: Any, place: str = "") -> Any:
    """`value` as what `parameter` holds. Raises: UserError if it can't be."""
    if parameter.kind is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, int) and value in (0, 1):
            return bool(value)
        raise UserError(f"{place}{key} of {name} is {value!r}: give true or false")
    try:
        number = parameter.kind(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{place}{key} of {name} is {value!r}, which is no number") from error
    low, high = parameter.low, parameter.high
    if number != number or (low is not None and number < low) or (high and number > high):
        span = f"from {low} " if low is not None else ""
        span += f"up to {high}" if high else ""
        raise UserError(f"{place}{key} of {name} is {value!r}: give a number {span}".rstrip())
    return number
