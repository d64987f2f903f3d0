"""What a step learns from: rows that can be cut, weighed and moved, whatever an objective needs.

A source of batches is a pure function `step -> Rows` of its seed: a resume, another number of
processes or another micro-batch size sees the same rows in the same order.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Self

    import torch

IGNORED = -100  # a label that the loss passes over; PyTorch's own convention


class Rows(ABC):
    """A frozen dataclass whose tensors share their first dimension, also in mappings and in others.

    What is None, or no tensor, stays as it is.
    """

    @property
    @abstractmethod
    def num_targets(self) -> int:
        """What the mean loss is a mean over: tokens, pairs, rows."""

    @property
    def num_rows(self) -> int:
        """The size of the first dimension."""
        return len(next(_tensors(self)))

    def rows(self, start: int, stop: int) -> Self:
        """The rows from `start` to before `stop`, views of the same memory."""
        return self._with(lambda tensor: tensor[start:stop])

    def to(self, device: torch.device) -> Self:
        """All tensors on `device`; itself if they are there already."""
        if next(_tensors(self)).device == device:
            return self
        return self._with(lambda tensor: tensor.to(device))

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        changed = {name: _changed(value, change) for name, value in values.items()}
        return dataclasses.replace(self, **changed)  # type: ignore[type-var]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch(Rows):
    """Tokens and what is asked of the model at each of them.

    Attributes:
        input_ids: (B, T) int64.
        labels: (B, T) int64; `labels[b, t]` is what the model should say at position t, or IGNORED.
            For a decoder that is the next token: the shift is in the batch, not in the loss.
        inputs: what else `Model.hidden_states` takes, such as `attention_mask` (B, T).
        source: where the rows are from, if a training mixes kinds whose losses differ by nature.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    inputs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    source: str = ""

    @property
    def num_targets(self) -> int:
        """Tokens that count in the loss."""
        return int((self.labels != IGNORED).sum())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts(Rows):
    """Ids (B, T) and a mask (B, T), 1 where a token is."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor

    @property
    def num_targets(self) -> int:
        """Texts."""
        return self.num_rows


def token_shape(batch: Rows) -> tuple[int, int]:
    """(tokens that go through the model, the longest row); zeros where none are named input_ids."""
    count = longest = 0
    for field in dataclasses.fields(batch):  # type: ignore[arg-type]
        value = getattr(batch, field.name)
        inside = value.values() if isinstance(value, Mapping) else (value,)
        for rows in inside:
            if isinstance(rows, Rows):
                inner, length = token_shape(rows)
                count, longest = count + inner, max(longest, length)
        if field.name == "input_ids":
            count, longest = count + value.numel(), max(longest, value.shape[-1])
    return count, longest


def micro_batches(batch: Rows, size: int) -> Iterator[Any]:
    """`batch` in parts of up to `size` rows, those without a target left out; whole if size is 0.

    Raises: UserError where no row has anything to learn.
    """
    from lmworks.core.errors import UserError

    if batch.num_targets == 0:
        raise UserError("a batch has no target at all: nothing could be learned from it")
    count = batch.num_rows
    if not 0 < size < count:
        yield batch
        return
    for start in range(0, count, size):
        part = batch.rows(start, min(start + size, count))
        if part.num_targets:
            yield part


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, Rows):
        for field in dataclasses.fields(value):  # type: ignore[arg-type]
            yield from _tensors(getattr(value, field.name))


def _changed(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _changed(inner, change) for name, inner in value.items()}
    if isinstance(value, Rows):
        return value._with(change)
    return value
