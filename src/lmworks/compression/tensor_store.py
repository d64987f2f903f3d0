"""Quantised tensors on their way into a file: one after another on disk, so that none is held.

`tensors.bin` holds their bytes, `tensors.json` says where each lies. The list is written when a
layer is done; what a run that was killed left behind it is cut off.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from lmworks.core.errors import UserError
from lmworks.core.files import read_json, write_json, writing
from lmworks.core.ggml_types import TYPES
from lmworks.core.gguf import GGUFTensor

_DATA, _LIST = "tensors.bin", "tensors.json"


class TensorStore:
    """Tensors by name, kept in `folder`.

    Attributes:
        facts: by name, what was said of a tensor when it was put.
    """

    def __init__(self, folder: Path) -> None:
        self._data, self._list = folder / _DATA, folder / _LIST
        self._entries: dict[str, dict[str, Any]] = {}
        if self._list.is_file() and self._data.is_file():
            self._entries = read_json(self._list, "list of quantised tensors")
        end = max((entry["end"] for entry in self._entries.values()), default=0)
        with writing(self._data), open(self._data, "ab") as file:
            if os.fstat(file.fileno()).st_size < end:
                raise UserError(f"{self._data} is cut short: remove {folder} and start anew")
            file.truncate(end)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        return {name: entry["facts"] for name, entry in self._entries.items()}

    def put(self, tensor: GGUFTensor, **facts: Any) -> None:
        """Add a tensor. It counts from the next `keep` on."""
        with writing(self._data), open(self._data, "ab") as file:
            start = file.seek(0, os.SEEK_END)
            file.write(np.ascontiguousarray(tensor.data).tobytes())
        self._entries[tensor.name] = {
            "type": tensor.type,
            "shape": list(tensor.shape),
            "start": start,
            "end": start + tensor.data.nbytes,
            "facts": facts,
        }

    def keep(self) -> None:
        """Write the list: a later run begins here."""
        write_json(self._list, self._entries)

    def tensor(self, name: str) -> GGUFTensor:
        """One of them, mapped from the file."""
        entry = self._entries[name]
        kind, shape = entry["type"], tuple(entry["shape"])
        length = entry["end"] - entry["start"]
        expected = int(np.prod(shape)) // TYPES[kind].size * TYPES[kind].num_bytes
        if length != expected:
            raise UserError(f"{self._list} doesn't fit its data: remove its folder and start anew")
        data = np.memmap(
            self._data, dtype=np.uint8, mode="r", offset=entry["start"], shape=(length,)
        )
        return GGUFTensor(name=name, shape=shape, type=kind, data=data)

    def tensors(self, names: list[str]) -> dict[str, GGUFTensor]:
        """Those, in this order."""
        return {name: self.tensor(name) for name in names}
