"""Cross-entropy over the vocabulary, some hundred tokens at a time.

Logits are the widest tensor of a small model's step: (tokens, vocabulary), and the plain way holds
three of them. Here the head's product, the loss and their gradients are made for one block of
tokens after the other, in memory that stays in the cache: the same products, fewer passes, and none
of the three tensors. Gradients are made in the forward, while the block is at hand, and only scaled
in the backward.

Source: the idea is known from Liger kernels (Hsu et al. 2024, arXiv 2410.10989, section 3.2).
Left out: heads with a cap, a bias, a transform or an adapter, and products in half precision; they
go the plain way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from lmworks.models.config import LMHeadConfig
from lmworks.models.packed import PackedLinear

if TYPE_CHECKING:
    from lmworks.models.model import Model

_BLOCK_CELLS = 1 << 22  # logits made at once: 16 MB, which a cache of a CPU's third level holds
_LEAST_ROWS = 128  # a product of fewer rows is slower per row


def vocabulary_loss(model: Model, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the model's head on states; gradients flow to states and head.

    Args:
        hidden: (N, H) after the final norm.
        labels: (N,) int64, all of which count.
    Returns: (), nats; within rounding F.cross_entropy(model.logits(hidden), labels).
    """
    if (cut := vars(model).get("vocabulary_loss")) is not None:  # over several processes
        return cast(torch.Tensor, cut(hidden, labels))
    if (packed := _packed_head(model)) is not None and hidden.dtype == torch.float32:
        found: torch.Tensor = _PackedHeadLoss.apply(hidden, packed, labels)
        return found
    weight = _plain_weight(model)
    if weight is None or hidden.dtype != weight.dtype or torch.is_autocast_enabled("cpu"):
        return F.cross_entropy(model.logits(hidden), labels)
    loss: torch.Tensor = _BlockwiseLoss.apply(hidden, weight, labels)
    return loss


def _plain_weight(model: Model) -> torch.Tensor | None:
    """The matrix (V, H) that is all of the head, or None if there is more to it; CPU only, since a
    GPU has the memory's speed that this saves."""
    head = model.config.head
    if not isinstance(head, LMHeadConfig) or head.softcap is not None or head.scale != 1:
        return None
    module = model.embed_tokens if model.lm_head is None else model.lm_head
    if type(module) not in (nn.Embedding, nn.Linear) or getattr(module, "bias", None) is not None:
        return None
    weight = cast(torch.Tensor, module.weight)
    # Cut over several processes, or completed by hooks when the module is called.
    cut = hasattr(weight, "placements") or len(weight) != model.config.vocab_size
    hooked = module._forward_hooks or module._forward_pre_hooks or model._forward_pre_hooks
    plain = model.head is None and not cut and not hooked and "logits" not in vars(model)
    return weight if plain and weight.device.type == "cpu" else None


def _packed_head(model: Model) -> PackedLinear | None:
    """The packed matrix that is all of the head, or None."""
    head, module = model.config.head, model.lm_head
    if not isinstance(head, LMHeadConfig) or head.softcap is not None or head.scale != 1:
        return None
    plain = type(module) is PackedLinear and module.bias is None and model.head is None
    return cast(PackedLinear, module) if plain and "logits" not in vars(model) else None


class _PackedHeadLoss(torch.autograd.Function):
    """The same over a head of quantised blocks, which is frozen."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: PackedLinear, labels: torch.Tensor
    ) -> torch.Tensor:
        count = len(hidden)
        rows = min(count, max(_LEAST_ROWS, _BLOCK_CELLS // head.out_features))
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        total = hidden.new_zeros(())
        for start in range(0, count, rows):
            part = slice(start, start + rows)
            logits = head(hidden[part].detach())
            sums = logits.logsumexp(1)
            total += (sums - logits.gather(1, labels[part, None])[:, 0]).sum()
            if grad_hidden is not None:
                upstream = logits.sub_(sums[:, None]).exp_()
                ones = upstream.new_ones(len(upstream), 1)
                upstream.scatter_add_(1, labels[part, None], -ones)
                grad_hidden[part] = head.matrix.gradient(upstream) / count
        ctx.save_for_backward(grad_hidden)
        return total / count

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad_hidden,) = ctx.saved_tensors
        return None if grad_hidden is None else grad_hidden * grad, None, None


class _BlockwiseLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        count, vocabulary = len(hidden), len(weight)
        rows = min(count, max(_LEAST_ROWS, _BLOCK_CELLS // vocabulary))
        wants_hidden, wants_weight, _ = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        buffer = hidden.new_empty(rows, vocabulary)
        total = hidden.new_zeros(())
        for start in range(0, count, rows):
            states = hidden[start : start + rows]
            targets = labels[start : start + rows, None]
            logits = torch.mm(states, weight.t(), out=buffer[: len(states)])
            logits -= logits.amax(1, keepdim=True)
            target_logits = logits.gather(1, targets)
            sums = logits.exp_().sum(1, keepdim=True)  # from here on they are no logits any more
            total += (sums.log() - target_logits).sum()
            # d loss / d logits = (softmax - one at the target) / count; the division by the sums
            # is left to the narrow side of the products.
            logits.scatter_add_(1, targets, -sums)
            share = sums.mul_(count).reciprocal_()
            if grad_hidden is not None:
                torch.mm(logits, weight, out=grad_hidden[start : start + rows])
                grad_hidden[start : start + rows] *= share
            if grad_weight is not None:
                grad_weight.addmm_(logits.t(), states * share)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total / count

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad.item() == 1:  # the loss itself is what is minimised
            return grad_hidden, grad_weight, None
        return (
            None if grad_hidden is None else grad_hidden * grad,
            None if grad_weight is None else grad_weight * grad,
            None,
        )
