"""An opened checkpoint of either format, and whether its tensors fit its config."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import Architecture, Format
from lmworks.models.config import ModelConfig
from lmworks.models.decoder import Decoder

Shape = tuple[int, ...]

_MOST_NAMES = 8


class Weights(Protocol):
    """Which tensors a checkpoint holds, and each of them on demand."""

    path: Path
    format: Format
    architecture: Architecture
    config: ModelConfig

    def shapes(self) -> dict[str, Shape]:
        """The tensors' names in the file and their shapes, without those that are no weights."""
        ...

    def read(self, name: str) -> torch.Tensor:
        """The parameter with our name `name`, in fresh float32 memory."""
        ...


@contextlib.contextmanager
def telling(where: Path) -> Iterator[None]:
    """Put the file's name before an error that a reader of its values raised."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def compare_shapes(weights: Weights, model: Decoder) -> None:
    """Raises: UserError with all tensors that are missing, unexpected or of another shape."""
    target, format = weights.architecture, weights.format
    wanted = {target.foreign_name(n, format): tuple(p.shape) for n, p in model.named_parameters()}
    held = weights.shapes()
    faults = {
        "missing": [name for name in wanted if name not in held],
        "unexpected": [name for name in held if name not in wanted],
        "of a wrong shape": [
            f"{name} {held[name]} instead of {shape}"
            for name, shape in wanted.items()
            if name in held and held[name] != shape
        ],
    }
    told = [f"{len(names)} {kind}: {_some(names)}" for kind, names in faults.items() if names]
    if told:
        raise UserError(f"{weights.path}: the tensors do not fit the config: {'; '.join(told)}")


def check_finite(weights: Weights, name: str, values: torch.Tensor) -> None:
    """Raises: UserError if `values` of our parameter `name` hold NaN or infinity."""
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        foreign = weights.architecture.foreign_name(name, weights.format)
        raise UserError(
            f"{weights.path}: {foreign} holds {int((~finite).sum())} values that are NaN or "
            "infinite: the weights are damaged"
        )


def without(shapes: Mapping[str, Shape], ignored: str) -> dict[str, Shape]:
    """`shapes` without the names that match the pattern `ignored`."""
    return {name: shape for name, shape in shapes.items() if not re.fullmatch(ignored, name)}


def _some(names: list[str]) -> str:
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
