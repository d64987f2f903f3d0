"""Weights of a Hugging Face folder: `model.safetensors`, or shards named by an index.

Headers are read when the folder is opened; tensors are copied out of the mapped file one by one
as float32. Half-precision files are widened, other types (integers, 8-bit floats) are refused.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lmworks.core.errors import UserError
from lmworks.core.files import read_json
from lmworks.models.architectures.base import Layout
from lmworks.models.config import AnyConfig, LMHeadConfig, ModelConfig
from lmworks.models.weights import Shape

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_TYPES = ("F64", "F32", "F16", "BF16")
_EMBEDDING, _HEAD = "embed_tokens.weight", "lm_head.weight"


class SafetensorsWeights:
    """The opened folder. Keeps its files mapped as long as it lives."""

    model_type = ""

    def __init__(self, folder: Path, layout: Layout, config: AnyConfig) -> None:
        self.path, self.config = folder, config
        self._files: dict[str, tuple[Any, str]] = {}  # (file, name in it)
        for path in weight_files(folder):
            file = _open(path)
            self._files |= {_today(name, layout): (file, name) for name in file.keys()}  # noqa: SIM118
        if not any(name.startswith(layout.prefix) for name in self._files):
            # The folder holds the base model alone, whose names lack the prefix, and no head,
            # whatever its config says (sentence-transformers keeps the one it began from).
            self._files = {layout.prefix + name: held for name, held in self._files.items()}
            self.config = _without_head(config)
        self.layout = layout.of_file(self._files)
        ignored = re.compile(layout.ignored).fullmatch
        self._shapes = {name: self._check(name) for name in self._files if not ignored(name)}

    def _check(self, name: str) -> Shape:
        file, stored = self._files[name]
        part = file.get_slice(stored)
        if part.get_dtype() not in _TYPES:
            raise UserError(
                f"{self.path}: {stored} is of type {part.get_dtype()}; known: {', '.join(_TYPES)}"
            )
        return tuple(part.get_shape())

    def shapes(self) -> dict[str, Shape]:
        """See `Weights`. A tied head that is stored all the same must equal the embedding."""
        shapes = dict(self._shapes)
        head, embedding = (_foreign(self.layout, name) for name in (_HEAD, _EMBEDDING))
        if getattr(self.config, "tie_word_embeddings", False) and head in shapes:
            self._check_tied(head, embedding)
            del shapes[head]
        return shapes

    def _check_tied(self, head: str, embedding: str) -> None:
        if embedding not in self._files:
            return
        if not torch.equal(self._raw(head), self._raw(embedding)):
            raise UserError(
                f"{self.path}: config.json ties the head to the embedding, but {head} differs "
                f"from {embedding}: set tie_word_embeddings to false"
            )

    def _raw(self, name: str) -> torch.Tensor:
        file, stored = self._files[name]
        tensor: torch.Tensor = file.get_tensor(stored)
        return tensor

    def tensor(self, name: str) -> torch.Tensor:
        """See `Weights`."""
        return self._raw(name).to(torch.float32, copy=True)


def _today(name: str, layout: Layout) -> str:
    """What a file of today calls the tensor that an old one calls `name`."""
    for old, new in layout.renamed.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _without_head(config: AnyConfig) -> AnyConfig:
    """`config` without a head that would need weights of its own."""
    if not isinstance(config, ModelConfig):
        return config
    head = config.head
    plain = isinstance(head, LMHeadConfig) and not head.bias and not head.transform
    if plain and config.tie_word_embeddings:
        return config
    return dataclasses.replace(config, head=None)


def _foreign(layout: Layout, own: str) -> str:
    """What the file calls our parameter `own`, or "" if no rule speaks of it alone."""
    return next((rule.foreign[0] for rule in layout.rules if rule.own == (own,)), "")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the folder. Raises: UserError if some are missing."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder} holds neither {SINGLE} nor {INDEX}")
    names = sorted(set(_weight_map(folder / INDEX).values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder}: {INDEX} names files that are not there: {', '.join(missing)}")
    return [folder / name for name in names]


def _weight_map(path: Path) -> Mapping[str, str]:
    values = read_json(path, "weight index")
    table = values.get("weight_map") if isinstance(values, Mapping) else None
    if not isinstance(table, Mapping) or not table:
        raise UserError(f"{path} holds no weight_map: it is not the index of a sharded model")
    for name, file in table.items():
        # The index may only name neighbours: no path out of the folder.
        if not isinstance(file, str) or Path(file).name != file or "\\" in file:
            raise UserError(f"{path}: {name} lies in {file!r}, which is not a file of this folder")
    return table


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged or cut short ({error}): fetch or make it again"
        ) from error
