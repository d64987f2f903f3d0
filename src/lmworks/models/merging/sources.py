"""The models that go into a merge, opened: which tensors they hold, and rows of each on demand.

All are spoken of by the names that Hugging Face files give their tensors, which is what filters of
recipes match. A folder of safetensors needs no more than its header: any architecture will do. A
GGUF file is translated by the name maps of `architectures/`; its rows are de-quantised to float32.
Nothing is mapped: a read ends in memory of its own, and what is not read costs none.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from lmworks.core.errors import UserError
from lmworks.core.files import read_json
from lmworks.core.safetensors_files import StoredTensor, read_header

if TYPE_CHECKING:
    from lmworks.core.gguf import GGUFTensor
    from lmworks.models.architectures.rules import Bound
    from lmworks.models.config import ModelConfig
    from lmworks.models.gguf_weights import GGUFWeights

DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Held:
    """A tensor of a model: its shape, and the type in which it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Source(Protocol):
    """An opened model."""

    path: Path
    reference: str
    model_type: str
    tied: bool  # the head is the embedding, and is not stored

    @property
    def tensors(self) -> Mapping[str, Held]:
        """What it holds."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of its config.json, or what one would say."""
        ...

    def read(self, name: str, first: int, last: int) -> torch.Tensor:
        """Rows of a tensor (all of its numbers, if it has no rows), in fresh memory."""
        ...


def open_source(reference: str, path: Path) -> Source:
    """Open a folder of safetensors, or a GGUF file.

    Raises: UserError for anything else, and for a damaged file.
    """
    from lmworks.core.gguf import find_gguf

    if path.is_dir() and any(path.glob("*.safetensors*")):
        return SafetensorsSource(reference, path)
    if found := find_gguf(path):
        return GGUFSource(reference, found)
    raise UserError(f"{reference} is no model: it holds neither safetensors nor a .gguf file")


def model_config(source: Source) -> ModelConfig:
    """What is known of the model's layers. Raises: UserError where it is no single model."""
    from lmworks.models.config import ModelConfig
    from lmworks.models.load import open_weights

    config: Any = (
        source.config if isinstance(source, GGUFSource) else open_weights(source.path).config
    )
    if not isinstance(config, ModelConfig):
        raise UserError(
            f"{source.reference} is no single model, as a GGUF file is: write safetensors"
        )
    return config


class SafetensorsSource:
    """A Hugging Face folder."""

    def __init__(self, reference: str, path: Path) -> None:
        from lmworks.models.safetensors_weights import weight_files

        self.reference, self.path = reference, path
        self.settings: Mapping[str, Any] = _settings(path)
        self.model_type = str(self.settings["model_type"])
        self._stored: dict[str, StoredTensor] = {}
        for file in weight_files(path):
            self._stored |= read_header(file)
        self.tensors = {name: self._held(stored) for name, stored in self._stored.items()}
        self.tied = bool(self.settings.get("tie_word_embeddings"))

    def _held(self, stored: StoredTensor) -> Held:
        if stored.dtype not in DTYPES:
            raise UserError(
                f"{stored.path}: {stored.name} is of type {stored.dtype}, which can't be merged: "
                "load the original"
            )
        return Held(shape=stored.shape, dtype=DTYPES[stored.dtype])

    def read(self, name: str, first: int, last: int) -> torch.Tensor:
        """See `Source`."""
        stored = self._stored[name]
        shape = stored.shape
        row = stored.num_bytes // max(1, shape[0]) if shape else stored.num_bytes
        with open(stored.path, "rb") as file:
            file.seek(stored.start + first * row)
            data = bytearray((last - first) * row)
            if file.readinto(data) != len(data):
                raise UserError(f"{stored.path} is cut short: fetch or make it again")
        values = torch.frombuffer(data, dtype=DTYPES[stored.dtype]) if data else torch.empty(0)
        return values.reshape((last - first, *shape[1:]) if shape else ())


