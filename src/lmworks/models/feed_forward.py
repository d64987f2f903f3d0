"""The dense feed-forward, gated (SwiGLU, GeGLU) or plain. Source: Shazeer 2020, arXiv 2002.05202.

Gate and up stay two projections: fused they are no faster on a CPU (the products of matrices
take the time either way), and apart they carry the names that adapters and quantisers look for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

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
            inner = self.activation(self.gate_proj(x)) * up
        y: torch.Tensor = self.down_proj(inner)
        return y

    def reset_parameters(self, generator: torch.Generator | None, *, output_std: float) -> None:
        """Normal weights, zero biases."""
        for projection in (self.gate_proj, self.up_proj):
            if projection is not None:
                init_linear(projection, generator, INIT_STD)
        init_linear(self.down_proj, generator, output_std)


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
