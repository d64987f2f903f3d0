"""What an adapter is: a config says which, `add_adapter` puts it on a model, an `Adapter` holds it.

    adapter = add_adapter(model, LoRAConfig(rank=8), seed=0)
    ...                                    # train: `adapter.parameters` alone ask for gradients
    with adapter.disabled():               # the model as it was
        reference = model(input_ids)
    save_adapter(adapter, "runs/adapter", base="smollm2-135m")
    adapter.merge()                        # or `remove()`

A method's config has a `kind` and puts *parts* into the model: modules that stand in the place of a
layer, or beside one. A part keeps what it stands for, so that everything can be undone. This module
loads no torch, so that stages can name an adapter in their configs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from lmworks.core.errors import UserError
from lmworks.core.tables import look_up

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lmworks.models.adapters.foreign import ForeignNames
    from lmworks.models.model import Model

ADAPTERS = {
    "lora": "lmworks.models.adapters.lora:LoRAConfig",
    "dora": "lmworks.models.adapters.dora:DoRAConfig",
    "ia3": "lmworks.models.adapters.ia3:IA3Config",
    "bottleneck": "lmworks.models.adapters.bottleneck:BottleneckConfig",
    "prefix": "lmworks.models.adapters.prefix:PrefixConfig",
}

CONFIG = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter."""
    return (folder / CONFIG).is_file()


class Part(Protocol):
    """A module that an adapter has put into a model."""

    enabled: bool

    def trained(self) -> list[torch.nn.Parameter]:
        """The parameters that are the adapter's."""
        ...

    def merged(self) -> nn.Module | None:
        """What does the same without an adapter. Raises: UserError where nothing can."""
        ...

    def taken_away(self) -> nn.Module | None:
        """What stood here before, or None for a part that stands beside others."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig(ABC):
    """The base of all adapters' settings; `kind` is a name in ADAPTERS."""

    mergeable: ClassVar[bool] = True  # whether weights can express it
    kind: str = dataclasses.field(default="", init=False)

    @classmethod
    def of_kind(cls, kind: str) -> type[AdapterConfig]:
        """The config class called `kind`. Raises: UserError naming the nearest known one."""
        found: type[AdapterConfig] = look_up(ADAPTERS, kind, seam="adapter")
        return found

    @abstractmethod
    def attach(self, model: Model, generator: torch.Generator) -> dict[str, nn.Module]:
        """Put the parts into `model`; by the path at which each was put.

        Raises: UserError where the model has no place for them.
        """

    @abstractmethod
    def to_files(
        self, adapter: Adapter, names: ForeignNames
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """The keys of `adapter_config.json` and the tensors beside it.

        Raises: UserError for what the format has no words for.
        """

    @classmethod
    @abstractmethod
    def from_files(
        cls,
        model: Model,
        values: Mapping[str, Any],
        tensors: dict[str, torch.Tensor],
        names: ForeignNames,
    ) -> Adapter:
        """The adapter that the two files describe, on `model`.

        Raises: UserError for what does not fit the model or is not supported.
        """


class Adapter:
    """An adapter on its model.

    Attributes:
        config: what it was made from.
        parts: its modules by the path at which they stand.
    """

    def __init__(self, model: Model, config: AdapterConfig, parts: Mapping[str, nn.Module]) -> None:
        self.model, self.config, self.parts = model, config, dict(parts)
        ours = {id(parameter) for part in self._parts() for parameter in part.trained()}
        self._frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in ours]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        vars(model)["adapter"] = self

    @property
    def named_parameters(self) -> dict[str, torch.nn.Parameter]:
        """What is trained, by its name in the model."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """What is trained."""
        return list(self.named_parameters.values())

    @property
    def num_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters)

    @contextlib.contextmanager
    def disabled(self) -> Iterator[Model]:
        """The model without the adapter, to the bit, as long as it lasts."""
        former = [part.enabled for part in self._parts()]
        try:
            for part in self._parts():
                part.enabled = False
            yield self.model
        finally:
            for part, enabled in zip(self._parts(), former, strict=True):
                part.enabled = enabled

    def merge(self) -> Model:
        """Fold the adapter into the weights; the model is plain afterwards and keeps what it says.

        Matrices that were packed become float32.

        Raises: UserError for an adapter that no weights can express; nothing is changed then.
        """
        import torch

        if "embed_tokens" in self.parts and self.model.config.tie_word_embeddings:
            raise UserError(
                "an adapter on the embedding can't be merged: the head is tied to it, and would "
                "change too"
            )
        with torch.no_grad():
            merged = {path: part.merged() for path, part in zip(self.parts, self._parts())}
        self._leave(merged)
        return self.model

    def remove(self) -> Model:
        """Take the adapter away; the model is what it was before."""
        self._leave({path: part.taken_away() for path, part in zip(self.parts, self._parts())})
        return self.model

    def _parts(self) -> list[Part]:
        return list(self.parts.values())  # type: ignore[arg-type]

    def _leave(self, instead: Mapping[str, nn.Module | None]) -> None:
        for path, module in instead.items():
            parent, _, name = path.rpartition(".")
            holder = self.model.get_submodule(parent)
            setattr(holder, name, module)
        self.parts = {}
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        vars(self.model).pop("adapter", None)


def add_adapter(model: Model, config: AdapterConfig, seed: int = 0) -> Adapter:
    """Put a fresh adapter on `model` and freeze all else.

    Args:
        seed: of its weights; torch's own random state is left alone.
    Raises: UserError for a model that has one already, or has no place for this one.
    """
    import torch

    check_free(model)
    return Adapter(model, config, config.attach(model, torch.Generator().manual_seed(seed)))


def check_free(model: Model) -> None:
    """Raises: UserError for a model with an adapter on it."""
    if adapter_of(model) is not None:
        raise UserError("this model has an adapter already: merge or remove it first")


def adapter_of(model: Model) -> Adapter | None:
    """The adapter that was put on `model`, if there is one."""
    return vars(model).get("adapter")
