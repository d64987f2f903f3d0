"""Dropless grouped compute: every token through its experts, at the cost of those experts alone.

Tokens are sorted by expert, so that each expert sees one contiguous block of rows and is one
product of matrices; nothing is padded and no token is dropped, as in MegaBlocks (Gale et al. 2022,
arXiv 2211.15841), without its sparse kernels. Choices, each measured with `bench/experts.py`:

- The forward and the backward go over the experts in groups of some thousand rows, and do all that
  belongs to a group while its rows are in the cache: gather, products, activation, scatter. What a
  dense layer writes to memory between its steps stays there.
- Weights are (experts, in, out): with few rows per expert such products are up to a fourth faster
  than those with the transposed matrix. Gate and up stand side by side in one matrix, so that a
  narrow expert is one product of twice the width.
- A weight multiplies the hidden vector of its expert, which is narrower than the expert's output
  in most models, and its gradient is then a dot product of two vectors that are at hand.
- Only the input and the first product are kept for the backward.

Left out: second derivatives, biases, and a limit on an expert's rows (its cost is its rows).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from lmworks.models.expert_gate import weighted_gate, weighted_gate_backward
from lmworks.models.feed_forward import Activation

Span = tuple[int, int, int]  # an expert, and its first and last row within a group

# Rows that are worked on together: small enough for the cache, large enough to be worth a call.
_GROUP_ROWS = 1024


@dataclass(frozen=True)
class _Rows:
    """Which rows belong to which expert: row r is assignment `order[r]` of token `tokens[r]`."""

    order: torch.Tensor  # (N * k,)
    tokens: torch.Tensor  # (N * k,)
    ends: list[int]  # (E,) where each expert's rows end

    def groups(self) -> Iterator[tuple[slice, list[Span]]]:
        """Neighbouring experts of some `_GROUP_ROWS` rows together, those without rows left out."""
        spans: list[Span] = []
        first = begin = 0
        for expert, end in enumerate(self.ends):
            if spans and end - first > _GROUP_ROWS:
                yield slice(first, begin), spans
                first, spans = begin, []
            if end > begin:
                spans.append((expert, begin - first, end - first))
            begin = end
        if spans:
            yield slice(first, begin), spans


def sort_by_expert(experts: torch.Tensor, num_experts: int) -> _Rows:
    """Order the assignments (N, k) by expert, and by token within one."""
    flat = experts.reshape(-1)
    order = flat.argsort(stable=True)
    ends = torch.bincount(flat, minlength=num_experts).cumsum(0).tolist()
    return _Rows(order=order, tokens=order // experts.shape[1], ends=ends)


def grouped_experts(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    activation: Activation,
) -> torch.Tensor:
    """The weighted sum of what each token's experts make of it.

    Args:
        x: (N, H) tokens.
        experts: (N, k) int64, the experts of each token, all different.
        weights: (N, k), what each one's output counts.
        up: (E, H, I) or, gated, (E, H, 2 I): the gate's columns, then the other's.
        down: (E, I, H).
        activation: elementwise; on the gate if there is one.
    Returns: (N, H); gradients flow to all but `experts`.
    """
    if len(x) == 1 and not torch.is_grad_enabled():
        return _one_token(x, experts[0].tolist(), weights, up, down, activation)
    rows = sort_by_expert(experts, len(up))
    sorted_weights = weights.reshape(-1)[rows.order]
    out: torch.Tensor = _GroupedExperts.apply(x, sorted_weights, up, down, rows, activation)
    return out


def _one_token(
    x: torch.Tensor,
    experts: list[int],
    weights: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    activation: Activation,
) -> torch.Tensor:
    """What `grouped_experts` gives for one token, as decoding asks for it: nothing to sort."""
    first = x.new_empty(len(experts), up.shape[2])
    for row, expert in enumerate(experts):
        torch.mm(x, up[expert], out=first[row : row + 1])
    inner = weighted_gate(first, weights[0], down.shape[1], activation)
    out = torch.zeros_like(x)
    for row, expert in enumerate(experts):
        out.addmm_(inner[row : row + 1], down[expert])
    return out


def _multiply(spans: list[Span], left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Rows of each expert times its matrix: (R, A), (E, A, B) -> (R, B)."""
    out = left.new_empty(len(left), right.shape[2])
    for expert, begin, end in spans:
        torch.mm(left[begin:end], right[expert], out=out[begin:end])
    return out


def _multiply_into(
    spans: list[Span], left: torch.Tensor, right: torch.Tensor, out: torch.Tensor
) -> None:
    """Each expert's gradient of a matrix: (R, A), (R, B) -> out (E, A, B)."""
    for expert, begin, end in spans:
        torch.mm(left[begin:end].t(), right[begin:end], out=out[expert])


class _GroupedExperts(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: torch.Tensor,
        weights: torch.Tensor,
        up: torch.Tensor,
        down: torch.Tensor,
        rows: _Rows,
        activation: Activation,
    ) -> torch.Tensor:
        out, width = torch.zeros_like(x), down.shape[1]
        firsts = []
        for where, spans in rows.groups():
            tokens = rows.tokens[where]
            first = _multiply(spans, x.index_select(0, tokens), up)
            inner = weighted_gate(first, weights[where], width, activation)
            out.index_add_(0, tokens, _multiply(spans, inner, down))
            if any(ctx.needs_input_grad):
                firsts.append(first)
        ctx.rows, ctx.activation = rows, activation
        ctx.save_for_backward(x, weights, up, down, *firsts)
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weights, up, down, *firsts = ctx.saved_tensors
        rows, (_, _, wants_up, wants_down, *_) = ctx.rows, ctx.needs_input_grad
        grad_x, grad_weights = torch.zeros_like(x), torch.zeros_like(weights)
        grad_up = _unused_cleared(rows.ends, up) if wants_up else None
        grad_down = _unused_cleared(rows.ends, down) if wants_down else None
        for (where, spans), first in zip(rows.groups(), firsts, strict=True):
            tokens = rows.tokens[where]
            grad_rows = grad.index_select(0, tokens)
            grad_inner = _multiply(spans, grad_rows, down.mT)
            grad_first, grad_weights[where], inner = weighted_gate_backward(
                first, weights[where], grad_inner, ctx.activation
            )
            if grad_down is not None:
                _multiply_into(spans, inner, grad_rows, grad_down)
            if grad_up is not None:
                _multiply_into(spans, x.index_select(0, tokens), grad_first, grad_up)
            grad_x.index_add_(0, tokens, _multiply(spans, grad_first, up.mT))
        return grad_x, grad_weights, grad_up, grad_down, None, None


def _unused_cleared(ends: list[int], like: torch.Tensor) -> torch.Tensor:
    """Memory for a gradient: zeros for experts that no token went to, the rest still to fill."""
    gradient = torch.empty_like(like)
    for expert, end in enumerate(ends):
        if end == (ends[expert - 1] if expert else 0):
            gradient[expert].zero_()
    return gradient
