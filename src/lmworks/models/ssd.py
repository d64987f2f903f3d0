"""The state-space duality of Mamba-2: a selective scan whose decay is one number for a head.

    S[t] = exp(dt[t] a) S[t-1] + B[t] (dt[t] x[t])^T        y[t] = S[t]^T C[t] + D x[t]

which is gated linear attention with C as queries, B as keys and dt x as values.

Source: Dao and Gu 2024, arXiv 2405.21060, sections 3 to 6.
"""

from __future__ import annotations

import torch

from lmworks.models.gated_linear_attention import gated_linear_attention


def ssd(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    D: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scan T positions of H heads that follow `state`.

    Args:
        x: (B, T, H, P). dt: (B, T, H), the step, not below 0. A: (H,), below 0. D: (H,).
        B, C: (B, T, G, N); H is a multiple of G.
        state: (B, H, N, P) float32 of the positions before, zeros if None.
    Returns: y (B, T, H, P), the state after the last position (B, H, N, P).
    """
    y, state = gated_linear_attention(C, B, dt[..., None] * x, dt * A, state=state)
    return (y if D is None else y + D[:, None] * x), state
