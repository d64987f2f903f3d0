"""Mamba-2: heads with one decay each, one projection for all that a position says, a gated norm.

Source: Dao and Gu 2024, arXiv 2405.21060, section 7 and figure 6.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from lmworks.models.config import Mamba2Config, ModelConfig
from lmworks.models.context import Context
from lmworks.models.initialization import INIT_STD, init_linear
from lmworks.models.mamba import fresh_time_steps
from lmworks.models.short_convolution import DepthwiseConvolution
from lmworks.models.ssd import ssd


class Mamba2(nn.Module):
    """(B, T, H) -> (B, T, H)."""

    def __init__(self, config: Mamba2Config, model: ModelConfig) -> None:
        super().__init__()
        self.config = config
        size, heads = config.intermediate_size, config.num_heads
        # Gate, what goes through the convolution (x, B and C), time steps.
        self.sizes = [size, config.conv_size, heads]
        self.in_proj = nn.Linear(model.hidden_size, sum(self.sizes), bias=config.bias)
        self.conv = DepthwiseConvolution(
            config.conv_size, config.conv_kernel, bias=config.conv_bias, silu=True
        )
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.A_log = nn.Parameter(torch.empty(heads))
        self.D = nn.Parameter(torch.empty(heads))
        self.norm = GatedRMSNorm(size, config.num_groups, config.norm_eps)
        self.out_proj = nn.Linear(size, model.hidden_size, bias=config.bias)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """See the class."""
        config, cache = self.config, context.cache
        gate, mixed, dt = self.in_proj(x).split(self.sizes, dim=-1)
        shared = config.num_groups * config.state_size
        parts = self.conv(mixed, context).split([config.intermediate_size, shared, shared], dim=-1)
        x, B, C = (part.unflatten(-1, (count, -1)) for part, count in zip(parts, self._heads()))
        dt = F.softplus(dt + self.dt_bias).clamp(config.least_step, config.largest_step)
        state = None if cache is None else cache.state("ssm")
        y, state = ssd(x, dt, -torch.exp(self.A_log), B, C, D=self.D, state=state)
        if cache is not None:
            cache.set_state("ssm", state)
        context.note("mixer.scan", y)
        out: torch.Tensor = self.out_proj(self.norm(y.flatten(2), gate))
        return out

    def _heads(self) -> tuple[int, int, int]:
        return self.config.num_heads, self.config.num_groups, self.config.num_groups

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None, *, output_std: float) -> None:
        """Decays from 1 to the number of heads, time steps from short to long; normal matrices."""
        init_linear(self.in_proj, generator, INIT_STD)
        init_linear(self.out_proj, generator, output_std)
        self.conv.reset_parameters(generator)
        self.dt_bias.copy_(fresh_time_steps(len(self.dt_bias), generator))
        self.A_log.copy_(torch.arange(1.0, self.config.num_heads + 1).log())
        nn.init.ones_(self.D)
        nn.init.ones_(self.norm.weight)


class GatedRMSNorm(nn.Module):
    """RMSNorm of x * silu(gate), each group of channels by itself."""

    def __init__(self, size: int, num_groups: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.num_groups, self.eps = num_groups, eps

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """(B, T, I) and (B, T, I) -> (B, T, I)."""
        groups = (x * F.silu(gate)).unflatten(-1, (self.num_groups, -1))
        return F.rms_norm(groups, groups.shape[-1:], eps=self.eps).flatten(-2) * self.weight
