"""Products with a frozen matrix, whatever holds it: float32, packed GGUF blocks, NF4.

An adapter needs two of them, x W^T and, in the backward, dY W; no gradient of W exists. Blocks are
dequantised a slice of rows at a time, so that the matrix never stands in memory whole.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def product(base: Any, x: torch.Tensor, *, bias: bool = True) -> torch.Tensor:
    """x (N, in) -> (N, out), without a graph; `bias`: add the layer's, if it has one."""
    with torch.no_grad():
        if isinstance(base, nn.Linear):
            return F.linear(x, base.weight, base.bias if bias else None)
        out: torch.Tensor = base(x.detach())
        held = getattr(base, "bias", None)
        return out if bias or held is None else out - held


def gradient(base: Any, upstream: torch.Tensor) -> torch.Tensor:
    """(N, out), the gradient of the product -> (N, in), that of x."""
    if isinstance(base, nn.Linear):
        return upstream @ base.weight
    found: torch.Tensor = base.matrix.gradient(upstream)
    return found


def weight(base: Any) -> torch.Tensor:
    """The matrix as float32 (out, in); of a float layer its own memory."""
    if isinstance(base, nn.Linear | nn.Embedding):
        return base.weight.detach()
    found: torch.Tensor = base.dequantized()
    return found


def bias(base: nn.Module) -> torch.Tensor | None:
    """The layer's bias (out,), if it has one."""
    found: Any = getattr(base, "bias", None)
    return found


def as_linear(values: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A plain layer with this matrix (out, in)."""
    layer = nn.Linear(values.shape[1], values.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(values)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def as_embedding(values: torch.Tensor) -> nn.Embedding:
    """A plain table with these rows."""
    table = nn.Embedding(values.shape[0], values.shape[1], device="meta")
    table.weight = nn.Parameter(values)
    return table
