"""What stands between an expert's two products: the activation, the gate and the token's weight.

With silu and float32 on a CPU it is one pass of a compiled kernel forward and one backward, which
gives the gradients of the gate, of the other half and of the weight and once more the result, so
that it need not be kept. Otherwise PyTorch does the same in some ten passes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lmworks.models.feed_forward import Activation
from lmworks.models.kernel_calls import address, arguments, computes, parts_of, run
from lmworks.models.kernel_slots import LANES

_PARTS = 8  # of the rows


def weighted_gate(
    first: torch.Tensor, weights: torch.Tensor, width: int, activation: Activation
) -> torch.Tensor:
    """(R, I), or gated (R, 2 I), and (R,) -> (R, I): activation(gate) * up * weight."""
    if _compiled(first, weights, width, activation):
        y = first.new_empty(len(first), width)
        _run("forward", first, {"WEIGHT": weights, "Y": y})
        return y
    gate = activation(first[:, :width])
    inner = gate if first.shape[1] == width else gate.mul_(first[:, width:])
    return inner.mul_(weights[:, None])


def weighted_gate_backward(
    first: torch.Tensor, weights: torch.Tensor, grad: torch.Tensor, activation: Activation
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of `first` and of `weights`, and what `weighted_gate` gave.

    Args: `grad` (R, I), the gradient of what it gave; it is overwritten.
    """
    width = grad.shape[1]
    if _compiled(first, weights, width, activation):
        y, grad_first, grad_weights = (torch.empty_like(t) for t in (grad, first, weights))
        given = {"WEIGHT": weights, "GY": grad, "Y": y, "GX": grad_first, "G_WEIGHT": grad_weights}
        _run("backward", first, given)
        return grad_first, grad_weights, y
    with torch.enable_grad():
        gate = first[:, :width].detach().requires_grad_()
        activated = activation(gate)
    inner, scale = activated.detach(), weights[:, None]
    gated = first.shape[1] > width
    if gated:
        inner = inner * first[:, width:]
    grad_weights, grad_first = torch.linalg.vecdot(grad, inner), torch.empty_like(first)
    grad.mul_(scale)
    if gated:
        torch.mul(grad, activated.detach(), out=grad_first[:, width:])
        grad.mul_(first[:, width:])
    grad_first[:, :width] = torch.autograd.grad(activated, gate, grad)[0]
    return grad_first, grad_weights, inner * scale


def _compiled(
    first: torch.Tensor, weights: torch.Tensor, width: int, activation: Activation
) -> bool:
    """Whether the kernels can do it."""
    plain = first.dtype == weights.dtype == torch.float32 and computes(first)
    return plain and activation is F.silu and first.shape[1] == 2 * width and width % LANES == 0


def _run(name: str, first: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
    held = {key: tensor.contiguous() for key, tensor in tensors.items()}
    values = {key: address(tensor) for key, tensor in held.items()}
    values |= {"X": address(first), "WIDTH": first.shape[1] // 2}
    calls = [
        arguments(values | {"FIRST": begin, "LAST": end})
        for begin, end in parts_of(len(first), first.numel(), _PARTS)
    ]
    run("expert_gate_kernels", name, calls)
