"""Many models in one process: each is loaded when it is first asked for, within a memory budget.

    models = {"chat": ModelSpec(model="smollm2-135m")}
    pool = ModelPool(PoolSpec(models=models, memory_budget=4 << 30))
    pool.get("chat").complete([{"role": "user", "content": "Hello"}])

A name gives a `PooledModel` at once; what stands behind it is loaded by the first request, in that
request's thread, while others that want it wait. Room is made by unloading what was idle longest
(`memory_room.py`). An adapter of a model is a name of its own and shares the model's weights; as
`model="base:adapter"` it is known too.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.inference.base import ChatModel
from lmworks.serving.loaded_models import LoadedModel, Plan
from lmworks.serving.memory_room import MemoryRoom
from lmworks.serving.memory_units import DoesNotFit, Lease, LoadFailed, NoRoom, Unit
from lmworks.serving.model_specs import ModelSpec, PoolSpec, check_name
from lmworks.serving.pooled_model import PooledModel

__all__ = ["DoesNotFit", "LoadFailed", "ModelPool", "NoRoom"]


class ModelPool:
    """The models of a server, as `catalogue.Models`.

    Args:
        room: for tests; made of the spec otherwise.
        adapter_folder: the folder whose sub-folders clients may load as adapters; None: none.
    Raises: UserError for two models or adapters of one name.
    """

    def __init__(
        self,
        spec: PoolSpec,
        *,
        room: MemoryRoom | None = None,
        adapter_folder: Path | None = None,
    ) -> None:
        self.spec = spec
        self.room = room or MemoryRoom(spec.memory_budget)
        self._adapter_folder = adapter_folder
        self._entries: dict[str, Entry] = {}
        self._generations = 0
        if spec.threads:
            import torch

            torch.set_num_threads(spec.threads)
        for name, model in spec.models.items():
            self._add(Entry(name, model))
        for name, model in spec.models.items():
            for adapter, folder in model.adapters.items():
                self._add_adapter(name, adapter, folder)

    # --- what `catalogue.Models` asks for ---

    def get(self, name: str) -> ChatModel:
        """See `Models`; what it gives loads the model when it is asked something."""
        return PooledModel(self, self.entry(name))

    def names(self) -> Sequence[str]:
        """See `Models`."""
        return tuple(self._entries)

    def __contains__(self, name: str) -> bool:
        try:
            self.entry(name)
        except KeyError:
            return False
        return True

    def describe(self) -> Sequence[Mapping[str, Any]]:
        """See `Models`: state, memory, context and measured speed of each; nothing is read."""
        return [entry.describe() for entry in list(self._entries.values())]

    def loaded(self) -> Mapping[str, ChatModel]:
        """See `Models`."""
        found: dict[str, ChatModel] = {}
        for name, entry in list(self._entries.items()):
            value = entry.unit.value
            if isinstance(value, LoadedModel) and value.kind in ("chat", "remote"):
                found[name] = value.chat
        return found

    def close(self) -> None:
        """Unload everything."""
        self.room.close()

    # --- loading and unloading ---

    def entry(self, name: str) -> Entry:
        """What is known of a name. Raises: KeyError for an unknown one."""
        if name in self._entries:
            return self._entries[name]
        base, colon, adapter = name.partition(":")
        entry = self._entries.get(adapter) if colon else None
        if entry is None or entry.base is None or entry.base.name != base:
            raise KeyError(name)
        return entry

    def acquire(self, name: str) -> Lease:
        """The use of a model, loaded if need be.

        Raises: KeyError; DoesNotFit, NoRoom, LoadFailed.
        """
        return self.room.acquire(self.entry(name).unit)

    def load(self, name: str) -> Mapping[str, Any]:
        """Load a model; at once if it is there. Returns: as `describe`. Raises: as `acquire`."""
        self.acquire(name).release()
        return self.entry(name).describe()

    def unload(self, name: str, timeout_s: float | None = None) -> Mapping[str, Any]:
        """Unload a model when the answers under way have ended; its adapters go with it.

        Raises: KeyError; NoRoom if it stayed in use for `timeout_s`.
        """
        entry = self.entry(name)
        self.room.release_memory(entry.unit, timeout_s)
        return entry.describe()

    def preload(self) -> None:
        """Load all models (adapters at their first use). Raises: as `acquire`."""
        for entry in list(self._entries.values()):
            if entry.base is None:
                self.load(entry.name)

    def load_adapter(self, name: str, folder: str, base: str) -> Mapping[str, Any]:
        """Add an adapter under a new name and load it, for a client.

        Args:
            folder: the name of a folder in the pool's `adapter_folder`, no path.
            base: the model under it; "" where there is one that it can be.
        Raises: UserError for a name that is taken, or a folder that may not be read.
        """
        check_name(name)
        if name in self._entries:
            raise UserError(f"{name!r} is taken: unload it first, or choose another name")
        place = self._adapter_place(folder)
        bases = [e.name for e in self._entries.values() if e.base is None]
        if not base and len(bases) == 1:
            base = bases[0]
        if base not in bases:
            raise UserError(f"base_model {base!r}: name the model under it: {', '.join(bases)}")
        entry = self._add_adapter(base, name, str(place))
        try:
            return self.load(name)
        except Exception:
            self._entries.pop(name, None)
            self.room.forget(entry.unit)
            raise

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter when the answers under way have ended. Raises: KeyError; UserError."""
        entry = self.entry(name)
        if entry.base is None:
            raise UserError(f"{name} is no adapter: unload it as a model")
        self.room.forget(entry.unit)
        self._entries.pop(entry.name, None)

    def _adapter_place(self, folder: str) -> Path:
        if self._adapter_folder is None:
            raise UserError("this server loads no adapters for clients: start it with --adapters")
        place = self._adapter_folder / folder
        inside = place.is_dir() and place.resolve().parent == self._adapter_folder.resolve()
        if not folder or Path(folder).name != folder or not inside:
            raise UserError(
                f"{folder!r} is no folder of {self._adapter_folder.name}: name one, without a path"
            )
        return place

    def _add(self, entry: Entry) -> None:
        unit = Unit(
            name=entry.name,
            measure=entry.measure,
            load=lambda _: entry.load(),
            unload=lambda value, _: value.close(),
            pinned=entry.spec.pinned,
            keep_alive_s=self._keep_alive_s(entry.spec),
        )
        self._enter(entry, unit)

    def _add_adapter(self, base: str, name: str, folder: str) -> Entry:
        under = self._entries[base]
        self._generations += 1
        # Its own key in the engine: what was cached of a former adapter of this name is not its.
        key = f"{name}#{self._generations}"
        entry = Entry(name, ModelSpec(model=folder), base=under, key=key)

        def load(parent: LoadedModel) -> tuple[str, int]:
            parent.adapters.load(key, folder)
            return key, parent.adapters.num_bytes(key)

        unit = Unit(
            name=name,
            measure=entry.measure,
            load=load,
            unload=lambda value, parent: parent.drop_adapter(value),
            parent=under.unit,
            keep_alive_s=self._keep_alive_s(under.spec),
        )
        self._enter(entry, unit)
        return entry

    def _enter(self, entry: Entry, unit: Unit) -> None:
        self.room.add(unit)
        entry.unit = unit
        self._entries[entry.name] = entry

    def _keep_alive_s(self, spec: ModelSpec) -> float | None:
        own = spec.keep_alive_s
        return self.spec.keep_alive_s if own is None else own


