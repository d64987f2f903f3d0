"""Several adapters over one model that is held once; a step picks one for each of its rows.

    shared = SharedAdapters(model)
    shared.load("legal", "runs/legal")
    with shared.active(["legal"]) as adapted:
        adapted(input_ids)

Each adapter gets the model's modules in containers of its own (`shell`), so that a part stands in
one of them alone: nothing is switched on or off, and two threads may use two adapters. Rows of
several LoRAs are one forward over a further shell, in which each adapted layer adds to every row
its own update (`mixed.py`); adapters of other kinds take turns.

Source: one base, many adapters, products grouped by row: Sheng et al. 2023 (S-LoRA), arXiv
2311.03285, section 4; Chen et al. 2023 (Punica), arXiv 2310.18547.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from torch import nn

from lmworks.core.errors import UserError, unknown_name
from lmworks.models.adapters.base import Adapter, check_free
from lmworks.models.adapters.files import load_adapter
from lmworks.models.adapters.lora import LoRALinear
from lmworks.models.adapters.mixed import MixedLinear, RowAdapters
from lmworks.models.adapters.targets import put

if TYPE_CHECKING:
    from lmworks.models.model import Model

M = TypeVar("M", bound=nn.Module)


class SharedAdapters:
    """The adapters of `model`, by name; "" stands for the model as it is.

    `load` and `unload` may be called from any thread while others use what is there. Who unloads an
    adapter sees to it that no step needs it any more.
    """

    def __init__(self, model: Model) -> None:
        check_free(model)
        self.model = model
        self._adapters: dict[str, Adapter] = {}
        self._rows = RowAdapters()
        self._mixed = shell(model)
        self._layers: dict[str, MixedLinear] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """The adapters that are loaded."""
        return list(self._adapters)

    def __contains__(self, name: str) -> bool:
        return name in self._adapters

    def check(self, name: str) -> None:
        """Raises: UserError with the nearest name for an adapter that is not loaded."""
        if name and name not in self._adapters:
            raise unknown_name("adapter", name, self._adapters)

    def load(self, name: str, folder: str | Path) -> None:
        """Load the adapter of a folder under a name that is free.

        Raises: UserError as `load_adapter` does; nothing is changed then.
        """
        with self._lock:
            if not name or name in self._adapters:
                raise UserError(f"an adapter called {name!r} is there already: unload it first")
            adapter = load_adapter(shell(self.model), folder)
            if _mixes(adapter):
                self._mix(name, adapter)
            self._adapters[name] = adapter

    def unload(self, name: str) -> None:
        """Forget an adapter. Raises: UserError for one that is not there."""
        with self._lock:
            self.check(name)
            adapter = self._adapters.pop(name)
            if _mixes(adapter):
                for path in adapter.parts:
                    self._layers[path].remove(name)

    def num_bytes(self, name: str) -> int:
        """Memory of an adapter's own tensors."""
        self.check(name)
        adapter = self._adapters[name]
        parts: list[nn.Parameter] = [
            parameter
            for part in adapter.parts.values()
            for parameter in part.trained()  # type: ignore[operator]
        ]
        return sum(parameter.numel() * parameter.element_size() for parameter in parts)

    def groups(self, names: Sequence[str]) -> list[list[int]]:
        """Which rows, by their adapters' names, can be one forward each."""
        together: list[int] = []
        alone: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            mixes = not name or _mixes(self._adapters[name])
            (together if mixes else alone.setdefault(name, [])).append(row)
        return [rows for rows in (together, *alone.values()) if rows]

    @contextlib.contextmanager
    def active(self, names: Sequence[str]) -> Iterator[Model]:
        """The model to call with rows of these adapters, which `groups` has put together.

        Two threads may not be in here with several names each at the same time.

        Raises: UserError for an adapter that is not loaded.
        """
        for name in set(names):
            self.check(name)
        if len(set(names)) == 1:
            yield self._adapters[names[0]].model if names[0] else self.model
            return
        with self._rows.of(names):
            yield self._mixed

    def _mix(self, name: str, adapter: Adapter) -> None:
        for path, part in adapter.parts.items():
            assert isinstance(part, LoRALinear)
            if path not in self._layers:
                self._layers[path] = MixedLinear(part.base, self._rows)
                put(self._mixed, path, self._layers[path])
            self._layers[path].add(name, part)


def _mixes(adapter: Adapter) -> bool:
    """Whether its rows can stand beside those of other adapters: LoRA on linear layers alone."""
    return all(type(part) is LoRALinear for part in adapter.parts.values())


def shell(module: M) -> M:
    """The same modules and tensors in containers of their own: what is put into the one that is
    returned does not change `module`."""
    done: dict[int, nn.Module] = {}

    def copied(module: nn.Module) -> nn.Module:
        if not any(child is not None for child in module._modules.values()):
            return module
        if id(module) not in done:
            new = done[id(module)] = copy.copy(module)
            new._modules = {
                name: None if child is None else copied(child)
                for name, child in module._modules.items()
            }
        return done[id(module)]

    found: M = copied(module)  # type: ignore[assignment]
    return found
