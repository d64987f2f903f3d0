"""Weights of a GGUF file: dequantised to float32, or kept packed and computed with as they are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import Architecture, Format, architecture
from lmworks.models.config import ModelConfig
from lmworks.models.weights import Shape, check_finite, telling, without

if TYPE_CHECKING:
    from lmworks.core.gguf import GGUF, GGUFTensor
    from lmworks.models.decoder import Decoder
    from lmworks.models.packed import PackedMatrix


def open_gguf(path: Path) -> GGUFWeights:
    """Read the file's metadata. Raises: UserError for a damaged file or unknown architecture."""
    from lmworks.core.gguf import read_gguf

    file = read_gguf(path)
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise UserError(f"{path} names no general.architecture: it is not a model")
    with telling(path):
        target = architecture(name)
        config = target.config_from_gguf(file.metadata, file.tensors)
    return GGUFWeights(path, target, config, file)


class GGUFWeights:
    """The opened file."""

    format: Format = "gguf"

    def __init__(
        self, path: Path, architecture: Architecture, config: ModelConfig, file: GGUF
    ) -> None:
        self.path, self.architecture, self.config = path, architecture, config
        self._tensors: dict[str, GGUFTensor] = file.tensors

    def shapes(self) -> dict[str, Shape]:
        """See `Weights`."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        return without(shapes, self.architecture.ignored_gguf)

    def read(self, name: str) -> torch.Tensor:
        """See `Weights`."""
        from lmworks.core.gguf import dequantize

        with telling(self.path):
            return torch.tensor(dequantize(self._tensor(name)), dtype=torch.float32)

    def _tensor(self, name: str) -> GGUFTensor:
        """The tensor of our parameter `name`, its rows in our order."""
        tensor = self._tensors[self.architecture.foreign_name(name, "gguf")]
        order = self.architecture.gguf_row_order(name, self.config)
        if order is None:
            return tensor
        # Blocks run along a row, so quantised rows can change places as bytes.
        rows = tensor.data.reshape(len(order), -1)
        return dataclasses.replace(tensor, data=rows[order].reshape(tensor.data.shape))

    def pack(self, model: Decoder) -> None:
        """Replace the modules of `model` whose matrices are quantised by packed ones.

        Raises: UserError for scales that are NaN or infinite.
        """
        from lmworks.models.packed import PACKED_TYPES, PackedEmbedding, PackedLinear

        kinds: dict[type, Any] = {nn.Linear: PackedLinear, nn.Embedding: PackedEmbedding}
        for path, module in list(model.named_modules()):
            kind = kinds.get(type(module))
            if kind is None or getattr(module, "bias", None) is not None:
                continue
            tensor = self._tensor(f"{path}.weight")
            if tensor.type not in PACKED_TYPES:
                continue
            packed = kind(tensor)
            self._check_scales(f"{path}.weight", packed.matrix)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, packed)
            if kind is PackedEmbedding and model.config.tie_word_embeddings:
                model.lm_head = PackedLinear(tensor)
                model.lm_head.matrix = packed.matrix  # held once

    def _check_scales(self, name: str, matrix: PackedMatrix) -> None:
        for values in (matrix.scales, matrix.offsets):
            if values is not None:
                check_finite(self, name, torch.from_numpy(values))