def _settings(folder: Path) -> Mapping[str, Any]:
    where = folder / "config.json"
    values = read_json(where, "model config")
    if not isinstance(values, Mapping) or not isinstance(values.get("model_type"), str):
        raise UserError(f"{where} names no model_type: it is not the config of a model")
    if values.get("quantization_config"):
        raise UserError(f"{where}: weights with a quantization_config can't be merged")
    return values


class GGUFSource:
    """A GGUF file, by Hugging Face's names."""

    def __init__(self, reference: str, path: Path) -> None:
        from lmworks.core.gguf import read_gguf
        from lmworks.models.architectures.base import architecture_of
        from lmworks.models.config import ModelConfig
        from lmworks.models.gguf_weights import open_gguf
        from lmworks.models.skeleton import skeleton
        from lmworks.models.weights import bind_weights

        self.reference, self.path = reference, path
        self.weights: GGUFWeights = open_gguf(path)
        self.metadata = read_gguf(path).metadata
        config = self.weights.config
        assert isinstance(config, ModelConfig)
        self.config: ModelConfig = config
        empty = skeleton(config)
        found = architecture_of(config)
        layout = found.layout("hf")
        self.settings = layout.config_dict(config)
        self.model_type = str(self.settings.get("model_type", found.name))
        self.tied = config.tie_word_embeddings
        parameters = dict(empty.named_parameters())
        self._stored_as = {
            own: bound for bound in bind_weights(self.weights, empty) for own in bound.own
        }
        self._made_of: dict[str, Bound] = {}
        self.tensors = {}
        for bound in layout.bind(parameters, config):
            shapes = bound.to_foreign([parameters[own].detach() for own in bound.own])
            for name, tensor in shapes.items():
                self._made_of[name] = bound
                self.tensors[name] = Held(shape=tuple(tensor.shape), dtype=torch.float32)
        self._whole = functools.lru_cache(maxsize=1)(self._read_bound)

    def read(self, name: str, first: int, last: int) -> torch.Tensor:
        """See `Source`."""
        bound = self._made_of[name]
        rows = self._plain_rows(bound)
        if rows is None:
            whole = self._whole(bound.foreign)[name]
            return whole[first:last].clone() if whole.ndim else whole.clone()
        tensor, order = rows
        return _dequantized(tensor, order[first:last])

    def stored_type(self, name: str) -> str:
        """The ggml type of the first tensor that holds what `name` is made of."""
        stored = self._stored_as[self._made_of[name].own[0]]
        return self.weights.tensors[stored.foreign[0]].type

    def _plain_rows(self, bound: Bound) -> tuple[GGUFTensor, torch.Tensor] | None:
        """The stored tensor and, for each row by Hugging Face's name, its row there."""
        stored = self._stored_as[bound.own[0]]
        if not (bound.rule.plain and stored.rule.plain):
            return None
        tensor = self.weights.tensors[stored.foreign[0]]
        order = torch.arange(tensor.shape[0])
        for step, forwards in ((stored, True), (bound, False)):
            rows = step.row_order
            if rows is not None:
                order = order[rows] if forwards else order[rows.argsort()]
        return tensor, order

    def _read_bound(self, foreign: tuple[str, ...]) -> dict[str, torch.Tensor]:
        bound = self._made_of[foreign[0]]
        own: dict[str, torch.Tensor] = {}
        for name in bound.own:
            if name not in own:
                stored = self._stored_as[name]
                own |= stored.to_own([self.weights.tensor(part) for part in stored.foreign])
        return bound.to_foreign([own[name] for name in bound.own])


def _dequantized(tensor: GGUFTensor, rows: torch.Tensor) -> torch.Tensor:
    import numpy as np

    from lmworks.core.gguf import dequantize

    if len(tensor.shape) == 1:
        return torch.from_numpy(dequantize(tensor))[rows]
    raw = np.asarray(tensor.data).reshape(tensor.shape[0], -1)[rows.numpy()]
    shape = (len(rows), *tensor.shape[1:])
    part = dataclasses.replace(tensor, data=raw.reshape(-1), shape=shape)
    return torch.from_numpy(dequantize(part))
