"""Which type each tensor of a file gets.

For a size, the choice is a Lagrangian one: of each tensor, the types that it can have are points of
bytes and cost, and one price of a byte for all tensors decides. The cost of a point is what the KL
divergence to the float model grows by, as far as second moments tell it: half the sum over the rows
of the matrix of (mean square of the loss's gradient at that output) x (mean square error of that
output), both measured on the calibration text (`sensitivity`), the error with the very method that
will be used, on a sample of rows.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import heapq
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

from lmworks.compression.layer_quantizer import fitting_type
from lmworks.core.errors import UserError
from lmworks.core.ggml_types import FLOATS, TYPES
from lmworks.core.quantities import shown_bytes

if TYPE_CHECKING:
    import numpy as np

    from lmworks.compression.layer_source import LayerSource
    from lmworks.compression.methods.base import Method

Shapes = Mapping[str, tuple[int, ...]]
CANDIDATES = (
    *("Q2_K", "Q3_K", "IQ4_XS", "IQ4_NL", "Q4_1", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0"),
    "F16",
)
_ALIGNMENT = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mix:
    """Types by tensor.

    Attributes:
        types: what was chosen for each.
        default: the type that was asked for, for all; "" where a size was.
        predicted_kl: nats per token; None where nothing was measured.
    """

    types: dict[str, str]
    default: str = ""
    predicted_kl: float | None = None

    def type_of(self, name: str, shape: tuple[int, ...]) -> str:
        """See `layer_quantizer.Types`."""
        return self.types[name]

    def wanted(self, name: str) -> str:
        """What was asked for, before shapes had their say."""
        return self.default or self.types[name]


def uniform_mix(kind: str, shapes: Shapes, keep: Sequence[str]) -> Mix:
    """`kind` for all matrices but those that `keep` speaks of."""
    fixed = kept_types(keep, shapes)
    return Mix(types={name: fixed.get(name, kind) for name in shapes}, default=kind)


def kept_types(keep: Sequence[str], shapes: Shapes) -> dict[str, str]:
    """Tensors whose type is set, by PATTERN=TYPE; the last pattern that fits counts.

    Raises: UserError for a pattern that fits nothing, or a type that can't be written.
    """
    from lmworks.core.quantizers import QUANTIZERS

    found: dict[str, str] = {}
    for rule in keep:
        pattern, _, kind = rule.partition("=")
        if kind not in (known := (*QUANTIZERS, *FLOATS)):
            raise UserError(f"keep {rule!r}: write PATTERN=TYPE, with one of {', '.join(known)}")
        names = fnmatch.filter(shapes, pattern)
        if not names:
            some = ", ".join(list(shapes)[:3])
            raise UserError(f"keep {rule!r} fits no tensor; they are called {some} and so on")
        found |= dict.fromkeys(names, kind)
    return found


def num_bytes(shape: Sequence[int], kind: str) -> int:
    """Of a tensor in a file, with what aligns the next one."""
    block = TYPES[fitting_type(kind, shape)]
    size = prod(shape) // block.size * block.num_bytes
    return size + -size % _ALIGNMENT


def find_mix(
    source: LayerSource,
    rows: Sequence[np.ndarray],
    how: Method,
    *,
    target: int,
    overhead: int,
    keep: Sequence[str] = (),
    seed: int = 0,
    damping: float = 0.0,
) -> Mix:
    """The types whose file is at most `target` bytes and predicted to change answers least.

    Args:
        overhead: bytes of the file beside its tensors.
    Raises: UserError for a size that no mix has, naming the nearest that one has.
    """
    from lmworks.compression.sensitivity import measure_costs

    shapes = source.shapes()
    fixed = kept_types(keep, shapes)
    points: dict[str, dict[str, int]] = {}
    for name, shape in shapes.items():
        kinds = [fixed[name]] if name in fixed else list(CANDIDATES)
        fitting = {fitting_type(kind, shape) for kind in kinds}
        points[name] = {kind: num_bytes(shape, kind) for kind in sorted(fitting)}
    least = overhead + sum(min(sizes.values()) for sizes in points.values())
    most = overhead + sum(max(sizes.values()) for sizes in points.values())
    if target < least:
        raise UserError(
            f"{shown_bytes(target)} can't be met: the smallest file that can be written here has "
            f"{shown_bytes(least)} ({least} bytes)"
        )
    tried = {name: list(sizes) for name, sizes in points.items()}
    costs = measure_costs(source, rows, how, tried, seed=seed, damping=damping)
    if target >= most:
        types = {name: max(sizes, key=lambda k: (sizes[k], k)) for name, sizes in points.items()}
    else:
        types = choose(points, costs, target - overhead)
    total = sum(costs[name].get(kind, 0.0) for name, kind in types.items())
    return Mix(types=types, predicted_kl=total)


def choose(
    sizes: Mapping[str, Mapping[str, int]], costs: Mapping[str, Mapping[str, float]], budget: int
) -> dict[str, str]:
    """One kind for each name, of at most `budget` bytes together, with little cost.

    Steps to larger kinds are taken in the order of what they save for a byte, which is what a price
    does; those that no longer fit are passed over, so that what is left is filled as well.
    """
    chosen = {
        name: min(own, key=lambda kind: (own[kind], costs[name].get(kind, 0.0)))
        for name, own in sizes.items()
    }
    left = budget - sum(sizes[name][kind] for name, kind in chosen.items())

    def best_step(name: str) -> tuple[float, str, str] | None:
        now, own, cost = chosen[name], sizes[name], costs[name]
        found = [
            ((cost.get(kind, 0.0) - cost.get(now, 0.0)) / (size - own[now]), name, kind)
            for kind, size in own.items()
            if 0 < size - own[now] <= left and cost.get(kind, 0.0) < cost.get(now, 0.0)
        ]
        return min(found, default=None)

    steps = [step for name in sizes if (step := best_step(name)) is not None]
    heapq.heapify(steps)
    while steps:
        _, name, kind = heapq.heappop(steps)
        more = sizes[name][kind] - sizes[name][chosen[name]]
        if more <= left:
            left -= more
            chosen[name] = kind
        if (step := best_step(name)) is not None:
            heapq.heappush(steps, step)
    return chosen


def table(mix: Mix, shapes: Shapes) -> Iterator[str]:
    """A mix for people: kinds of tensors and the types they get."""
    rows: dict[str, Counter[str]] = {}
    bits = 0
    for name, shape in shapes.items():
        kind = fitting_type(mix.types[name], shape)
        rows.setdefault(re.sub(r"\.\d+\.", ".*.", name), Counter())[kind] += 1
        bits += 8 * num_bytes(shape, kind)
    for name, types in rows.items():
        told = ", ".join(f"{kind} x {n}" if n > 1 else kind for kind, n in sorted(types.items()))
        yield f"  {name:28} {told}"
    count = sum(prod(shape) for shape in shapes.values())
    yield f"{shown_bytes(bits // 8)} of tensors, {bits / count:.2f} bits per weight"
    if mix.predicted_kl is not None:
        yield f"predicted KL to the float model: {mix.predicted_kl:.4f} nats per token"
