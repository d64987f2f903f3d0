"""DoRA: the rows of a matrix keep lengths of their own, and LoRA turns them.

    W' = m * (W + s B A) / |W + s B A|      (lengths of rows; the denominator gets no gradient)

The lengths are not taken from W + s B A, which would have to be made at every step, but put
together from |W|^2, which never changes, and products of thin matrices:
|W + s B A|^2 = |W|^2 + 2 s (W A^T) . B + s^2 (B A A^T) . B, row by row.

Source: Liu et al. 2024, arXiv 2402.09353; the constant denominator: section 4.3.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lmworks.core.errors import UserError
from lmworks.models.adapters import frozen
from lmworks.models.adapters.lora import LoRAConfig, LoRALinear
from lmworks.models.adapters.lora_function import plain
from lmworks.models.adapters.targets import is_embedding


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoRAConfig(LoRAConfig):
    """Low-rank updates of the direction of rows, and their lengths apart."""

    kind: str = dataclasses.field(default="dora", init=False)

    def part(
        self, path: str, base: nn.Module, rank: int, scale: float, generator: torch.Generator
    ) -> nn.Module:
        """See `LoRAConfig`. Raises: UserError as well for an embedding."""
        if is_embedding(base):
            raise UserError(f"dora: {path} is an embedding; it takes linear layers alone")
        return super().part(path, base, rank, scale, generator)

    def linear_type(self) -> type[LoRALinear]:
        """See `LoRAConfig`."""
        return DoRALinear


class DoRALinear(LoRALinear):
    """(..., in) -> (..., out)."""

    squared_norm: torch.Tensor  # of each row of the base, (out,)

    def __init__(self, base: nn.Module, **settings: Any) -> None:
        super().__init__(base, **settings)
        squares = frozen.weight(base).square().sum(1)
        self.register_buffer("squared_norm", squares, persistent=False)
        self.magnitude = nn.Parameter(squares.sqrt())

    @torch.no_grad()
    def norms(self) -> torch.Tensor:
        """|W + s B A| of each row, (out,)."""
        a, b, s = self.lora_A, self.lora_B, self.scale
        crossed = (frozen.product(self.base, a.detach(), bias=False).T * b).sum(1)
        squares = ((b @ (a @ a.T)) * b).sum(1)
        # What rounding leaves of a row of zeros may lie below zero.
        return (self.squared_norm + 2 * s * crossed + s * s * squares).clamp_(min=0).sqrt()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        if not self.enabled:
            out: torch.Tensor = self.base(x)
            return out
        norms, bias = self.norms(), frozen.bias(self.base)
        seen = self._dropped(x)
        if seen is not None or not plain(x, self.lora_A):
            return self._in_steps(x, x if seen is None else seen, norms, bias)
        y: torch.Tensor = _DoRA.apply(  # type: ignore[no-untyped-call]
            x, self.lora_A, self.lora_B, self.magnitude, self.base, self.scale, norms
        )
        return y if bias is None else y + bias

    def _in_steps(
        self, x: torch.Tensor, seen: torch.Tensor, norms: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """With dropout: the base sees all of x, and what m adds to it only what is left of it."""
        ratio = self.magnitude / norms
        product = self.base(seen) if bias is None else self.base(seen) - bias
        thin = F.linear(F.linear(seen, self.lora_A), self.lora_B) * self.scale
        out: torch.Tensor = self.base(x) + (ratio - 1) * product + ratio * thin
        return out

    def trained(self) -> list[nn.Parameter]:
        """See `Part`."""
        return [*super().trained(), self.magnitude]

    def merged(self) -> nn.Module:
        """See `Part`."""
        whole = frozen.weight(self.base) + self.update()
        ratio = self.magnitude / torch.linalg.vector_norm(whole, dim=1)
        return frozen.as_linear(ratio[:, None] * whole, frozen.bias(self.base))


class _DoRA(torch.autograd.Function):
    """As `lora_function`, rows scaled; u = x (W + s B A)^T is kept for the lengths' gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        magnitude: torch.Tensor,
        base: nn.Module,
        scale: float,
        norms: torch.Tensor,
    ) -> torch.Tensor:
        flat = x.flatten(0, -2)
        thin = flat @ a.T
        u = frozen.product(base, flat, bias=False).addmm_(thin, b.T, alpha=scale)
        ratio = magnitude / norms
        ctx.save_for_backward(x, a, b, thin, u, ratio, norms)
        ctx.base, ctx.scale = base, scale
        return (u * ratio).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, a, b, thin, u, ratio, norms = ctx.saved_tensors
        outer = gradients[0].flatten(0, -2)
        grad_magnitude = (outer * u).sum(0) / norms
        upstream = outer * ratio
        thin_upstream = (upstream @ b).mul_(ctx.scale)
        grad_b = (upstream.T @ thin).mul_(ctx.scale)
        grad_a = thin_upstream.T @ x.flatten(0, -2)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = frozen.gradient(ctx.base, upstream).addmm_(thin_upstream, a).view(x.shape)
        return grad_x, grad_a, grad_b, grad_magnitude, None, None, None