class Entry:
    """A name of the pool, and what is known of it, loaded or not."""

    unit: Unit

    def __init__(
        self, name: str, spec: ModelSpec, *, base: Entry | None = None, key: str = ""
    ) -> None:
        self.name, self.spec, self.base, self.key = name, spec, base, key
        self.plan: Plan | None = None
        self._speeds: deque[float] = deque(maxlen=20)

    @property
    def settings(self) -> ModelSpec:
        """Whose system prompt and sampling count."""
        return self.spec if self.base is None else self.base.spec

    def measure(self) -> int:
        """Bytes that it will take."""
        if self.base is not None:
            from lmworks.models.size import adapter_bytes

            return adapter_bytes(Path(self.spec.model))
        self.plan = Plan(self.spec)
        return self.plan.num_bytes

    def load(self) -> tuple[LoadedModel, int]:
        """The model and its bytes."""
        model = LoadedModel(self.name, self.spec)
        return model, model.num_bytes

    def saw(self, tokens: int, seconds: float) -> None:
        """Take note of how fast an answer came."""
        if tokens > 1 and seconds > 0:
            self._speeds.append((tokens - 1) / seconds)

    @property
    def tokens_per_s(self) -> float | None:
        """What one answer gets, the median of the last twenty."""
        return round(statistics.median(self._speeds), 1) if self._speeds else None

    def describe(self) -> dict[str, Any]:
        """For `/v1/models`; see `ModelPool.describe`."""
        unit = self.unit
        plan = self.plan if self.base is None else self.base.plan
        described: dict[str, Any] = {
            "id": self.name,
            "state": unit.state,
            "kind": None if plan is None else plan.kind,
            "bytes": unit.num_bytes,
            "context": (plan.context or None) if plan else None,
            "tokens_per_s": self.tokens_per_s,
            "requests": unit.leases,
            "pinned": unit.pinned,
            "num_loads": unit.num_loads,
        }
        if self.base is not None:
            described["parent"] = self.base.name  # as vLLM calls the model under an adapter
        if unit.failure is not None and unit.state == "unloaded":
            described["error"] = str(unit.failure)
        return described
