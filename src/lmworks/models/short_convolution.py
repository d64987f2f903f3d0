"""A short causal convolution of each channel by itself, with the positions before as its state.

    y[t] = act(bias + sum over k of weight[k] x[t - K + 1 + k])

On a CPU a compiled kernel reads positions as they lie, (B, T, channels), so nothing is transposed
for it; elsewhere, and in float64, it is a sum of shifted products.

Source: Poli et al. 2023 (Hyena), arXiv 2302.10866; Gu and Dao 2023 (Mamba), arXiv 2312.00752.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

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
