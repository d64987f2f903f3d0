"""Gated linear attention: a matrix that forgets, to which each position adds key times value.

    S[t] = exp(g[t]) S[t-1] + k[t] v[t]^T        y[t] = S[t]^T q[t]

for each head, where the logarithm of the decay g is one number for a head (Mamba-2's state-space
duality, RetNet) or one for each number of a key. On a CPU a compiled kernel runs the recurrence
as it stands: it needs fewer products than the chunkwise form, nothing can overflow, and nothing
is kept between forward and backward. Elsewhere, and in float64, chunks of positions go through
products of matrices.

Source: Yang et al. 2023, arXiv 2312.06635, section 3 and appendix C (the decays' gradient).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from lmworks.models.config import GatedLinearAttentionConfig, ModelConfig
from lmworks.models.context import Context
from lmworks.models.initialization import INIT_STD, init_linear
from lmworks.models.kernel_calls import address, arguments, computes, padded, parts_of, run
from lmworks.models.kernel_slots import LANES, LONG_CHUNK

_CHUNK = 32  # positions that PyTorch takes together
_PAIR, _KEYS = 2 * LANES, 4  # values and numbers of a key that the kernels take together


def gated_linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    *,
    state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read T positions of H heads that follow `state`.

    Args:
        q, k: (B, T, G, N); H is a multiple of G, and H / G heads that follow each other share one.
        v: (B, T, H, P). log_decay: (B, T, H), or (B, T, H, N) if G is H; not above 0.
        state: (B, H, N, P) float32, zeros if None.
    Returns: y (B, T, H, P) in the precision of v, the state after the last position.
    """
    batch, _, heads, size = v.shape
    if state is None:
        dtype = torch.promote_types(v.dtype, torch.float32)
        state = torch.zeros(batch, heads, k.shape[-1], size, dtype=dtype, device=v.device)
    if not computes(q, k, v, log_decay, state):
        return _chunked(q, k, v, log_decay, state)
    y, last = _GatedLinearAttention.apply(  # type: ignore[no-untyped-call]
        *(_padded(tensor, _KEYS) for tensor in (q, k)),
        _padded(v, _PAIR),
        _padded(log_decay, _KEYS if log_decay.dim() == 4 else 1),
        _padded(_padded(state, _PAIR).mT, _KEYS).mT.contiguous(),
    )
    return y[..., :size].to(v.dtype), last[:, :, : k.shape[-1], :size]


def gated_linear_attention_sequential(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    *,
    state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The recurrence as it is written down, one position after the other; the others' oracle."""
    q, k = _for_heads(q, v.shape[2]), _for_heads(k, v.shape[2])
    decay = (log_decay[..., None] if log_decay.dim() == 3 else log_decay).exp()
    s = k.new_zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3]) if state is None else state
    outs = []
    for t in range(v.shape[1]):
        s = decay[:, t, :, :, None] * s + k[:, t, :, :, None] * v[:, t, :, None]
        outs.append(torch.einsum("bhn,bhnp->bhp", q[:, t], s))
    return torch.stack(outs, dim=1), s


