"""Matrices of a model made smaller as it is read, one at a time: it never stands whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from lmworks.core.errors import UserError, unknown_name
from lmworks.models.model import Model
from lmworks.models.two_tower import TwoTower

QUANTIZERS = ("nf4",)
Pack = Callable[
    [Model | TwoTower, Sequence[str]], None
]  # (model, names of parameters that were just read)


def quantizer(name: str) -> Pack:
    """What is done to matrices that were just read; for "", nothing.

    Raises: UserError for an unknown name.
    """
    if not name:
        return lambda model, names: None
    if name not in QUANTIZERS:
        raise unknown_name("quantisation", name, QUANTIZERS)
    return _to_nf4


def _to_nf4(model: Model | TwoTower, names: Sequence[str]) -> None:
    """Replace the layers' linear modules that these parameters complete."""
    from lmworks.models.nf4 import NF4Linear

    if not isinstance(model, Model):
        raise UserError("two towers that meet can't be quantised as they are read")
    for name in names:
        path = name.rpartition(".")[0]
        module = model.get_submodule(path)
        if type(module) is not nn.Linear or path.partition(".")[0] not in ("layers", "encoder"):
            continue
        if any(parameter.is_meta for parameter in module.parameters()):
            continue  # its bias comes later
        parent, _, last = path.rpartition(".")
        setattr(model.get_submodule(parent), last, NF4Linear.of(module))
