"""Training on the grid that the weights will be rounded to (QAT).

While a model trains, each forward sees its matrices as they will lie in a GGUF file: rounded to the
blocks of a ggml type by the very function that writes the file, so that what is exported is what
was trained, to the bit. The weights themselves stay float32; the gradient of the rounded matrix is
taken as theirs (straight through), and over many steps they move to where rounding does least harm.

The embedding, and the head that is tied to it, are rounded as well; norms and biases are not, nor
stacked experts. `lmworks compress quantize --method rtn --type T` then writes the file.

Sources: Bengio et al. 2013, straight-through estimator, arXiv 1308.3432; Jacob et al. 2018, arXiv
1712.05877, section 3. Left out: learned step sizes (LSQ): a file's scales are those that its
writer finds, so others would not be exported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from lmworks.core.errors import UserError
from lmworks.core.ggml_types import TYPES
from lmworks.core.gguf import GGUFTensor, dequantize
from lmworks.core.quantizers import check_writable, quantize
from lmworks.models.config import LMHeadConfig
from lmworks.models.model import Model

if TYPE_CHECKING:
    import numpy as np


@contextlib.contextmanager
def rounded_weights(model: nn.Module, kind: str) -> Iterator[None]:
    """Let every forward of `model` see its matrices rounded to the ggml type `kind`; "": as it is.

    Names of parameters stay, so that checkpoints do not depend on it.

    Raises: UserError for a type that can't be written, or a matrix that its blocks do not divide.
    """
    if not kind:
        yield
        return
    if not isinstance(model, Model):
        raise UserError("loop.qat is for a language model by itself")
    changed = _modules(model, kind)
    tied = _tied(model)
    try:
        for module in changed:
            module.rounding = _Rounding(kind)
            module.__class__ = _Embedding if type(module) is nn.Embedding else _Linear
        if tied:
            model.lm_head = _TiedHead(cast(nn.Embedding, model.embed_tokens))
        yield
    finally:
        for module in changed:
            module.__class__ = nn.Embedding if type(module) is _Embedding else nn.Linear
            del module.rounding
        if tied:
            model.lm_head = None


def round_values(values: np.ndarray, kind: str, name: str = "the matrix") -> np.ndarray:
    """float32 (rows, columns) as a file of the type would give it back."""
    data = quantize(values, kind, name=name).reshape(-1)
    return dequantize(GGUFTensor(name=name, shape=values.shape, type=kind, data=data))


def _modules(model: Model, kind: str) -> list[Any]:
    check_writable(kind, "loop.qat")
    found: list[Any] = []
    size = TYPES[kind].size
    for path, module in model.named_modules():
        if type(module) is nn.Embedding and (path != "embed_tokens" or not _plain_head(model)):
            continue
        if type(module) not in (nn.Linear, nn.Embedding):
            continue
        weight = cast(torch.Tensor, module.weight)
        if weight.shape[1] % size:
            raise UserError(
                f"loop.qat = {kind}: {path} has rows of {weight.shape[1]}, which blocks of {size} "
                "do not divide: take a type with blocks of 32, such as Q4_0"
            )
        if not weight.requires_grad:
            raise UserError(f"loop.qat: {path} is not trained: leave out the adapter")
        found.append(module)
    return found


def _plain_head(model: Model) -> bool:
    head = model.config.head
    return isinstance(head, LMHeadConfig) and head.transform is None


def _tied(model: Model) -> bool:
    return model.lm_head is None and _plain_head(model)


class _Rounding:
    """The rounded matrix, made again when the weights have changed."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._seen: tuple[Any, ...] = ()
        self._values = torch.zeros(0)

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        if hasattr(weight, "placements"):
            raise UserError("loop.qat: weights that are cut over processes can't be rounded")
        held = weight.detach()
        # The sum tells of changes that bypass the version counter (`.data`).
        seen = (held.data_ptr(), weight._version, float(held.sum()), float(held[0].sum()))
        if seen != self._seen:
            rounded = round_values(held.float().cpu().numpy(), self.kind)
            self._values = torch.from_numpy(rounded).to(held)
            self._seen = seen
        out: torch.Tensor = _Through.apply(weight, self._values)
        return out

    def __deepcopy__(self, memo: dict[int, Any]) -> _Rounding:
        return _Rounding(self.kind)


class _Through(torch.autograd.Function):
    """The rounded values; the gradient goes to the weights as it is."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return values.clone()  # a view of what is kept could be written to

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


class _Linear(nn.Linear):
    rounding: _Rounding

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.rounding(self.weight), self.bias)


class _Embedding(nn.Embedding):
    rounding: _Rounding

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.embedding(input, self.rounding(self.weight))


class _TiedHead(nn.Module):
    """Logits over the rounded embedding, which stays the embedding's parameter."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self._table = (table,)  # no submodule: the parameter has one name

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        table = cast(_Embedding, self._table[0])
        return F.linear(hidden, table.rounding(table.weight))
