"""The normalisations: RMSNorm and LayerNorm."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

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
        if _pays_on_cpu(x, scale):
            normed: torch.Tensor = _RMSNorm.apply(x, scale, self.eps)
            return normed
        return F.rms_norm(x, self.weight.shape, scale, self.eps)

    def reset_parameters(self) -> None:
        """A scale of one."""
        nn.init.constant_(self.weight, 0.0 if self.unit_offset else 1.0)


def _pays_on_cpu(x: torch.Tensor, scale: torch.Tensor) -> bool:
    """Whether `_RMSNorm` is to compute: GPUs have a fused kernel of their own."""
    same = x.dtype == scale.dtype and x.dtype in (torch.float32, torch.float64)
    if hasattr(x, "placements") or hasattr(scale, "placements"):  # cut over several processes
        return False
    return same and x.device.type == "cpu" and torch.is_grad_enabled()


class _RMSNorm(torch.autograd.Function):
    """F.rms_norm to the bit, and a backward with two thirds of the passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
        inverse = x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale, inverse)
        return (x * inverse).mul_(scale)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, scale, inverse = ctx.saved_tensors
        normed = x * inverse
        wants_x, wants_scale, _ = ctx.needs_input_grad
        grad_scale = (grad * normed).flatten(0, -2).sum(0) if wants_scale else None
        if not wants_x:
            return None, grad_scale, None
        inner = grad * scale
        mean = (inner * normed).mean(-1, keepdim=True)
        return inner.sub_(normed.mul_(mean)).mul_(inverse), grad_scale, None


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
