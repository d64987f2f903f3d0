"""Mamba: a selective state space between two projections, with a gate.

Source: Gu and Dao 2023, arXiv 2312.00752, section 3.4 and figure 3.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from lmworks.models.config import MambaConfig, ModelConfig
from lmworks.models.context import Context
from lmworks.models.initialization import INIT_STD, init_linear
from lmworks.models.selective_scan import selective_scan
from lmworks.models.short_convolution import DepthwiseConvolution

_STEPS = (0.001, 0.1)  # of a fresh model: from the shortest to the longest
_LEAST_STEP = 1e-4


class Mamba(nn.Module):
    """(B, T, H) -> (B, T, H)."""

    vectors = ("A_log",)

    def __init__(self, config: MambaConfig, model: ModelConfig) -> None:
        super().__init__()
        self.config = config
        size, states, rank = config.intermediate_size, config.state_size, config.time_step_rank
        self.in_proj = nn.Linear(model.hidden_size, 2 * size, bias=config.bias)
        self.conv = DepthwiseConvolution(size, config.conv_kernel, bias=config.conv_bias, silu=True)
        self.x_proj = nn.Linear(size, rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(rank, size)
        self.A_log = nn.Parameter(torch.empty(size, states))
        self.D = nn.Parameter(torch.empty(size))
        self.out_proj = nn.Linear(size, model.hidden_size, bias=config.bias)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """See the class."""
        cache, states = context.cache, self.config.state_size
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        x = self.conv(x, context)
        dt, B, C = self.x_proj(x).split([self.config.time_step_rank, states, states], dim=-1)
        y, state = selective_scan(
            x,
            F.softplus(self.dt_proj(dt)),
            -torch.exp(self.A_log),
            B,
            C,
            D=self.D,
            z=gate,
            state=None if cache is None else cache.state("ssm"),
        )
        if cache is not None:
            cache.set_state("ssm", state)
        context.note("mixer.scan", y)
        out: torch.Tensor = self.out_proj(y)
        return out

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None, *, output_std: float) -> None:
        """Decays of 1 to N as in S4D, time steps from short to long; normal matrices."""
        init_linear(self.in_proj, generator, INIT_STD)
        init_linear(self.x_proj, generator, INIT_STD)
        init_linear(self.out_proj, generator, output_std)
        self.conv.reset_parameters(generator)
        bound = 1 / math.sqrt(self.config.time_step_rank)
        nn.init.uniform_(self.dt_proj.weight, -bound, bound, generator=generator)
        self.dt_proj.bias.copy_(fresh_time_steps(len(self.dt_proj.bias), generator))
        self.A_log.copy_(torch.arange(1.0, self.config.state_size + 1).log().expand_as(self.A_log))
        nn.init.ones_(self.D)


def fresh_time_steps(size: int, generator: torch.Generator | None) -> torch.Tensor:
    """(size,) biases whose softplus is spread evenly over the logarithm of the time steps."""
    low, high = map(math.log, _STEPS)
    steps = torch.exp(low + (high - low) * torch.rand(size, generator=generator))
    steps = steps.clamp(min=_LEAST_STEP)
    return steps + torch.log(-torch.expm1(-steps))  # softplus, backwards
