"""An opened checkpoint of either format, and whether its tensors fit its config."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import Layout
from lmworks.models.architectures.rules import Bound
from lmworks.models.config import AnyConfig
from lmworks.models.model import Model
from lmworks.models.two_tower import TwoTower

Shape = tuple[int, ...]

_MOST_NAMES = 8


class Weights(Protocol):
    """Which tensors a checkpoint holds, and each of them on demand, by their names in the file."""

    path: Path
    layout: Layout
    config: AnyConfig
    model_type: str  # the architecture's name in the file

    def shapes(self) -> dict[str, Shape]:
        """The tensors and their shapes, without those that are no weights."""
        ...

    def tensor(self, name: str) -> torch.Tensor:
        """One of them, float32."""
        ...


@contextlib.contextmanager
def telling(where: Path) -> Iterator[None]:
    """Put the file's name before an error that a reader of its values raised."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def bind_weights(weights: Weights, model: Model | TwoTower) -> list[Bound]:
    """The name map between `weights` and `model`.

    Raises: UserError with all tensors that are missing, unexpected or of another shape.
    """
    parameters = dict(model.named_parameters())
    bounds = weights.layout.bind(parameters, weights.config)
    wanted = _wanted(bounds, parameters)
    held = weights.shapes()
    spare = re.compile(weights.layout.spare).fullmatch
    faults = {
        "missing": [name for name in wanted if name not in held],
        "unexpected": [name for name in held if name not in wanted and not spare(name)],
        "of a wrong shape": [
            f"{name} {held[name]} instead of {shape}"
            for name, shape in wanted.items()
            if name in held and held[name] != shape
        ],
    }
    told = [f"{len(names)} {kind}: {_some(names)}" for kind, names in faults.items() if names]
    if told:
        raise UserError(f"{weights.path}: the tensors do not fit the config: {'; '.join(told)}")
    return bounds


def _wanted(bounds: list[Bound], parameters: Mapping[str, torch.Tensor]) -> dict[str, Shape]:
    """The shapes that the file must hold."""
    return {
        name: tuple(tensor.shape)
        for bound in bounds
        for name, tensor in bound.to_foreign(
            [parameters[part].detach().to("meta") for part in bound.own]
        ).items()
    }


def read_weights(weights: Weights, bound: Bound) -> dict[str, torch.Tensor]:
    """Our parameters of one rule, in fresh memory.

    Raises: UserError if they hold NaN or infinity.
    """
    theirs = [weights.tensor(name) for name in bound.foreign]
    for name, values in zip(bound.foreign, theirs, strict=True):
        check_finite(weights, name, values)
    return {name: fresh(tensor, theirs) for name, tensor in bound.to_own(theirs).items()}


def fresh(tensor: torch.Tensor, sources: list[torch.Tensor]) -> torch.Tensor:
    """`tensor` in memory of its own: a cut of a fused matrix must not keep the whole alive."""
    whole = tensor.is_contiguous() and any(tensor is source for source in sources)
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


def check_finite(weights: Weights, name: str, values: torch.Tensor) -> None:
    """Raises: UserError if `values` of the file's tensor `name` hold NaN or infinity."""
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        raise UserError(
            f"{weights.path}: {name} holds {int((~finite).sum())} values that are NaN or "
            "infinite: the weights are damaged"
        )


def without(shapes: Mapping[str, Shape], ignored: str) -> dict[str, Shape]:
    """`shapes` without the names that match the pattern `ignored`."""
    return {name: shape for name, shape in shapes.items() if not re.fullmatch(ignored, name)}


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
