"""The product of a frozen matrix and a low-rank update of it, as one function with its backward.

    y = x W^T + s (x A^T) B^T
    dB = s dY^T (x A^T)     dA = s (dY B)^T x     dX = dY W + s (dY B) A

Left to autograd, the update costs two more arrays as large as y in the forward (its product, and
the sum) and two as large as x in the backward. Here the thin products are added in place, by the
matrix product itself, and what is kept for the backward is x, which layers with the same input
share, and x A^T, which is `rank` numbers per position. W gets no gradient, so packed blocks serve
as it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from lmworks.models.adapters import frozen


def lora_product(
    x: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    base: nn.Module,
    scale: float,
    dropped: torch.Tensor | None = None,
) -> torch.Tensor:
    """x (..., in) -> (..., out).

    Args:
        a: (rank, in). b: (out, rank).
        base: the layer whose frozen matrix (and bias) it is.
        dropped: what the update sees instead of x, (..., in).
    """
    if dropped is not None or not plain(x, a):
        seen = x if dropped is None else dropped
        out: torch.Tensor = base(x)
        return out + scale * F.linear(F.linear(seen, a), b)
    out = _LoRA.apply(x, a, b, base, scale)  # type: ignore[no-untyped-call]
    return out


def plain(x: torch.Tensor, a: torch.Tensor) -> bool:
    """Whether there is one precision throughout, so that products can be added in place."""
    return x.dtype == a.dtype and not torch.is_autocast_enabled(x.device.type)


class _LoRA(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, base: nn.Module, scale: float
    ) -> torch.Tensor:
        flat = x.flatten(0, -2)
        thin = flat @ a.T  # (N, rank)
        y = frozen.product(base, flat).addmm_(thin, b.T, alpha=scale)
        ctx.save_for_backward(x, a, b, thin)
        ctx.base, ctx.scale = base, scale
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, a, b, thin = ctx.saved_tensors
        upstream = gradients[0].flatten(0, -2)
        thin_upstream = (upstream @ b).mul_(ctx.scale)  # (N, rank)
        grad_b = (upstream.T @ thin).mul_(ctx.scale)
        grad_a = thin_upstream.T @ x.flatten(0, -2)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = frozen.gradient(ctx.base, upstream).addmm_(thin_upstream, a).view(x.shape)
        return grad_x, grad_a, grad_b, None, None
