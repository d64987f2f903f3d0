"""Tensor parallelism: each process has some heads, some inner features, and some of the vocabulary.

As in Megatron-LM (Shoeybi et al. 2019, arXiv 1909.08053, section 3): q, k, v, gate and up are cut
by rows of their weights, o and down by columns, so that a layer needs one sum after its attention
and one after its feed-forward, and as many backwards. With fewer key-value heads than processes,
each process has the one that its queries look at; such copies sum their gradients.

PyTorch's DTensor does the same cuts for matrices, but not this sharing of key-value heads; and with
plain tensors, optimizers, objectives and checkpoints need not know that a weight was cut.
"""

from __future__ import annotations

import itertools
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from lmworks.core.errors import UserError
from lmworks.models.attention import Attention
from lmworks.models.feed_forward import MLP
from lmworks.models.model import Model
from lmworks.training.distributed.pieces import Piece
from lmworks.training.distributed.vocabulary import Join, cut_loss

Pieces = dict[str, Piece]


class _Spread(torch.autograd.Function):
    """The same input in every process; their gradients are summed."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        grad = gradients[0].contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _Sum(torch.autograd.Function):
    """The sum of every process's part; each gets the whole gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        x = x.contiguous().clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


class RowParallel(nn.Linear):
    """Some columns of a weight: a part of the product, then the sum over processes and the bias."""

    group: dist.ProcessGroup

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., some features) -> (..., H)."""
        y = _Sum.apply(F.linear(input, self.weight), self.group)
        return y if self.bias is None else y + self.bias


class VocabularyParallel(nn.Embedding):
    """Some rows of the table; the others' rows are zero here and come with the sum."""

    group: dist.ProcessGroup
    start: int
    whole_size: int

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(B, T) ids -> (B, T, H). Raises: IndexError for an id outside the vocabulary."""
        if bool(((input < 0) | (input >= self.whole_size)).any()):
            raise IndexError("index out of range in self")
        here = (input >= self.start) & (input < self.start + self.num_embeddings)
        rows = super().forward((input - self.start).clamp(0, max(0, self.num_embeddings - 1)))
        rows = rows * here[..., None].to(rows.dtype)
        return cast(torch.Tensor, _Sum.apply(rows, self.group))


def cut_matrices(
    model: Model, pieces: Pieces, group: dist.ProcessGroup, rank: int, size: int
) -> list[str]:
    """Leave this process's share of every matrix in `model`, in place.

    Args:
        pieces: of all trained parameters; those that are cut change.
    Returns: names of parameters that several processes hold alike and that get a part of their
        gradient in each, see `sum_partial`.
    Raises: UserError for a part that is no plain layer, such as one with an adapter.
    """
    partial: list[str] = []
    for index, layer in enumerate(cast(Any, model.layers)):
        mixer, inner = layer.mixer, getattr(layer, "feed_forward", None)
        name = f"layers.{index}"
        partial += _cut_attention(mixer, f"{name}.mixer", pieces, group, rank, size)
        if inner is not None:
            _cut_mlp(inner, f"{name}.feed_forward", pieces, group, rank, size)
    _cut_vocabulary(model, pieces, group, rank, size)
    return partial


@torch.no_grad()
def sum_partial(
    gradients: dict[str, torch.Tensor], pieces: Pieces, group: dist.ProcessGroup
) -> None:
    """Sum, in place, gradients over the processes that hold the same piece; one collective."""
    if not gradients:
        return
    wholes = {n: g.new_zeros(pieces[n].shape) for n, g in gradients.items()}
    for name, grad in gradients.items():
        pieces[name].of(wholes[name]).copy_(grad)
    flat = torch.cat([whole.view(-1) for whole in wholes.values()])
    dist.all_reduce(flat, group=group)
    parts = flat.split([whole.numel() for whole in wholes.values()])
    for (name, grad), part in zip(gradients.items(), parts, strict=True):
        grad.copy_(pieces[name].of(part.view(pieces[name].shape)))


def shared_key_groups(num_key_value_heads: int, group_size: int) -> int:
    """How many processes in a row hold the same key-value head; 1 if none is shared."""
    return max(1, group_size // num_key_value_heads)


def _cut_attention(
    module: Attention, name: str, pieces: Pieces, group: dist.ProcessGroup, rank: int, size: int
) -> list[str]:
    config = module.config
    heads, groups, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    shared = shared_key_groups(groups, size)
    mine = heads // size
    _cut(module, "q_proj", name, pieces, 0, rank * mine * width, (rank + 1) * mine * width)
    if shared == 1:
        start, stop = rank * groups // size, (rank + 1) * groups // size
    else:
        start = rank // shared
        stop = start + 1
    for part in ("k_proj", "v_proj"):
        _cut(module, part, name, pieces, 0, start * width, stop * width)
    _cut(module, "o_proj", name, pieces, 1, rank * mine * width, (rank + 1) * mine * width)
    module.o_proj = _row_parallel(module.o_proj, group)
    module.register_forward_pre_hook(_spreading(group))
    partial = [n for n in ("q_norm", "k_norm") if getattr(module, n) is not None]
    partial += ["k_proj", "v_proj"] if shared > 1 else []
    return [f"{name}.{n}.{p}" for n in partial for p, _ in getattr(module, n).named_parameters()]


def _cut_mlp(
    module: MLP, name: str, pieces: Pieces, group: dist.ProcessGroup, rank: int, size: int
) -> None:
    inner = module.up_proj.out_features
    start, stop = inner * rank // size, inner * (rank + 1) // size
    for part in ("gate_proj", "up_proj"):
        if getattr(module, part) is not None:
            _cut(module, part, name, pieces, 0, start, stop)
    _cut(module, "down_proj", name, pieces, 1, start, stop)
    module.down_proj = _row_parallel(module.down_proj, group)
    module.register_forward_pre_hook(_spreading(group))


def _spreading(group: dist.ProcessGroup) -> Any:
    def spread(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_Spread.apply(inputs[0], group), *inputs[1:])

    return spread


def _cut(
    owner: nn.Module, part: str, name: str, pieces: Pieces, dim: int, start: int, stop: int
) -> None:
    """Keep rows (dim 0, with the bias) or columns (dim 1) of a linear layer."""
    linear = getattr(owner, part)
    if type(linear) is not nn.Linear:
        raise UserError(
            f"{name}.{part} is a {type(linear).__name__}: tensor parallelism cuts plain linear "
            "layers; use data and shard"
        )
    for key in ("weight", "bias") if dim == 0 else ("weight",):
        parameter = getattr(linear, key)
        if parameter is not None:
            _keep(linear, key, f"{name}.{part}.{key}", pieces, dim, start, stop)
    setattr(linear, ("out_features", "in_features")[dim], stop - start)


def _keep(
    module: nn.Module, key: str, name: str, pieces: Pieces, dim: int, start: int, stop: int
) -> None:
    parameter = getattr(module, key)
    kept = parameter.detach().narrow(dim, start, stop - start).clone()
    setattr(module, key, nn.Parameter(kept, requires_grad=parameter.requires_grad))
    if name in pieces:
        pieces[name] = pieces[name].within(dim, start, stop)


def _row_parallel(linear: nn.Linear, group: dist.ProcessGroup) -> RowParallel:
    linear.__class__ = RowParallel
    made = cast(RowParallel, linear)
    made.group = group
    return made


def _cut_vocabulary(
    model: Model, pieces: Pieces, group: dist.ProcessGroup, rank: int, size: int
) -> None:
    vocab = model.config.vocab_size
    bounds = [vocab * i // size for i in range(size + 1)]
    start, stop = bounds[rank], bounds[rank + 1]
    if hasattr(model, "embed_tokens"):
        table: Any = model.embed_tokens
        _keep(table, "weight", "embed_tokens.weight", pieces, 0, start, stop)
        table.__class__ = VocabularyParallel
        table.group, table.start, table.whole_size = group, start, vocab
        table.num_embeddings = stop - start
    if model.lm_head is not None:
        _cut_head(model, pieces, start, stop)
    elif model.head is not None and getattr(model.head, "bias", None) is not None:
        _keep(model.head, "bias", "head.bias", pieces, 0, start, stop)
    sizes = [b - a for a, b in itertools.pairwise(bounds)]
    logits = model.logits

    def part(hidden: torch.Tensor) -> torch.Tensor:
        return logits(cast(torch.Tensor, _Spread.apply(hidden, group)))

    def joined(hidden: torch.Tensor) -> torch.Tensor:
        """See `Model.logits`: each process's part of the vocabulary, then all side by side."""
        return cast(torch.Tensor, Join.apply(part(hidden), sizes, group))

    model.logits = joined  # type: ignore[method-assign]
    model.vocabulary_loss = cut_loss(part, start, group)  # type: ignore[assignment]


def _cut_head(model: Model, pieces: Pieces, start: int, stop: int) -> None:
    holder: Any = nn.Module()
    holder.lm_head = model.lm_head
    renamed = {f".{n}": p for n, p in pieces.items() if n.startswith("lm_head")}
    _cut(holder, "lm_head", "", renamed, 0, start, stop)
    pieces.update({n[1:]: p for n, p in renamed.items()})
