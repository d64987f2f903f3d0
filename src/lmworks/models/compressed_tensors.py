"""Weights of a folder in the compressed-tensors format: integers and 8-bit floats with scales.

A linear module lies there as several tensors: its codes (`weight_packed` in words of 32 bits, or
`weight` in bytes), `weight_scale`, perhaps `weight_zero_point`, `weight_shape` and `input_scale`.
To the rest of the loader it is one float32 tensor, made when it is asked for. Packed, integer
matrices are computed with as they are, by the same kernels as GGUF blocks; inputs are rounded as
the scheme says. 8-bit floats become float32 either way: no kernel here reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lmworks.core.errors import UserError
from lmworks.models.activation_rounding import RoundedLinear
from lmworks.models.adapters.frozen import as_linear
from lmworks.models.architectures.base import Layout
from lmworks.models.architectures.rules import Bound
from lmworks.models.coded_matrix import CodedMatrix, unpack_words
from lmworks.models.compressed_scheme import Scheme, Schemes
from lmworks.models.config import AnyConfig
from lmworks.models.model import Model
from lmworks.models.packed import PackedLinear, PackedMatrix
from lmworks.models.packed_slots import BLOCK, TILE
from lmworks.models.safetensors_weights import SafetensorsWeights
from lmworks.models.weights import Shape, check_finite, telling

_PARTS = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "input_scale")
_UNKNOWN = ("weight_g_idx", "weight_global_scale", "input_global_scale", "bitmask", "compressed")


class CompressedWeights(SafetensorsWeights):
    """The opened folder.

    Args:
        values: the `quantization_config` of its config.json.
    Raises: UserError for what is not honoured, and parts that are missing or of a wrong shape.
    """

    def __init__(
        self, folder: Path, layout: Layout, config: AnyConfig, values: Mapping[str, Any]
    ) -> None:
        with telling(folder / "config.json"):
            self._schemes = Schemes(values)
        self._modules: dict[str, Scheme] = {}
        super().__init__(folder, layout, config)
        for name in self._files:
            path, _, last = name.rpartition(".")
            if last in _UNKNOWN:
                raise UserError(f"{folder}: {name}: this layout of weights is not supported")
            if last == "weight_scale":
                self._modules[path] = self._schemes.of(path)
        self._shapes = {
            name: shape for name, shape in self._shapes.items() if not name.endswith(_PARTS)
        }
        for path, scheme in self._modules.items():
            self._shapes[f"{path}.weight"] = self._coded_shape(path, scheme)

    def _check(self, name: str) -> Shape:
        """The shape; the type too, of what is no part of a coded module."""
        path = name.rpartition(".")[0]
        if name.endswith(_PARTS) or f"{path}.weight_scale" in self._files:
            file, stored = self._files[name]
            return tuple(file.get_slice(stored).get_shape())
        return super()._check(name)

    def _part(self, path: str, name: str) -> torch.Tensor:
        if f"{path}.{name}" not in self._files:
            raise UserError(f"{self.path}: {path} has no {name}: the model is not whole")
        return super()._raw(f"{path}.{name}")

    def _raw(self, name: str) -> torch.Tensor:
        """As it is stored; the values of one that is coded."""
        return super()._raw(name) if self.scheme(name) is None else self.coded(name).dequantized()

    def _coded_shape(self, path: str, scheme: Scheme) -> Shape:
        """(rows, columns). Raises: UserError if codes, scales and shape do not fit each other."""
        if scheme.packed:
            said = self._part(path, "weight_shape").flatten().tolist()
            if len(said) != 2 or min(said) < 1:
                raise UserError(f"{self.path}: {path}.weight_shape is {said}")
            shape: Shape = (int(said[0]), int(said[1]))
            held = (
                self._check(f"{path}.weight_packed")
                if f"{path}.weight_packed" in self._files
                else ()
            )
            if held != (shape[0], -(-shape[1] * scheme.num_bits // 32)):
                raise UserError(f"{self.path}: {path}.weight_packed {held} does not hold {shape}")
        else:
            if f"{path}.weight" not in self._files:
                raise UserError(f"{self.path}: {path} has no weight: the model is not whole")
            shape = self._check(f"{path}.weight")
        if len(shape) != 2:
            raise UserError(f"{self.path}: {path}: coded weights {shape} are no matrix")
        if scheme.group_size and shape[1] % scheme.group_size:
            raise UserError(
                f"{self.path}: {path}: {shape[1]} columns in groups of {scheme.group_size}"
            )
        return shape

    def scheme(self, name: str) -> Scheme | None:
        """The scheme of the file's tensor `name`; None for one that isn't coded."""
        return self._modules.get(name.removesuffix(".weight"))

    def coded(self, name: str) -> CodedMatrix:
        """The codes of a tensor that has a scheme. Raises: UserError for damaged parts."""
        path = name.removesuffix(".weight")
        scheme, shape = self._modules[path], self._shapes[name]
        groups = shape[1] // scheme.group_size if scheme.group_size else 1
        scales = self._part(path, "weight_scale").float()
        if scheme.group_size == 0:
            scales = scales.reshape(1, 1)[[0] * shape[0]] if scales.numel() == 1 else scales
        if scales.numel() != shape[0] * groups:
            raise UserError(f"{self.path}: {path}.weight_scale {tuple(scales.shape)} for {shape}")
        scales = scales.reshape(shape[0], groups)
        check_finite(self, f"{path}.weight_scale", scales)
        if scheme.packed:
            words = self._part(path, "weight_packed")
            if words.dtype != torch.int32:
                raise UserError(f"{self.path}: {path}.weight_packed is {words.dtype}, not int32")
            codes = unpack_words(words, scheme.num_bits, shape[1])
        else:
            codes = self._part(path, "weight")
            wanted = torch.float8_e4m3fn if scheme.kind == "float" else torch.int8
            if codes.dtype != wanted:
                raise UserError(f"{self.path}: {path}.weight is {codes.dtype}, not {wanted}")
        zeros = None if scheme.symmetric else self._zeros(path, scheme, shape[0], groups)
        return CodedMatrix(codes=codes, scales=scales, zeros=zeros)

    def _zeros(self, path: str, scheme: Scheme, rows: int, groups: int) -> torch.Tensor:
        held = self._part(path, "weight_zero_point")
        if scheme.packed:  # along the rows
            if held.dtype != torch.int32 or held.shape != (
                -(-rows * scheme.num_bits // 32),
                groups,
            ):
                raise UserError(f"{self.path}: {path}.weight_zero_point {tuple(held.shape)}")
            return unpack_words(held.T.contiguous(), scheme.num_bits, rows).T.contiguous()
        if held.numel() != rows * groups:
            raise UserError(f"{self.path}: {path}.weight_zero_point {tuple(held.shape)}")
        return held.to(torch.int8).reshape(rows, groups)

    def tensor(self, name: str) -> torch.Tensor:
        """See `Weights`."""
        return super().tensor(name) if self.scheme(name) is None else self._raw(name)

    def packed_bytes(self, bounds: list[Bound]) -> int:
        """How much less memory the modules take that `pack` would replace, below 0."""
        less = 0
        for bound in bounds:
            scheme = self.scheme(bound.foreign[0])
            if scheme is None or not bound.rule.plain or scheme.kind == "float":
                continue
            rows, columns = self._shapes[bound.foreign[0]]
            size = scheme.group_size or columns
            halves = size == BLOCK // 2 and scheme.symmetric
            if columns % BLOCK or (size % BLOCK and not halves):
                continue
            scales = columns // BLOCK * (2 if halves else 1) * (1 if scheme.symmetric else 2)
            row = columns // (2 if scheme.num_bits <= 4 else 1) + 4 * scales
            less += -(-rows // TILE) * TILE * row - 4 * rows * columns
        return less

    def pack(self, model: Model, bounds: list[Bound]) -> None:
        """Replace the modules of `model` whose matrices are coded integers by packed ones.

        Modules with rounded inputs get these too, whatever their weights. Raises: UserError as
        `coded` does.
        """
        by_name = {bound.own[0]: bound for bound in bounds if bound.rule.plain}
        for path, module in list(model.named_modules()):
            bound = by_name.get(f"{path}.weight")
            if type(module) is not nn.Linear or bound is None:
                continue
            name = bound.foreign[0]
            scheme = self.scheme(name)
            if scheme is None:
                continue
            order = bound.row_order
            made: nn.Module = self._module(name, module, scheme, order)
            rounding = scheme.rounding(self._input_scale(name, scheme))
            if rounding is not None:
                made = RoundedLinear(made, rounding)
            if made is not module:
                parent, _, last = path.rpartition(".")
                setattr(model.get_submodule(parent), last, made)

    def _module(
        self, name: str, module: nn.Linear, scheme: Scheme, order: torch.Tensor | None
    ) -> nn.Module:
        """A packed module, or the plain one with its matrix read, for what no kernel takes."""
        coded = self.coded(name)
        rows = slice(None) if order is None else order
        codes, scales = coded.codes[rows], coded.scales[rows]
        zeros = None if coded.zeros is None else coded.zeros[rows]
        try:
            if scheme.kind == "float":
                raise ValueError("no kernel reads 8-bit floats")
            matrix = PackedMatrix.of_codes(
                codes.numpy(), scales.numpy(), None if zeros is None else zeros.numpy()
            )
        except ValueError:
            if not scheme.inputs:
                return module  # read as any other
            plain = CodedMatrix(codes=codes, scales=scales, zeros=zeros).dequantized()
            return as_linear(plain, module.bias)
        return PackedLinear(None, module.bias, matrix=matrix, block_type=f"int{scheme.num_bits}")

    def _input_scale(self, name: str, scheme: Scheme) -> float | None:
        if not scheme.inputs or scheme.dynamic:
            return None
        held = self._part(name.removesuffix(".weight"), "input_scale")
        if held.numel() != 1 or not float(held) > 0:
            raise UserError(f"{self.path}: {name}: its input_scale is {held.tolist()}")
        return float(held)
