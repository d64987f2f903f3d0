"""A short causal convolution of each channel by itself, with the positions before as its state.

It is a part of other mixers, and gated on both sides one of its own (Hyena, LFM2).

    y[t] = act(bias + sum over k of weight[k] x[t - K + 1 + k])

On a CPU a compiled kernel reads positions as they lie, (B, T, channels), so nothing is transposed
for it; elsewhere, and in float64, it is a sum of shifted products.

Source: Poli et al. 2023 (Hyena), arXiv 2302.10866; Gu and Dao 2023 (Mamba), arXiv 2312.00752.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from lmworks.models.config import ModelConfig, ShortConvolutionConfig
from lmworks.models.context import Context
from lmworks.models.initialization import INIT_STD, init_linear
from lmworks.models.kernel_calls import address, arguments, computes, parts, rows, run


def short_convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    silu: bool = False,
    state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Convolve T positions that follow `state`.

    Args:
        x: (B, T, I). weight: (I, K), the last tap is the position itself. bias: (I,).
        silu: put that activation on the result.
        state: (B, I, K - 1), the positions before, zeros if None.
    Returns: y (B, T, I), and the last K - 1 positions (B, I, K - 1).
    """
    if state is None:
        state = x.new_zeros(x.shape[0], x.shape[2], weight.shape[1] - 1)
    before = state.transpose(1, 2)
    if computes(x, weight, bias, state):
        given = (rows(x), rows(weight.t()), None if bias is None else rows(bias), rows(before))
        y = _Convolution.apply(*given, silu)  # type: ignore[no-untyped-call]
        y = y[..., : x.shape[-1]].to(x.dtype)
    else:
        y = short_convolution_of_shifts(torch.cat([before, x], dim=1), weight, bias)
        y = F.silu(y) if silu else y
    keep = weight.shape[1] - 1
    if x.shape[1] < keep:
        return y, torch.cat([state, x.transpose(1, 2)], dim=-1)[..., -keep:]
    return y, x[:, x.shape[1] - keep :].transpose(1, 2)


def short_convolution_of_shifts(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """(B, K - 1 + T, I) -> (B, T, I): the sum as it is written down."""
    taps = weight.shape[1]
    length = x.shape[1] - taps + 1
    total = sum(x[:, k : k + length] * weight[:, k] for k in range(taps))
    assert isinstance(total, torch.Tensor)
    return total if bias is None else total + bias


class DepthwiseConvolution(nn.Module):
    """Each channel by itself, over the last `taps` positions; keeps them in the cache as `conv`."""

    vectors = ("weight",)

    def __init__(self, size: int, taps: int, *, bias: bool, silu: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, 1, taps))
        self.bias = nn.Parameter(torch.empty(size)) if bias else None
        self.silu = silu

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """(B, T, I) -> (B, T, I)."""
        cache = context.cache
        state = None if cache is None else cache.state("conv")
        y, state = short_convolution(
            x, self.weight.squeeze(1), self.bias, silu=self.silu, state=state
        )
        if cache is not None:
            cache.set_state("conv", state)
        context.note("mixer.conv", y)
        return y

    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Uniform within 1 / sqrt(taps), which keeps the size of what goes through; no bias."""
        bound = 1 / math.sqrt(self.weight.shape[-1])
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ShortConvolution(nn.Module):
    """out(c * conv(b * x)), where b, c and x are projections of the input."""

    def __init__(self, config: ShortConvolutionConfig, model: ModelConfig) -> None:
        super().__init__()
        hidden, bias = model.hidden_size, config.bias
        self.in_proj = nn.Linear(hidden, 3 * hidden, bias=bias)
        self.conv = DepthwiseConvolution(hidden, config.conv_kernel, bias=bias)
        self.out_proj = nn.Linear(hidden, hidden, bias=bias)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """(B, T, H) -> (B, T, H)."""
        before, after, x = self.in_proj(x).chunk(3, dim=-1)
        y: torch.Tensor = self.out_proj(after * self.conv(before * x, context))
        return y

    def reset_parameters(self, generator: torch.Generator | None, *, output_std: float) -> None:
        """Normal matrices, a convolution as large as what goes through it."""
        init_linear(self.in_proj, generator, INIT_STD)
        self.conv.reset_parameters(generator)
        init_linear(self.out_proj, generator, output_std)


class _Convolution(torch.autograd.Function):
    """The kernels of short_convolution_kernels; channels are padded, states are (B, K - 1, I)."""

    @staticmethod
    def forward(context: Any, *given: Any) -> torch.Tensor:
        *tensors, context.silu = given
        context.save_for_backward(*tensors)
        y: torch.Tensor = tensors[0].new_empty(tensors[0].shape)
        _run("forward", tensors, context.silu, {"Y": y})
        return y

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias, before = context.saved_tensors
        gx, g_first = x.new_zeros(x.shape), torch.zeros_like(before)
        g_weight = x.new_zeros(len(x), *weight.shape)
        g_bias = x.new_zeros(len(x), weight.shape[1])
        own = {"GY": upstream[0].contiguous(), "GX": gx, "G_FIRST": g_first}
        own |= {"G_WEIGHT": g_weight, "G_BIAS": g_bias}
        _run("backward", (x, weight, bias, before), context.silu, own)
        return gx, g_weight.sum(0), None if bias is None else g_bias.sum(0), g_first, None


def _run(name: str, given: Any, silu: bool, own: dict[str, torch.Tensor]) -> None:
    x, weight, bias, before = given
    before = before.contiguous()
    shared = {"WEIGHT": address(weight.contiguous()), "BIAS": address(bias), "SILU": int(silu)}
    shared |= {"TAPS": len(weight), "X_ROW": x.stride(1), "WIDTH": x.shape[2]}
    tensors = own | {"X": x, "FIRST_STATE": before}
    calls = [
        arguments(
            shared
            | {key: address(tensor, index) for key, tensor in tensors.items()}
            | {"LENGTH": x.shape[1], "FIRST": first, "LAST": last}
        )
        for index in range(len(x))
        for first, last in parts(x.shape[2], x.numel())
    ]
    run("short_convolution_kernels", name, calls)
