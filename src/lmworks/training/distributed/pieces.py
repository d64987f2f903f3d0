"""Which part of each parameter each process holds, and whole tensors made of the parts and back.

Whatever cut a parameter (tensor parallelism by rows or columns, FSDP by rows, a pipeline by
layers), what a process holds of it is a box: from where to where in each dimension. Boxes of a
parameter are equal (copies) or apart. With that alone a gradient's norm is counted once, an
optimizer that needs whole matrices gets them, and a checkpoint is written as one process would
write it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from lmworks.training.distributed.groups import gathered

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Box = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Piece:
    """`box` of a tensor of `shape`; bounds are [start, stop) in each dimension."""

    shape: tuple[int, ...]
    box: Box

    @classmethod
    def whole(cls, tensor: torch.Tensor) -> Piece:
        return cls(tuple(tensor.shape), tuple((0, size) for size in tensor.shape))

    def within(self, dim: int, start: int, stop: int) -> Piece:
        """The part of this piece from `start` to `stop` of its own in a dimension."""
        box = list(self.box)
        first = box[dim][0]
        box[dim] = (first + start, first + stop)
        return Piece(self.shape, tuple(box))

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """This part of the whole, a view."""
        return tensor[tuple(slice(start, stop) for start, stop in self.box)]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(stop - start for start, stop in self.box)

    @property
    def numel(self) -> int:
        return math.prod(self.sizes)


class Layout:
    """Everybody's pieces, by the parameter's whole name, within one copy of the model.

    Args:
        mine: of this process.
        group: the processes that hold the copy together.
    """

    def __init__(self, mine: Mapping[str, Piece], group: ProcessGroup) -> None:
        self.mine, self.group = dict(mine), group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.everyone: list[dict[str, Piece]] = gathered(self.mine, group)
        self.names = sorted({name for pieces in self.everyone for name in pieces})
        self._first: dict[tuple[str, Box], int] = {}
        for rank, pieces in enumerate(self.everyone):
            for name, piece in pieces.items():
                if piece.numel:
                    self._first.setdefault((name, piece.box), rank)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole parameter."""
        return next(pieces[name].shape for pieces in self.everyone if name in pieces)

    def speaks(self, name: str) -> bool:
        """Whether this process is the first that holds its piece, so that it counts once."""
        piece = self.mine[name]
        return piece.numel > 0 and self._first[name, piece.box] == self.rank

    def owners(self) -> dict[str, int]:
        """See `owners`."""
        return owners(self.everyone)

    def to_owners(
        self, parts: Mapping[str, torch.Tensor], owners: Mapping[str, int]
    ) -> dict[str, torch.Tensor]:
        """Whole tensors of what this process owns, out of everybody's parts; one collective."""
        example = next(iter(parts.values()))

        def senders(source: int, owner: int) -> list[tuple[str, Piece]]:
            return [
                (name, piece)
                for name, piece in sorted(self.everyone[source].items())
                if owners.get(name) == owner
                and piece.numel
                and self._first[name, piece.box] == source
            ]

        sent = [[parts[name] for name, _ in senders(self.rank, r)] for r in range(self.size)]
        expected = [senders(source, self.rank) for source in range(self.size)]
        received = self._exchange(sent, [[p for _, p in pieces] for pieces in expected], example)
        wholes = {
            name: example.new_zeros(self.shape(name))
            for name in sorted(owners)
            if owners[name] == self.rank
        }
        for pieces, tensors in zip(expected, received, strict=True):
            for (name, piece), tensor in zip(pieces, tensors, strict=True):
                piece.of(wholes[name]).copy_(tensor)
        return wholes

    def from_owners(
        self,
        wholes: Mapping[str, torch.Tensor],
        owners: Mapping[str, int],
        into: Mapping[str, torch.Tensor],
    ) -> None:
        """Copy the owners' whole tensors into everybody's parts; one collective."""
        example = next(iter(into.values()))

        def wanted(rank: int, owner: int) -> list[tuple[str, Piece]]:
            return [
                (name, piece)
                for name, piece in sorted(self.everyone[rank].items())
                if owners.get(name) == owner and piece.numel
            ]

        sent = [
            [piece.of(wholes[name]) for name, piece in wanted(rank, self.rank)]
            for rank in range(self.size)
        ]
        expected = [wanted(self.rank, owner) for owner in range(self.size)]
        received = self._exchange(sent, [[p for _, p in pieces] for pieces in expected], example)
        for pieces, tensors in zip(expected, received, strict=True):
            for (name, _), tensor in zip(pieces, tensors, strict=True):
                into[name].copy_(tensor)

    def _exchange(
        self,
        sent: list[list[torch.Tensor]],
        expected: list[list[Piece]],
        example: torch.Tensor,
    ) -> list[list[torch.Tensor]]:
        flat = [t.reshape(-1) for tensors in sent for t in tensors]
        outgoing = torch.cat(flat) if flat else example.new_empty(0)
        counts_out = [sum(t.numel() for t in tensors) for tensors in sent]
        counts_in = [sum(piece.numel for piece in pieces) for pieces in expected]
        incoming = example.new_empty(sum(counts_in))
        dist.all_to_all_single(incoming, outgoing, counts_in, counts_out, group=self.group)
        found, at = [], 0
        for pieces in expected:
            tensors = []
            for piece in pieces:
                tensors.append(incoming[at : at + piece.numel].view(piece.sizes))
                at += piece.numel
            found.append(tensors)
        return found

    def whole(self, parts: Mapping[str, Any]) -> dict[str, Any] | None:
        """On the copy's first process, all that the others hold, put together; None elsewhere.

        Args:
            parts: name -> tensor or mapping of tensors. What has the shape of this process's piece
                is put together; of what has another shape, or is no tensor, the first is taken.
        """
        mine = {
            name: _on_cpu(value)
            for name, value in parts.items()
            if name not in self.mine or self.speaks(name) or not isinstance(value, torch.Tensor)
        }
        first = self.rank == 0
        everybody: list[Any] | None = [None] * self.size if first else None
        root = dist.get_global_rank(self.group, 0)
        dist.gather_object(mine, everybody, dst=root, group=self.group)
        if everybody is None:
            return None
        found: dict[str, Any] = {}
        for rank, theirs in enumerate(everybody):
            for name, value in theirs.items():
                piece = self.everyone[rank].get(name)
                found[name] = _put(found.get(name), value, piece)
        return found

    def cut(self, name: str, value: Any) -> Any:
        """What this process holds of a whole value, as `whole` gave it."""
        piece = self.mine.get(name)
        if isinstance(value, Mapping):
            return {key: self.cut(name, inner) for key, inner in value.items()}
        if piece is None or not isinstance(value, torch.Tensor) or value.shape != piece.shape:
            return value
        return piece.of(value).clone()


def owners(everyone: Sequence[Mapping[str, Piece]]) -> dict[str, int]:
    """A process for each parameter, among those that hold some of it: loads about equal."""
    shapes = {name: piece.shape for pieces in everyone for name, piece in pieces.items()}
    loads = [0] * len(everyone)
    found = {}
    for name in sorted(shapes, key=lambda n: (-math.prod(shapes[n]), n)):
        holders = [r for r, pieces in enumerate(everyone) if name in pieces]
        owner = min(holders, key=lambda rank: (loads[rank], rank))
        loads[owner] += math.prod(shapes[name])
        found[name] = owner
    return found


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(inner) for key, inner in value.items()}
    return value


def _put(held: Any, value: Any, piece: Piece | None) -> Any:
    """`value` laid into what is held of the whole so far."""
    if isinstance(value, Mapping):
        held = {} if held is None else held
        return held | {key: _put(held.get(key), inner, piece) for key, inner in value.items()}
    if piece is None or not isinstance(value, torch.Tensor) or value.shape != piece.sizes:
        return value if held is None else held
    if held is None:
        held = value.new_zeros(piece.shape)
    piece.of(held).copy_(value)
    return held
