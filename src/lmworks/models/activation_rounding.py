"""What linear modules are given, rounded before the product: activations of 8 bits.

A format that keeps activations in bytes multiplies bytes; here the numbers that those bytes stand
for are multiplied in float32, so that quality is that of the format on any machine and speed is
that of the module beneath. The scale of a token is found when it comes (dynamic), or is one number
per module that calibration found (static).

Sources: per token: Yao et al. 2022, ZeroQuant, arXiv 2206.01861, section 3.1; static: Xiao et al.
2022, SmoothQuant, arXiv 2211.10438, table 2. Checked: compressed-tensors 0.20, to the bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lmworks.core.errors import unknown_name
from lmworks.models.adapters.frozen import as_linear

if TYPE_CHECKING:
    from lmworks.models.model import Model

_LEAST = torch.finfo(torch.float32).eps  # of a scale, where all is zero
_FLOAT8 = torch.float8_e4m3fn


def round_int8(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x as scale times whole numbers from -128 to 127."""
    return (x / scale).round().clamp(-128, 127) * scale


def round_fp8(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x as scale times numbers of the type e4m3: 3 bits of mantissa, up to 448."""
    return (x / scale).clamp(-448, 448).to(_FLOAT8).to(x.dtype) * scale


# By name: how to round, and the number that the largest activation is to become.
WAYS: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], torch.Tensor], float]] = {
    "int8": (round_int8, 127.5),
    "fp8": (round_fp8, 448.0),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputRounding:
    """How the inputs of a module are rounded.

    Attributes:
        kind: one of WAYS.
        scale: of all inputs; None: each token's own, so that its largest number just fits.
    """

    kind: str
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in WAYS:
            raise unknown_name("rounding of activations", self.kind, WAYS)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(..., n) -> the same, rounded."""
        way, largest = WAYS[self.kind]
        if self.scale is not None:
            return way(x, torch.tensor(self.scale, dtype=x.dtype))
        scale = x.abs().amax(dim=-1, keepdim=True) / largest
        return way(x, torch.where(scale == 0, _LEAST, scale))


class RoundedLinear(nn.Module):
    """A linear module, float or packed, whose inputs are rounded first. Gradients pass as if not.

    Short steps that run as one call (`fused_step`) do not know it and leave it to the modules.
    """

    def __init__(self, base: nn.Module, rounding: InputRounding) -> None:
        super().__init__()
        self.base, self.rounding = base, rounding
        self.in_features, self.out_features = base.in_features, base.out_features

    @property
    def weight(self) -> Any:
        """The float module's weight."""
        return self.base.weight

    @property
    def bias(self) -> Any:
        """The module's bias (out,), or None."""
        return self.base.bias

    @property
    def matrix(self) -> Any:
        """The packed module's matrix."""
        return self.base.matrix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        rounded = self.rounding(x.detach())
        if x.requires_grad and torch.is_grad_enabled():
            rounded = x + (rounded - x.detach())
        out: torch.Tensor = self.base(rounded)
        return out

    def dequantized(self) -> torch.Tensor:
        """The weight as float32 (out, in)."""
        if isinstance(self.base, nn.Linear):
            return self.base.weight.detach()
        base: Any = self.base
        found: torch.Tensor = base.dequantized()
        return found

    def plain(self) -> nn.Linear:
        """A float layer without the rounding."""
        return as_linear(self.dequantized(), self.bias)


def linear_modules(model: Model) -> Iterator[tuple[str, nn.Module]]:
    """The layers' modules that multiply with a matrix, by path; none inside another."""
    for path, module in list(model.layers.named_modules()):
        inside = path.endswith((".base", ".linear"))
        multiplies = isinstance(module, nn.Linear) or hasattr(module, "dequantized")
        if multiplies and not inside and hasattr(module, "in_features"):  # an embedding has none
            yield f"layers.{path}", module


@contextlib.contextmanager
def rounded_activations(model: Model, rounding: InputRounding) -> Iterator[Model]:
    """The model with the inputs of all its layers' linear modules rounded, for a while."""
    modules = {path: RoundedLinear(module, rounding) for path, module in linear_modules(model)}
    with replaced(model, modules):
        yield model


@contextlib.contextmanager
def replaced(model: Model, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Other modules at some paths, for a while."""
    before = {path: model.get_submodule(path) for path in modules}
    try:
        for path, module in modules.items():
            model.set_submodule(path, module)
        yield
    finally:
        for path, module in before.items():
            model.set_submodule(path, module)
