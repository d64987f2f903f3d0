"""The WKV of RWKV-4: an average of all values so far, weighted by keys and by how long ago.

    y[t] = (sum over i < t of e^((t-1-i) w + k[i]) v[i] + e^(u + k[t]) v[t]) / (the same without v)

for each channel, with w the decay below 0 and u the bonus of the position itself. The state is
the two sums and an exponent that both are divided by, so that nothing overflows. On a CPU a
compiled kernel runs it; elsewhere, and in float64, log2(T) steps of PyTorch do.

Source: Peng et al. 2023, arXiv 2305.13048, section 3.1 and appendix on the numerically stable form.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from lmworks.models.kernel_calls import address, arguments, computes, parts, rows, run
from lmworks.models.kernel_slots import CHUNK, LANES

_NOTHING = -1e38  # the exponent of an empty sum

State = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def wkv(
    k: torch.Tensor,
    v: torch.Tensor,
    decay: torch.Tensor,
    bonus: torch.Tensor,
    *,
    state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Average over T positions that follow `state`.

    Args:
        k, v: (B, T, I). decay: (I,), below 0. bonus: (I,).
        state: (B, 3, I) float32: numerator, denominator, exponent. None, or a denominator of 0,
            for a new sequence.
    Returns: y (B, T, I), the state after the last position (B, 3, I). Its gradient is taken as
        that of the sums it stands for.
    """
    if state is None:
        state = torch.zeros(k.shape[0], 3, k.shape[2], dtype=decay.dtype, device=k.device)
    num, den, top = state.unbind(1)
    state = torch.stack([num, den, top.masked_fill(den == 0, _NOTHING)], dim=1)
    if not computes(k, v, decay, bonus, state):
        return _by_doubling(k, v, decay, bonus, state)
    given = (rows(tensor) for tensor in (k, v, decay, bonus, state))
    y, last = _WKV.apply(*given)  # type: ignore[no-untyped-call]
    size = k.shape[-1]
    return y[..., :size].to(k.dtype), last[..., :size]


def wkv_sequential(
    k: torch.Tensor,
    v: torch.Tensor,
    decay: torch.Tensor,
    bonus: torch.Tensor,
    *,
    state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sums as they are written down, one position after the other; the others' oracle.

    Overflows for large keys. The state's exponent is 0.
    """
    num = torch.zeros_like(k[:, 0]) if state is None else state[:, 0] * state[:, 2].exp()
    den = torch.zeros_like(num) if state is None else state[:, 1] * state[:, 2].exp()
    outs = []
    for t in range(k.shape[1]):
        own = torch.exp(bonus + k[:, t])
        outs.append((num + own * v[:, t]) / (den + own))
        num = decay.exp() * num + k[:, t].exp() * v[:, t]
        den = decay.exp() * den + k[:, t].exp()
    return torch.stack(outs, dim=1), torch.stack([num, den, torch.zeros_like(num)], dim=1)


def _by_doubling(
    k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, bonus: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """All states at once: after step s each holds the sum of its 2^s neighbours to the left."""
    first = [part[:, None] for part in state.unbind(1)]
    new = (v, torch.ones_like(k), k)
    sums: State = tuple(torch.cat(pair, dim=1) for pair in zip(first, new, strict=True))  # type: ignore[assignment]
    step = 1
    while step <= k.shape[1]:
        num, den, top = (part[:, :-step] for part in sums)
        later = _added((num, den, top + step * decay), tuple(part[:, step:] for part in sums))  # type: ignore[arg-type]
        sums = tuple(torch.cat([a[:, :step], b], dim=1) for a, b in zip(sums, later, strict=True))  # type: ignore[assignment]
        step *= 2
    num, den, _ = _added(tuple(part[:, :-1] for part in sums), (v, torch.ones_like(k), k + bonus))  # type: ignore[arg-type]
    return num / den, torch.stack([part[:, -1] for part in sums], dim=1)


def _added(a: State, b: State) -> State:
    top = torch.maximum(a[2], b[2])
    old, new = torch.exp(a[2] - top), torch.exp(b[2] - top)
    return old * a[0] + new * b[0], old * a[1] + new * b[1], top


class _WKV(torch.autograd.Function):
    """The kernels of wkv_kernels; channels are padded."""

    @staticmethod
    def forward(context: Any, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        k, _, _, _, state = given
        state = state.contiguous()
        y, last, kept = k.new_empty(k.shape), torch.empty_like(state), None
        if any(context.needs_input_grad):
            kept = k.new_empty(len(k), -(-k.shape[1] // CHUNK), *state.shape[1:])
            context.save_for_backward(*given[:-1], state, kept)
        own = {"Y": y, "FIRST_STATE": state, "LAST_STATE": last, "KEPT": kept}
        _run("forward", given, own)
        return y, last

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, ...]:
        *given, state, kept = context.saved_tensors
        gy, g_state = (gradient.contiguous() for gradient in upstream)
        gk, gv, g_first = torch.empty_like(gy), torch.empty_like(gy), torch.empty_like(g_state)
        g_decay, g_bonus = gy.new_empty(2, len(gy), 1, gy.shape[-1])
        own = {"KEPT": kept, "GY": gy, "G_STATE": g_state, "GX": gk, "G_VALUES": gv}
        own |= {"G_DECAY": g_decay, "G_BONUS": g_bonus, "G_FIRST": g_first}
        _run("backward", given, own)
        # The exponent stands before both sums.
        g_first[:, 2] = (state[:, :2] * g_first[:, :2]).sum(1)
        return gk, gv, g_decay.sum((0, 1)), g_bonus.sum((0, 1)), g_first


def _run(name: str, given: Any, own: dict[str, torch.Tensor | None]) -> None:
    k, v, decay, bonus = given[:4]
    tensors = own | {"X": k, "VALUES": v}
    shared = {"DECAY": address(decay), "BONUS": address(bonus), "WIDTH": k.shape[2]}
    shared |= {"X_ROW": k.stride(1), "VALUES_ROW": v.stride(1), "LENGTH": k.shape[1]}
    pieces = parts(k.shape[2], 3 * k.numel())
    room = k.new_empty(len(k) * len(pieces), 3 * CHUNK * LANES)
    calls: list[np.ndarray] = []
    for index in range(len(k)):
        rows_of = {key: address(tensor, index) for key, tensor in tensors.items()}
        for first, last in pieces:
            place = {"FIRST": first, "LAST": last, "SCRATCH": address(room, len(calls))}
            calls.append(arguments(shared | rows_of | place))
    run("wkv_kernels", name, calls)
