"""The dense feed-forward, gated (SwiGLU, GeGLU) or plain. Source: Shazeer 2020, arXiv 2002.05202.

Gate and up stay two projections: fused they are no faster on a CPU (the products of matrices
take the time either way), and apart they carry the names that adapters and quantisers look for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from lmworks.models.config import MLPConfig, ModelConfig
from lmworks.models.context import Context
from lmworks.models.initialization import INIT_STD, init_linear

Activation = Callable[[torch.Tensor], torch.Tensor]


class MLP(nn.Module):
    """down(activation(gate(x)) * up(x)), or down(activation(up(x))) if not gated."""

    def __init__(self, config: MLPConfig, model: ModelConfig) -> None:
        super().__init__()
        hidden, inner, bias = model.hidden_size, config.intermediate_size, config.bias
        self.gate_proj = nn.Linear(hidden, inner, bias=bias) if config.gated else None
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)
        self.activation = activation(config.activation)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """(B, T, H) -> (B, T, H)."""
        up = self.up_proj(x)
        if self.gate_proj is None:
            inner = self.activation(up)
        else:
            inner = gated(self.activation, self.gate_proj(x), up)
        y: torch.Tensor = self.down_proj(inner)
        return y

    def reset_parameters(self, generator: torch.Generator | None, *, output_std: float) -> None:
        """Normal weights, zero biases."""
        for projection in (self.gate_proj, self.up_proj):
            if projection is not None:
                init_linear(projection, generator, INIT_STD)
        init_linear(self.down_proj, generator, output_std)


def gated(activation: Activation, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """activation(gate) * up; with silu nothing but these two is kept for the backward."""
    if activation is F.silu and torch.is_grad_enabled() and gate.dtype == up.dtype:
        product: torch.Tensor = _SwiGLU.apply(gate, up)
        return product
    return activation(gate) * up


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up to the bit. silu(gate) is made anew in the backward: it is cheaper to compute
    than to keep, and is a quarter of what an MLP would keep."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        silu = F.silu(gate)
        grad_up = grad * silu
        grad_silu = torch.mul(grad, up, out=silu)
        return torch.ops.aten.silu_backward(grad_silu, gate), grad_up


def activation(name: str) -> Activation:
    """The function called `name` in configs; see `config.feed_forward.ACTIVATIONS`."""
    return _ACTIVATIONS[name]


def _gelu_quick(x: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(1.702 x), the approximation of CLIP."""
    return x * torch.sigmoid(1.702 * x)


def _relu_squared(x: torch.Tensor) -> torch.Tensor:
    """relu(x)^2. Source: So et al. 2021 (Primer), arXiv 2109.08668."""
    return F.relu(x).square()


_ACTIVATIONS: dict[str, Activation] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "gelu_quick": _gelu_quick,
    "relu": F.relu,
    "relu_squared": _relu_squared,
    "tanh": torch.tanh,
}
