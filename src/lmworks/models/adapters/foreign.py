"""Names and rows between our modules and Hugging Face's, for the files of adapters.

An adapter's tensors are made for modules of the other side, which may be fused (one matrix for
queries, keys and values) or hold their rows in another order. The name map of the architecture says
how (`architectures/rules.py`); here it is asked about modules instead of tensors. Anything with one
row per output, such as LoRA's B or DoRA's magnitudes, goes the way of the rows of the weight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from lmworks.core.errors import UserError, nearest
from lmworks.models.architectures.base import Architecture, architecture, architecture_of
from lmworks.models.architectures.rules import Bound
from lmworks.models.skeleton import skeleton

if TYPE_CHECKING:
    from lmworks.models.model import Model

_WEIGHT = ".weight"
# Modules that transformers calls otherwise than its files: PEFT would pass over them in silence.
_CALLED_OTHERWISE = ("embed_out",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fused:
    """A module of theirs, and those of ours that it stands for."""

    name: str
    own: tuple[str, ...]
    rows: tuple[int, ...]  # of each of ours
    bound: Bound

    def rows_to_foreign(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """Ours (out, columns), one of each of `own` -> theirs (all out, columns)."""
        whole = self.bound.to_foreign(parts)[self.name + _WEIGHT]
        return whole.mT if self.transposed else whole

    def rows_to_own(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """Theirs (all out, columns) -> ours, in the order of `own`."""
        parts = self.bound.to_own([whole.mT if self.transposed else whole])
        return [parts[name + _WEIGHT].contiguous() for name in self.own]

    @property
    def transposed(self) -> bool:
        """Whether theirs is stored as (in, out), as GPT-2's Conv1D."""
        columns = [torch.empty(rows, 1, device="meta") for rows in self.rows]
        return len(self.bound.to_foreign(columns)[self.name + _WEIGHT]) == 1


class ForeignNames:
    """The modules of Hugging Face's model that hold the matrices of `model`.

    Raises: UserError for a config that no Hugging Face architecture can tell.
    """

    def __init__(self, model: Model) -> None:
        parameters = dict(skeleton(model.config).named_parameters())
        self.architecture = _architecture(model)
        bounds = self.architecture.layout("hf").bind(parameters, model.config)
        self._by_own: dict[str, Fused] = {}
        self.names: set[str] = set()  # of all their modules with parameters
        for bound in bounds:
            self.names |= {name.rpartition(".")[0] for name in bound.foreign}
            if len(bound.foreign) == 1 and bound.foreign[0].endswith(_WEIGHT):
                own = tuple(name.removesuffix(_WEIGHT) for name in bound.own)
                fused = Fused(
                    name=bound.foreign[0].removesuffix(_WEIGHT),
                    own=own,
                    rows=tuple(len(parameters[name]) for name in bound.own),
                    bound=bound,
                )
                self._by_own |= dict.fromkeys(own, fused)

    def of_module(self, path: str) -> list[str]:
        """What theirs is called that holds our module `path`: one name, or none."""
        return [self._by_own[path].name] if path in self._by_own else []

    def fused(self, path: str) -> Fused:
        """Theirs that holds our module `path`. Raises: UserError where none does."""
        if path not in self._by_own or self._by_own[path].name in _CALLED_OTHERWISE:
            raise UserError(
                f"{path} is no single module in {self.architecture.name}'s names: an adapter on "
                "it can't be written"
            )
        return self._by_own[path]

    def unknown(self, name: str) -> Fused:
        """Raises: UserError for a module of an adapter that the model does not have."""
        close = nearest(name, self.names)
        hint = f"the nearest is {close}; " if close else ""
        raise UserError(
            f"the adapter is for a module {name}, which this model does not have: {hint}"
            "it was made for another base"
        )

    def check_rows(self, fused: Fused, tensor: torch.Tensor) -> None:
        """Raises: UserError for a tensor with other rows than the module has outputs."""
        if tensor.dim() != 2 or len(tensor) != sum(fused.rows):
            raise UserError(
                f"the adapter's tensor for {fused.name} has the shape {tuple(tensor.shape)}, but "
                f"the module has {sum(fused.rows)} outputs: it was made for another base"
            )

    def fill(self, parameter: torch.Tensor, values: torch.Tensor | None, what: str) -> None:
        """Copy `values` into `parameter`. Raises: UserError for none, or another shape, or NaN."""
        if values is None:
            raise UserError(f"the adapter lacks {what}: it was made for another base, or cut short")
        if values.shape != parameter.shape:
            raise UserError(
                f"{what} has the shape {tuple(values.shape)} in the adapter and "
                f"{tuple(parameter.shape)} in this model: it was made for another base"
            )
        if not bool(torch.isfinite(values).all()):
            raise UserError(f"the adapter's {what} holds values that are NaN or infinite")
        with torch.no_grad():
            parameter.copy_(values)

    def by_foreign(self) -> dict[str, Fused]:
        """All modules of theirs that hold matrices of ours, by name."""
        return {fused.name: fused for fused in self._by_own.values()}

    def shortest(self, chosen: set[str]) -> list[str]:
        """Endings of names that name `chosen` and no other of their modules."""
        ends = sorted({name.rpartition(".")[2] for name in chosen})
        named = {name for name in self.names if name.rpartition(".")[2] in ends}
        return ends if named == chosen else sorted(chosen)


def grouped(names: ForeignNames, paths: Mapping[str, object]) -> dict[str, Fused]:
    """The modules of theirs that adapters on our modules `paths` belong to, by name."""
    found = (names.fused(path) for path in paths)
    return {fused.name: fused for fused in found}


def _architecture(model: Model) -> Architecture:
    """The one that the model was loaded as, else the first that can tell its config."""
    if model.model_type:
        found = architecture(model.model_type)
        if found.expresses(model.config, "hf"):
            return found
    return architecture_of(model.config)
