"""Routers: which experts a token goes to, what each counts, and the losses that spread the load.

Pure functions of router logits (N, E), N tokens and E experts. Expert-choice routing and limits on
an expert's tokens are left out: both let a token's answer depend on the tokens beside it, and a
decoder could not repeat while decoding what it learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Routing:
    """Where tokens go.

    Attributes:
        experts: (N, k) int64, best first.
        weights: (N, k), what each expert's output counts.
        scores: (N, E), each expert's softmax or sigmoid.
    """

    experts: torch.Tensor
    weights: torch.Tensor
    scores: torch.Tensor


def route(
    logits: torch.Tensor,
    *,
    num_experts_per_tok: int,
    scoring: str = "softmax",
    normalize: bool = True,
    scale: float = 1.0,
    bias: torch.Tensor | None = None,
    groups: tuple[int, int, int] | None = None,
) -> Routing:
    """Send each token to the experts of the highest scores.

    Args:
        logits: (N, E).
        scoring: "softmax" over all experts (Shazeer et al. 2017, arXiv 1701.06538; Mixtral,
            OLMoE, Qwen) or "sigmoid" of each (DeepSeek-V3).
        normalize: whether a token's weights are made to sum to 1 (`norm_topk_prob`).
        scale: of all weights, in the end.
        bias: (E,), added to scores for the choice alone, as in balance without a loss (Wang et
            al. 2024, arXiv 2408.15664).
        groups: (number of groups, how many of them a token may use, b): experts stand in groups,
            and only those of the groups with the highest sum of b best are looked at. b is 1 in
            DeepSeek-V2 (arXiv 2405.04434, section 2.2.2), 2 in DeepSeek-V3 (arXiv 2412.19437,
            section 2.1.2).
    """
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    scores = wide.softmax(-1) if scoring == "softmax" else wide.sigmoid()
    choice = scores if bias is None else scores + bias
    if groups is not None:
        choice = choice.masked_fill(~_allowed(choice.detach(), *groups), -torch.inf)
    experts = choice.topk(num_experts_per_tok, dim=-1).indices
    weights = scores.gather(-1, experts)
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return Routing(experts, weights if scale == 1 else weights * scale, scores)


def _allowed(choice: torch.Tensor, num_groups: int, num_used: int, num_best: int) -> torch.Tensor:
    """(N, E) bool: the experts of each token's best groups."""
    grouped = choice.unflatten(-1, (num_groups, -1))
    best = grouped.topk(num_best, dim=-1).values.sum(-1)  # (N, groups)
    used = torch.zeros_like(best, dtype=torch.bool)
    used.scatter_(-1, best.topk(num_used, dim=-1).indices, True)
    return used.repeat_interleave(grouped.shape[-1], dim=-1)


def expert_load(
    experts: torch.Tensor, num_experts: int, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """(E,) float32, the share of tokens that went to each expert; the shares sum to k.

    Args:
        experts: (N, k) int64.
        mask: (N,) bool, the tokens that count; None for all.
    """
    counted = experts if mask is None else experts[mask]
    counts = torch.bincount(counted.reshape(-1), minlength=num_experts)
    return counts.float() / max(1, len(counted))


def load_balancing_loss(
    scores: Sequence[torch.Tensor],
    experts: Sequence[torch.Tensor],
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """E times the sum over experts of (share of tokens) x (mean score); k when all are used alike.

    Several layers count as one long batch, as transformers counts them.

    Args:
        scores: (N, E) of each layer; its rows sum to 1.
        experts: (N, k) of each layer.
        mask: (N,) bool, the tokens that count; None for all.
    Returns: ()
    Source: Fedus et al. 2021 (Switch), arXiv 2101.03961, equations 4 to 6, with k experts.
    Checked: transformers' `load_balancing_loss_func`, 1e-6.
    """
    num_experts = scores[0].shape[-1]
    counted = [layer if mask is None else layer[mask] for layer in scores]
    load = torch.stack([expert_load(layer, num_experts, mask) for layer in experts]).mean(0)
    mean_score = torch.stack([layer.mean(0) for layer in counted]).mean(0)
    return num_experts * (load * mean_score).sum()


def router_z_loss(logits: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The mean square of logsumexp(logits), which keeps a router's logits small.

    Args: logits (N, E); mask (N,) bool, the tokens that count.
    Source: Zoph et al. 2022 (ST-MoE), arXiv 2202.08906, equation 5.
    """
    counted = logits if mask is None else logits[mask]
    return counted.float().logsumexp(-1).square().mean()
