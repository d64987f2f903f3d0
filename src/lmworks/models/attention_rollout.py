"""Attention rollout: which tokens of the text a token's state after some layer is made of.

Each layer mixes states by its attention, averaged over heads, and keeps half of each state through
the residual path. The products of these mixtures from the top layer down say how much of each
input token arrives, as far as attention alone tells: values, feed-forwards and norms are left out.

Source: Abnar & Zuidema 2020, arXiv 2005.00928, section 3: A = 0.5 W + 0.5 I.
"""

from __future__ import annotations

import torch

from lmworks.core.errors import UserError
from lmworks.core.progress import track
from lmworks.models.attention_trace import AttentionTrace, all_heads, tile_rows


def rollout(
    trace: AttentionTrace, *, start: int = 0, stop: int | None = None, layer: int | None = None
) -> torch.Tensor:
    """Rollout of the tokens from `start` to `stop`, (n, T) float32; rows sum to 1.

    Args:
        trace: one that keeps all heads.
        layer: the layer after which the states are looked at; the last by default.
    Raises: UserError when a head is not kept.
    """
    stop = len(trace) if stop is None else stop
    heads = {i: h for i, h in all_heads(trace.config).items() if layer is None or i <= layer}
    if missing := [i for i, h in heads.items() if not all(trace.holds(i, n) for n in h)]:
        raise UserError(
            f"rollout needs every head, and layer {missing[0]} is not kept whole: "
            "take a shorter text"
        )
    mixed = torch.eye(len(trace))[start:stop].to(trace.input_ids.device)
    with track("rolling out", total=len(heads)) as bar:
        for index in sorted(heads, reverse=True):
            mixed = 0.5 * mixed + 0.5 * _through(trace, index, mixed)
            bar.advance()
    return mixed


def _through(trace: AttentionTrace, layer: int, mixed: torch.Tensor) -> torch.Tensor:
    """`mixed` (n, T) times the layer's mean attention (T, T), which is never held whole."""
    heads, out, step = trace.layers[layer].heads, torch.zeros_like(mixed), tile_rows(len(trace))
    for start in range(0, len(trace), step):
        stop = min(start + step, len(trace))
        part = mixed[:, start:stop]
        if bool(part.any()):  # in a causal model, rows after the last query bring nothing
            rows = [trace.rows(layer, head, start, stop) for head in heads]
            out += part @ (torch.stack(rows).sum(0) / len(heads))
    return out
