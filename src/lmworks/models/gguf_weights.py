"""Weights of a GGUF file: dequantised to float32, or kept packed and computed with as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lmworks.core.errors import UserError
from lmworks.models.architectures.base import Layout, architecture
from lmworks.models.architectures.rules import Bound
from lmworks.models.config import AnyConfig, ModelConfig
from lmworks.models.weights import Shape, check_finite, telling, without

if TYPE_CHECKING:
    from lmworks.core.gguf import GGUF, GGUFTensor
    from lmworks.models.model import Model
    from lmworks.models.packed import PackedMatrix


def open_gguf(path: Path) -> GGUFWeights:
    """Read the file's metadata. Raises: UserError for a damaged file or unknown architecture."""
    from lmworks.core.gguf import read_gguf

    file = read_gguf(path)
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str):
        raise UserError(f"{path} names no general.architecture: it is not a model")
    with telling(path):
        layout = architecture(name).layout("gguf")
        config = layout.read_config(file.metadata, file.tensors)
    weights = GGUFWeights(path, layout, config, file)
    weights.model_type = name
    return weights


class GGUFWeights:
    """The opened file."""

    model_type = ""

    def __init__(self, path: Path, layout: Layout, config: ModelConfig, file: GGUF) -> None:
        self.path, self.layout = path, layout
        self.config: AnyConfig = config
        self.tensors: dict[str, GGUFTensor] = file.tensors

    def shapes(self) -> dict[str, Shape]:
        """See `Weights`."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        return without(shapes, self.layout.ignored)

    def tensor(self, name: str) -> torch.Tensor:
        """See `Weights`."""
        from lmworks.core.gguf import dequantize

        with telling(self.path):
            return torch.tensor(dequantize(self.tensors[name]), dtype=torch.float32)

    def _rows(self, bound: Bound) -> GGUFTensor:
        """The tensor of a `plain` rule, its rows in our order."""
        tensor = self.tensors[bound.foreign[0]]
        order = bound.row_order
        if order is None:
            return tensor
        # Blocks run along a row, so quantised rows can change places as bytes.
        rows = tensor.data.reshape(len(order), -1)
        return dataclasses.replace(tensor, data=rows[order.numpy()].reshape(tensor.data.shape))

    def packable(self, model: Model, bounds: list[Bound]) -> Iterator[tuple[str, Any, Bound]]:
        """The modules of `model` whose matrices are quantised: path, module, and its tensor."""
        from lmworks.models.packed import PACKED_TYPES

        by_name = {bound.own[0]: bound for bound in bounds if bound.rule.plain}
        for path, module in list(model.named_modules()):
            bound = by_name.get(f"{path}.weight")
            if type(module) not in (nn.Linear, nn.Embedding) or bound is None:
                continue
            if self.tensors[bound.foreign[0]].type in PACKED_TYPES:
                yield path, module, bound

    def pack(self, model: Model, bounds: list[Bound]) -> None:
        """Replace the modules of `model` whose matrices are quantised by packed ones.

        Raises: UserError for scales that are NaN or infinite.
        """
        from lmworks.models.packed import PackedEmbedding, PackedLinear

        kinds: dict[type, Any] = {nn.Linear: PackedLinear, nn.Embedding: PackedEmbedding}
        for path, module, bound in self.packable(model, bounds):
            kind = kinds[type(module)]
            tensor = self._rows(bound)
            bias = getattr(module, "bias", None)
            packed = kind(tensor) if bias is None else kind(tensor, bias)
            self._check_scales(bound.foreign[0], packed.matrix)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, packed)
            if kind is PackedEmbedding and model.config.tie_word_embeddings:
                model.lm_head = PackedLinear(tensor, matrix=packed.matrix)  # held once

    def _check_scales(self, name: str, matrix: PackedMatrix) -> None:
        for values in (matrix.scales, matrix.offsets):
            if values is not None:
                check_finite(self, name, torch.from_numpy(values))
