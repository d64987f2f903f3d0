"""The sources of a mixture: which documents they hold, and what part of a batch is theirs when."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmworks.core import progress
from lmworks.core.errors import UserError, nearest

if TYPE_CHECKING:
    from lmworks.data.documents import Document
    from lmworks.training.curriculum.config import MixtureConfig

_REST = "*"
_NAMED = 8  # sources that an error lists


def parts_of(documents: Sequence[Document], mixture: MixtureConfig) -> dict[str, list[int]]:
    """The documents of each source, by number, in the order of the config's names.

    Raises: UserError for a name that no document has, with the nearest one.
    """
    names = [*dict.fromkeys([*mixture.weights, *mixture.final_weights])]
    if not names:
        names = sorted({_first_part(d) for d in documents})
        if len(names) < 2:
            raise UserError(
                f"all documents are of one source, {names[0]}: name others with --set "
                f"'mixture.weights={{NAME: 0.5, \"*\": 0.5}}'; {_largest(documents)}"
            )
    found: dict[str, list[int]] = {name: [] for name in names}
    for number, document in enumerate(documents):
        fitting = [name for name in names if _is_of(document, name)]
        exact = (document.source, document.group)  # says more than a beginning, however long
        best = max(fitting, key=lambda n: (n in exact, len(n)), default=_REST)
        if best in found:
            found[best].append(number)
    for name, numbers in found.items():
        if not numbers:
            known = {d.group for d in documents} | {d.source for d in documents}
            known |= {_first_part(d) for d in documents}
            close = nearest(name, known)
            hint = f"did you mean {close!r}? " if close else ""
            raise UserError(f"no document is of the source {name!r}: {hint}{_largest(documents)}")
    left_out = len(documents) - sum(map(len, found.values()))
    if left_out:
        progress.say(f"  {left_out:,} documents are of no source of the mixture and are left out")
    return found


def _is_of(document: Document, name: str) -> bool:
    if name in (document.group, document.source):
        return True
    rest = document.source.removeprefix(name)
    return rest != document.source and (name[-1:] in "/:" or rest[0] in "/:.#")


def _first_part(document: Document) -> str:
    return re.split(r"[/:]", document.source, maxsplit=1)[0]


def _largest(documents: Sequence[Document]) -> str:
    sizes: Counter[str] = Counter()
    for document in documents:
        sizes[_first_part(document)] += document.num_bytes
        if document.group != _first_part(document):
            sizes[document.group] += document.num_bytes
    return "the largest are " + ", ".join(repr(name) for name, _ in sizes.most_common(_NAMED))


def weights_over_time(
    mixture: MixtureConfig, sizes: Mapping[str, int], num_steps: int
) -> Callable[[int], np.ndarray]:
    """step -> (sources,) that sum to 1, in the order of `sizes` (tokens of each).

    Raises: UserError for weights below 0 or that sum to 0, a temperature or times without sense.
    """
    if mixture.temperature <= 0:
        raise UserError(f"mixture.temperature = {mixture.temperature}: a number above 0")
    if not 0 <= mixture.change_from <= mixture.change_to <= 1:
        raise UserError(
            f"mixture.change_from = {mixture.change_from} and change_to = {mixture.change_to}: "
            "parts of the run, the first not above the second"
        )
    if mixture.weights:
        first = _shares("weights", mixture.weights, sizes)
        if mixture.temperature != 1:
            raise UserError(
                "mixture.temperature says nothing beside mixture.weights: leave out one"
            )
    else:
        powers = {name: size ** (1 / mixture.temperature) for name, size in sizes.items()}
        first = _shares("weights", powers, sizes)
    last = (
        _shares("final_weights", mixture.final_weights, sizes) if mixture.final_weights else first
    )
    length = mixture.change_to - mixture.change_from

    def weights(step: int) -> np.ndarray:
        at = step / max(1, num_steps - 1) - mixture.change_from
        moved = min(1.0, max(0.0, at / length)) if length else float(at >= 0)
        mixed: np.ndarray = (1 - moved) * first + moved * last
        return mixed

    return weights


def _shares(field: str, weights: Mapping[str, float], names: Mapping[str, int]) -> np.ndarray:
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"mixture.{field}: {name} = {weight}; a weight is 0 or more")
    values = np.array([float(weights.get(name, 0.0)) for name in names])
    if values.sum() <= 0:
        raise UserError(f"mixture.{field} sum to 0: at least one source needs a weight")
    shares: np.ndarray = values / values.sum()
    return shares
