"""Models by name, as the server sees them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from lmworks.inference.base import ChatModel


class Models(Protocol):
    """Names and the models behind them; a model may be loaded at its first use.

    `get` is called in a thread, as it may take long; the others are called on the event loop.
    """

    def get(self, name: str) -> ChatModel:
        """Raises: KeyError for an unknown name; UserError where the model can't be had."""
        ...

    def names(self) -> Sequence[str]:
        """The names that requests may give, the chat page's choice first."""
        ...

    def describe(self) -> Sequence[Mapping[str, Any]]:
        """One mapping with an `id` per name, what else is known of it beside; for `/v1/models`."""
        ...

    def loaded(self) -> Mapping[str, ChatModel]:
        """The models in memory."""
        ...

    def close(self) -> None:
        """End the engines and connections of all."""
        ...


class FixedModels:
    """Models that are all there from the start."""

    def __init__(self, models: Mapping[str, ChatModel]) -> None:
        self._models = dict(models)

    def get(self, name: str) -> ChatModel:
        """See `Models`."""
        return self._models[name]

    def names(self) -> Sequence[str]:
        """See `Models`."""
        return tuple(self._models)

    def describe(self) -> Sequence[Mapping[str, Any]]:
        """See `Models`."""
        return [{"id": name} for name in self._models]

    def loaded(self) -> Mapping[str, ChatModel]:
        """See `Models`."""
        return self._models

    def close(self) -> None:
        """See `Models`."""
        for model in self._models.values():
            if close := getattr(model, "close", None):
                close()

    def __iter__(self) -> Iterator[str]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)


def as_models(models: Models | Mapping[str, ChatModel]) -> Models:
    """A plain mapping becomes `FixedModels`."""
    return FixedModels(models) if isinstance(models, Mapping) else models
