"""The normalisations: RMSNorm and LayerNorm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from lmworks.models.config import LayerNormConfig, NormConfig, RMSNormConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale over the last dimension. Source: arXiv 1910.07467.

    The scale is the weight, or 1 + weight with `unit_offset` (Gemma), so that decay pulls it to 1.
    """

    def __init__(self, hidden_size: int, config: RMSNormConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size))
        self.eps, self.unit_offset = config.eps, config.unit_offset
        self.reset_parameters()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., H) -> (..., H)."""
        scale = self.weight + 1 if self.unit_offset else self.weight
        return F.rms_norm(x, self.weight.shape, scale, self.eps)

    def reset_parameters(self) -> None:
        """A scale of one."""
        nn.init.constant_(self.weight, 0.0 if self.unit_offset else 1.0)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * weight + bias. Source: arXiv 1607.06450."""

    def __init__(self, hidden_size: int, config: LayerNormConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size))
        self.bias = nn.Parameter(torch.empty(hidden_size)) if config.bias else None
        self.eps = config.eps
        self.reset_parameters()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., H) -> (..., H)."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    def reset_parameters(self) -> None:
        """A scale of one and no shift."""
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def build_norm(config: NormConfig, size: int) -> RMSNorm | LayerNorm:
    """The norm over a last dimension of `size`."""
    if isinstance(config, RMSNormConfig):
        return RMSNorm(size, config)
    return LayerNorm(size, config)
