"""What ggml does with the inputs of a quantised matrix before it multiplies: blocks of 8 bits.

llama.cpp rounds the inputs of a quantised product, a block at a time, so that whole numbers meet
whole numbers; ours are kept to 24 bits (`packed_vectors`). With this rounding our logits are those
of llama.cpp but for the order of sums, so two engines can be compared, and what its speed costs in
quality can be measured.

Source: ggml-cpu, quantize_row_q8_0 and quantize_row_q8_K, and the types it sets beside each other
(type_traits_cpu). Left out: Q8_1's sums, which ggml keeps as float16 for the shifts of Q4_1 and
Q5_1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lmworks.models.activation_rounding import replaced

if TYPE_CHECKING:
    from lmworks.models.model import Model

_TINY_BLOCK, _BLOCK = 32, 256


def round_blocks(x: torch.Tensor, kind: str) -> torch.Tensor:
    """(..., n) float32 -> the same as ggml rounds it beside a matrix of the type `kind`."""
    if kind == "F16":
        return x.half().float()
    if kind == "BF16":
        return x.bfloat16().float()
    if kind == "F32":
        return x
    wide = kind.endswith("_K") or kind == "IQ4_XS"
    blocks = x.reshape(*x.shape[:-1], -1, _BLOCK if wide else _TINY_BLOCK)
    at = blocks.abs().argmax(dim=-1, keepdim=True)
    furthest = blocks.gather(-1, at)
    largest = -furthest if wide else furthest.abs()  # the one furthest from zero becomes -127
    nothing = furthest == 0
    inverse = torch.where(nothing, 0.0, 127 / torch.where(nothing, 1.0, largest))
    codes = (blocks * inverse).round()
    if wide:
        steps = torch.where(nothing, 0.0, 1 / torch.where(nothing, 1.0, inverse))
        codes = codes.clamp(max=127)
    else:
        steps = (largest / 127).half().float()
    return (codes * steps).reshape(x.shape)


class _BlockRounded(nn.Module):
    def __init__(self, base: nn.Module, kind: str) -> None:
        super().__init__()
        self.base, self.kind = base, kind

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.base(round_blocks(x, self.kind))
        return out


@contextlib.contextmanager
def ggml_activations(model: Model) -> Iterator[Model]:
    """The model with inputs of all its packed matrices rounded as ggml rounds them, for a while.

    The matrix of the logits too. Short steps that run as one call leave it to the modules.
    """
    modules = {
        path: _BlockRounded(module, str(module.block_type))
        for path, module in model.named_modules()
        if hasattr(module, "block_type") and hasattr(module, "in_features")
    }
    with replaced(model, modules):
        yield model
