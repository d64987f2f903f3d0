"""The selective scan of Mamba (S6), forward and backward, with a state that goes in and out.

    h[t] = exp(dt[t] A) h[t-1] + dt[t] x[t] B[t]        y[t] = C[t] . h[t] + D x[t]

for each channel, with a state of N numbers. On a CPU a compiled kernel runs it, sixteen channels
at a time; between forward and backward it keeps one state in 32 positions. Elsewhere, and in
float64, chunks of positions are scanned in log2(chunk) steps of PyTorch.

Source: Gu and Dao 2023, arXiv 2312.00752, section 3 and algorithm 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from lmworks.models.kernel_calls import (
    address,
    arguments,
    computes,
    padded,
    parts,
    rows,
    run,
)
from lmworks.models.kernel_slots import CHUNK, LANES

_CHUNK = 64  # positions that PyTorch scans together


def selective_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scan T positions of I channels that follow `state`.

    Args:
        x, dt: (B, T, I); dt is the step, above 0. z: the same shape, a gate; y is times silu(z).
        A: (I, N), below 0. B, C: (B, T, N). D: (I,), the part of x that skips the state.
        state: (B, I, N) float32 of the positions before, zeros if None.
    Returns: y (B, T, I) in the precision of x, the state after the last position (B, I, N).
    """
    if state is None:
        state = x.new_zeros(x.shape[0], *A.shape, dtype=A.dtype)
    if not computes(x, dt, A, B, C, D, z, state):
        return _chunked(x, dt, A, B, C, D, z, state)
    y, last = _SelectiveScan.apply(  # type: ignore[no-untyped-call]
        *(rows(tensor) for tensor in (x, dt, _in_fours(A).t())),
        *(_in_fours(tensor) for tensor in (B, C)),
        None if D is None else rows(D),
        None if z is None else rows(z),
        rows(_in_fours(state).transpose(1, 2)),
    )
    size, states = A.shape
    return y[..., :size].to(x.dtype), last[:, :states, :size].transpose(1, 2)


def _in_fours(tensor: torch.Tensor) -> torch.Tensor:
    """(..., N) with zeros up to a multiple of 4, as the backward kernel takes them."""
    return padded(tensor, 4).contiguous()


def selective_scan_sequential(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    D: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The recurrence as it is written down, one position after the other; the others' oracle."""
    h = x.new_zeros(x.shape[0], *A.shape) if state is None else state
    outs = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t, :, None] * A)
        h = decay * h + (dt[:, t] * x[:, t])[..., None] * B[:, t, None]
        outs.append((h * C[:, t, None]).sum(-1))
    return _finished(torch.stack(outs, dim=1), x, D, z), h


def _finished(
    y: torch.Tensor, x: torch.Tensor, D: torch.Tensor | None, z: torch.Tensor | None
) -> torch.Tensor:
    if D is not None:
        y = y + D * x
    return y if z is None else y * F.silu(z)


def _chunked(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    z: torch.Tensor | None,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    outs = []
    for start in range(0, x.shape[1], _CHUNK):
        here = slice(start, start + _CHUNK)
        chunk = (x[:, here], dt[:, here], A, B[:, here], C[:, here], state)
        # The (B, chunk, I, N) arrays of one chunk are made again in its backward.
        y, state = checkpoint(_scan_chunk, *chunk, use_reentrant=False)  # type: ignore[misc]
        outs.append(y)
    return _finished(torch.cat(outs, dim=1), x, D, z), state


def _scan_chunk(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """All states of a chunk by doubling: after step s each holds the sum of its 2^s neighbours."""
    decay = torch.exp(dt[..., None] * A)
    h = (dt * x)[..., None] * B[:, :, None]
    h = torch.cat([h[:, :1] + decay[:, :1] * state[:, None], h[:, 1:]], dim=1)
    step = 1
    while step < x.shape[1]:
        h = torch.cat([h[:, :step], h[:, step:] + decay[:, step:] * h[:, :-step]], dim=1)
        decay = torch.cat([decay[:, :step], decay[:, step:] * decay[:, :-step]], dim=1)
        step *= 2
    return torch.einsum("btin,btn->bti", h, C), h[:, -1]


class _SelectiveScan(torch.autograd.Function):
    """The kernels of selective_scan_kernels; channels are padded, states are (B, N, I)."""

    @staticmethod
    def forward(context: Any, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        x, _, A, *_, state = given
        y, last, kept = x.new_empty(x.shape), torch.empty_like(state), None
        if any(context.needs_input_grad):
            kept = x.new_empty(len(x), -(-x.shape[1] // CHUNK), *A.shape)
            context.save_for_backward(*given[:-1], kept)
        own = {"Y": y, "FIRST_STATE": state, "LAST_STATE": last, "KEPT": kept}
        _run("forward", given, own, 2 * A.shape[0] * LANES)
        return y, last

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *given, kept = context.saved_tensors
        x, _, A, B, _, D, z = given
        gy, g_state = (gradient.contiguous() for gradient in upstream)
        gx, gdt, g_first = (torch.empty_like(t) for t in (gy, gy, g_state))
        gz = None if z is None else torch.empty_like(gy)
        gd = None if D is None else x.new_zeros(len(x), 1, x.shape[-1])
        ga = x.new_empty(len(x), *A.shape)
        gb, gc = x.new_zeros(2, len(x), len(_parts(x, A)), *B.shape[1:])
        own = {"KEPT": kept, "GY": gy, "G_STATE": g_state, "GX": gx, "GDT": gdt, "GZ": gz}
        own |= {"GA": ga, "GB": gb, "GC": gc, "GD": gd, "G_FIRST": g_first}
        _run("backward", given, own, LANES * (A.shape[0] * (2 * CHUNK + 4) + CHUNK))
        gd = None if gd is None else gd.sum((0, 1))
        return gx, gdt, ga.sum(0), gb.sum(1), gc.sum(1), gd, gz, g_first


def _parts(x: torch.Tensor, A: torch.Tensor) -> list[tuple[int, int]]:
    return parts(x.shape[-1], x.numel() * A.shape[0])


def _run(name: str, given: Any, own: dict[str, Any], scratch: int) -> None:
    """One call for each sequence and part of its channels; `scratch` is a call's, in numbers."""
    x, dt, A, B, C, D, z = given[:7]
    tensors = own | {"X": x, "DT": dt, "B": B, "C": C, "Z": z}
    shared = {"A": address(A), "D": address(D)}
    shared |= {"WIDTH": x.shape[-1], "LENGTH": x.shape[1], "STATES": A.shape[0]}
    shared |= {f"{key}_ROW": tensors[key].stride(1) for key in ("X", "DT", "B", "C")}
    shared["Z_ROW"] = 0 if z is None else z.stride(1)
    pieces = _parts(x, A)
    room = x.new_empty(len(x) * len(pieces), scratch)
    calls: list[np.ndarray] = []
    for index in range(len(x)):
        rows_of = {key: address(tensor, index) for key, tensor in tensors.items()}
        for part, (first, last) in enumerate(pieces):
            sums = {key: address(own[key][index], part) for key in ("GB", "GC") if key in own}
            place = {"FIRST": first, "LAST": last, "SCRATCH": address(room, len(calls))}
            calls.append(arguments(shared | rows_of | sums | place))
    run("selective_scan_kernels", name, calls)
