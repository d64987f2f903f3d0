"""What a comparison found: operations, the first that differs, causes, facts, a verdict."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lmworks.models.parity.differences import Difference

EQUAL, NOISE, DIFFERS = "equal", "noise", "differs"


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation of both.

    `status`: "equal"; "noise", apart by what was carried along, while the step itself is the same
    if both are given one input; "differs".
    """

    name: str
    status: str
    difference: Difference
    head_dim: int | None = None

    @property
    def where(self) -> str:
        """Where the largest difference is."""
        found = self.difference
        if self.head_dim:
            head, dimension = divmod(found.feature, self.head_dim)
            return f"position {found.position}, head {head}, dimension {dimension}"
        return f"position {found.position}, dimension {found.feature}"


@dataclass(frozen=True, kw_only=True)
class Cause:
    """A change that makes the reference give what the port gives.

    Attributes:
        cause: its kind in a few words.
        port, reference: which side has the mistake if the other is right.
        says: what the port does; `fix`: what to do about it.
        reproduced, of: how many operations of the stage the change accounts for.
        error: what is left at the first operation, relative.
        known: whether config or weights were seen to differ in it.
    """

    cause: str
    port: str
    reference: str
    says: str
    fix: str
    reproduced: int
    of: int
    error: float
    known: bool


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything; `as_dict` is plain data for JSON.

    Attributes:
        a, b: what the sides are called.
        tokens: the ids that both were given.
        operations: those that both have, in the order of computing.
        first: the first that differs, or "".
        causes: best first; those after the first say as much about the first operation, but not
            more about what follows.
        facts: what configs and weights say, one line each.
        verdict: one or two sentences.
        tried: how many changes were tried.
    """

    a: str
    b: str
    tokens: tuple[int, ...]
    operations: tuple[Operation, ...]
    first: str
    causes: tuple[Cause, ...]
    facts: tuple[str, ...]
    verdict: str
    tried: int = 0

    @property
    def equal(self) -> bool:
        """Whether no operation differs."""
        return not self.first

    def as_dict(self) -> dict[str, Any]:
        """Plain data; infinite differences, as of shapes, are None with their `problem`."""
        plain = dataclasses.asdict(self) | {"equal": self.equal}
        for operation in plain["operations"]:
            found = operation["difference"]
            for key in ("largest", "relative"):
                if found[key] == float("inf"):
                    found[key] = None
        return plain
