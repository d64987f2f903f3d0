"""What was found, in words: the facts one to a line, and the verdict in one or two sentences."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lmworks.models.parity.explain import Explained
from lmworks.models.parity.facts import FieldFact, TensorFact
from lmworks.models.parity.report import Operation


def lines_of(fields: list[FieldFact], tensors: list[TensorFact]) -> list[str]:
    """Facts as lines; tensors that differ alike in many layers are one line."""
    lines = []
    for fact in fields:
        some = f" in layers {_ranges(fact.layers)}" if fact.layers else ""
        lines.append(f"config {fact.name}{some}: {fact.a} against {fact.b}")
    alike: dict[tuple[str, str], list[str]] = {}
    for tensor in tensors:
        key = (re.sub(r"\.\d+\.", ".*.", tensor.name), tensor.relation)
        alike.setdefault(key, []).append(tensor.name)
    for (template, relation), names in alike.items():
        shown = names[0] if len(names) == 1 else f"{template} ({len(names)} tensors)"
        lines.append(f"weights {shown}: {relation}")
    return lines


def _ranges(numbers: Sequence[int]) -> str:
    """`0-3, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][-1:] = [runs[-1][-1], number]
        else:
            runs.append([number])
    return ", ".join(str(r[0]) if r[0] == r[-1] else f"{r[0]}-{r[-1]}" for r in runs)


def verdict(
    operations: Sequence[Operation],
    first: Operation | None,
    explained: Explained | None,
    facts: tuple[list[FieldFact], list[TensorFact]],
) -> str:
    """Where, what, why and how to mend it; or that all is equal, and how nearly."""
    if first is None:
        return _equal(operations, facts)
    found = first.difference
    what = found.problem or (
        f"relative {found.relative:.2g}, cosine {found.cosine:.4f}, most at {first.where}: "
        f"{found.values[0]:.4g} against {found.values[1]:.4g}"
    )
    start = f"{first.name} is the first operation that differs ({what})."
    if not explained or not explained.causes:
        tried = explained.tried if explained else 0
        return f"{start} None of the {tried} changes that were tried accounts for it."
    best = explained.causes[0]
    also = [c for c in explained.causes[1:] if c.reproduced == best.reproduced][:2]
    other = "".join(f", or it {cause.says}" for cause in also)
    return (
        f"{start} {best.port} {best.says}{other}: with that alone {best.reference} gives the same "
        f"here and in {best.reproduced - 1} of the {best.of - 1} other operations of this stage. "
        f"To mend {best.port}: {best.fix}."
    )


def _equal(operations: Sequence[Operation], facts: tuple[list[FieldFact], list[TensorFact]]) -> str:
    worst = max(operations, key=lambda o: o.difference.relative)
    text = (
        f"The {len(operations)} operations are equal up to the noise of sums in another order "
        f"(largest relative difference {worst.difference.relative:.1g}, at {worst.name})."
    )
    if worst.difference.largest == 0:
        text = f"The {len(operations)} operations are equal to the last bit."
    rounded = [fact for fact in facts[1] if fact.rounding]
    if rounded:
        text = (
            f"The {len(operations)} operations are the same; {len(rounded)} weights differ by "
            f"rounding alone ({rounded[0].relation}), which leaves relative differences of up to "
            f"{worst.difference.relative:.1g}, at {worst.name}."
        )
    if facts[0] or len(facts[1]) > len(rounded):
        text += " Config or weights differ in what these tokens do not show; see the facts."
    return text