class GatedLinearAttention(nn.Module):
    """The mixer: out(silu(gate) * norm(what the queries read)), (B, T, H) -> (B, T, H).

    Source: Yang et al. 2023, section 4.4.
    """

    def __init__(self, config: GatedLinearAttentionConfig, model: ModelConfig) -> None:
        super().__init__()
        self.config = config
        hidden = model.hidden_size
        self.q_proj = nn.Linear(hidden, config.key_size, bias=False)
        self.k_proj = nn.Linear(hidden, config.key_size, bias=False)
        self.v_proj = nn.Linear(hidden, config.value_size, bias=False)
        self.decay_down_proj = nn.Linear(hidden, config.gate_rank, bias=False)
        self.decay_up_proj = nn.Linear(config.gate_rank, config.key_size)
        self.gate_proj = nn.Linear(hidden, config.value_size, bias=False)
        self.norm_weight = nn.Parameter(torch.empty(config.value_size // config.num_heads))
        self.o_proj = nn.Linear(config.value_size, hidden, bias=False)

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        """See the class."""
        config, cache = self.config, context.cache
        decay = self.decay_up_proj(self.decay_down_proj(x))
        q, k, v, decay = (
            part.unflatten(-1, (config.num_heads, -1))
            for part in (self.q_proj(x), self.k_proj(x), self.v_proj(x), decay)
        )
        y, memory = gated_linear_attention(
            q * q.shape[-1] ** -0.5,
            k,
            v,
            F.logsigmoid(decay) / config.gate_divisor,
            state=None if cache is None else cache.state("memory"),
        )
        if cache is not None:
            cache.set_state("memory", memory)
        context.note("mixer.read", y)
        y = F.rms_norm(y, y.shape[-1:], self.norm_weight, config.norm_eps).flatten(2)
        out: torch.Tensor = self.o_proj(F.silu(self.gate_proj(x)) * y)
        return out

    def reset_parameters(self, generator: torch.Generator | None, *, output_std: float) -> None:
        """Normal matrices, a norm of ones."""
        projections = (self.q_proj, self.k_proj, self.v_proj, self.gate_proj)
        for projection in (*projections, self.decay_down_proj, self.decay_up_proj):
            init_linear(projection, generator, INIT_STD)
        init_linear(self.o_proj, generator, output_std)
        nn.init.ones_(self.norm_weight)


def _for_heads(shared: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, T, G, N) -> (B, T, H, N)."""
    return shared.repeat_interleave(heads // shared.shape[2], dim=2)


def _padded(values: torch.Tensor, multiple: int) -> torch.Tensor:
    return padded(values, multiple).contiguous()


def _chunked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    q, k = (_for_heads(tensor, v.shape[2]).transpose(1, 2) for tensor in (q, k))
    g = (log_decay[..., None] if log_decay.dim() == 3 else log_decay).transpose(1, 2)
    v, outs = v.transpose(1, 2), []
    for start in range(0, v.shape[2], _CHUNK):
        chunk = (tensor[:, :, start : start + _CHUNK] for tensor in (q, k, v, g))
        y, state = checkpoint(_read_chunk, *chunk, state, use_reentrant=False)  # type: ignore[misc]
        outs.append(y)
    return torch.cat(outs, dim=2).transpose(1, 2), state


def _read_chunk(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, g: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions (B, H, T, ...) among themselves, and from the state; g is (B, H, T, 1 or N)."""
    since = g.cumsum(2)  # from the start of the chunk
    length = v.shape[2]
    later = torch.ones(length, length, dtype=torch.bool, device=v.device).triu(1)
    between = since[:, :, :, None] - since[:, :, None]
    between = between.masked_fill(later[..., None], -torch.inf).exp()  # (B, H, T, T, 1 or N)
    if g.shape[-1] == 1:
        scores = (q @ k.transpose(2, 3)) * between[..., 0]
    else:
        scores = torch.einsum("bhin,bhjn,bhijn->bhij", q, k, between)
    y = scores @ v + (q * since.exp()) @ state
    end = since[:, :, -1:]
    state = end.exp().transpose(2, 3) * state + (k * (end - since).exp()).transpose(2, 3) @ v
    return y, state


class _GatedLinearAttention(torch.autograd.Function):
    """The kernels of gated_linear_attention_kernels; values are padded to a multiple of 32."""

    @staticmethod
    def forward(context: Any, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v, log_decay, state = given
        context.save_for_backward(*given)
        y, last = torch.empty_like(v), torch.empty_like(state)
        own = {"Y": y, "FIRST_STATE": state, "LAST_STATE": last}
        _run("forward", (q, k, v, log_decay.exp()), own, _PAIR * q.shape[-1])
        return y, last

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(context: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v, log_decay, state = context.saved_tensors
        gy, g_state = (gradient.contiguous() for gradient in upstream)
        gv, g_first, g_decay = (
            torch.empty_like(v),
            torch.empty_like(state),
            torch.zeros_like(log_decay),
        )
        batch, length, groups, count = q.shape
        pieces = len(_pieces(q, v))
        gq, gk = q.new_zeros(2, batch, pieces, length, count)
        own = {"FIRST_STATE": state, "GY": gy, "G_STATE": g_state, "GX": gv, "G_FIRST": g_first}
        own |= {"G_DECAYS": g_decay, "G_QUERIES": gq, "G_KEYS": gk}
        size = count if log_decay.dim() == 4 else 1
        scratch = _PAIR * count * (1 - -length // LONG_CHUNK) + count + size * (length + 1)
        _run("backward", (q, k, v, log_decay.exp()), own, scratch)
        split = (batch, groups, pieces // groups, length, count)
        gq, gk = (part.view(split).sum(2).transpose(1, 2) for part in (gq, gk))
        return gq, gk, gv, g_decay, g_first


def _pieces(q: torch.Tensor, v: torch.Tensor) -> list[tuple[int, int]]:
    """The heads of each call: those that share queries and keys, or a part of them."""
    heads, groups = v.shape[2], q.shape[2]
    each = heads // groups
    cut = parts_of(each, v.numel() * q.shape[-1], -(-8 // groups))
    return [
        (group * each + first, group * each + last)
        for group in range(groups)
        for first, last in cut
    ]


def _run(name: str, given: Any, own: dict[str, Any], scratch: int) -> None:
    """One call for each sequence and some of its heads; `scratch` is a call's, in numbers."""
    q, k, v, decay = given
    batch, length, heads, size = v.shape
    groups, count = q.shape[2:]
    shared = {"X_ROW": heads * size, "WIDTH": heads * size, "HEAD_WIDTH": size, "LENGTH": length}
    shared |= {"QUERIES_ROW": groups * count, "KEYS_ROW": groups * count, "STATES": count}
    each = count if decay.dim() == 4 else 1
    shared |= {"DECAYS_ROW": heads * each, "DECAYS_HEAD": each, "DECAY_STEP": int(decay.dim() == 4)}
    tensors = own | {"X": v, "DECAYS": decay}
    pieces = _pieces(q, v)
    room = v.new_empty(batch * len(pieces), scratch)
    calls: list[np.ndarray] = []
    for index in range(batch):
        rows_of = {key: address(tensor, index) for key, tensor in tensors.items()}
        for part, (first, last) in enumerate(pieces):
            offset = 4 * count * (first // (heads // groups))
            sums = {n: address(own[n][index], part) for n in ("G_QUERIES", "G_KEYS") if n in own}
            place = {"QUERIES": address(q, index) + offset, "KEYS": address(k, index) + offset}
            place |= {"FIRST": first, "LAST": last, "SCRATCH": address(room, len(calls))}
            calls.append(arguments(shared | rows_of | sums | place))
    run("gated_linear_attention_kernels", name, calls)
