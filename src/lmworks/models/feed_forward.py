"""SwiGLU, the gated feed-forward of Llama. Source: Shazeer 2020, arXiv 2002.05202.

Gate and up stay two projections: fused they are no faster on a CPU (the products of matrices
take the time either way), and apart they carry the names that adapters and quantisers look for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from lmworks.models.config import ModelConfig, SwiGLUConfig
from lmworks.models.initialization import INIT_STD, init_linear


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, config: SwiGLUConfig, model: ModelConfig) -> None:
        super().__init__()
        hidden, inner, bias = model.hidden_size, config.intermediate_size, config.bias
        self.gate_proj = nn.Linear(hidden, inner, bias=bias)
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, H) -> (B, T, H)."""
        y: torch.Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y

    def reset_parameters(self, generator: torch.Generator | None, *, output_std: float) -> None:
        """Normal weights, zero biases."""
        init_linear(self.gate_proj, generator, INIT_STD)
        init_linear(self.up_proj, generator, INIT_STD)
        init_linear(self.down_proj, generator, output_std)
