"""What a model's linear modules are given on a text, layer by layer.

Token rows go through the layers one after another; between two layers only the states stay. What
changes a layer, a quantiser or a merge, looks at its inputs first, puts the changed matrices in the
model and then lets the states pass, so that each layer is solved on what those before it really
give. Memory is the states (4 bytes x tokens x width) and the sums of one layer.

    walk = LayerWalk(model, rows)
    for index, layer in enumerate(model.layers):
        inputs = walk.inputs(index, linear_paths(layer, f"layers.{index}"))
        ...                                         # change the layer
        walk.advance(index)
    inputs = walk.final()                           # what the head is given

Experts that lie in one tensor of three dimensions are no linear modules, and are not seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from lmworks.models.model import Model

BATCH_TOKENS = 2048  # that go through a layer together


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerInputs:
    """The inputs x of one module over all tokens of the rows.

    Attributes:
        count: tokens.
        mean_square: (n,) float32: the mean of x x, which llama.cpp calls the importance.
        largest: (n,) float32: the largest |x|.
        moment: (n, n) float32: the mean of x x^T; None if it wasn't asked for.
    """

    count: int
    mean_square: np.ndarray
    largest: np.ndarray
    moment: np.ndarray | None = None

    def divided(self, by: np.ndarray) -> LayerInputs:
        """What is seen of inputs whose channels are divided by `by`, (n,)."""
        moment = None if self.moment is None else self.moment / np.outer(by, by)
        return dataclasses.replace(
            self, mean_square=self.mean_square / by**2, largest=self.largest / by, moment=moment
        )


class LayerWalk:
    """Rows of token ids on their way through the layers of a model.

    Args:
        model: its embedding and what stands before the layers must be loaded; a layer only when
            it is looked at or passed.
        rows: (T,) ids each, of any lengths.
        batch_tokens: that go through a layer together, padding included.
    """

    def __init__(
        self, model: Model, rows: Sequence[np.ndarray], *, batch_tokens: int = BATCH_TOKENS
    ) -> None:
        self.model = model
        with torch.no_grad():
            self._states = _first_states(model, rows, batch_tokens)

    def inputs(
        self, index: int, paths: Sequence[str], *, moments: bool = True
    ) -> dict[str, LayerInputs]:
        """By path: what the modules of layer `index` are given, the layer being as it is now.

        Modules that are given the same tensor share theirs.

        Args:
            moments: whether to sum up x x^T too, which costs n numbers for each of the n.
        """
        sums: dict[str, _Sums] = {}
        leaders: dict[str, str] = {}
        given: dict[str, torch.Tensor] = {}

        def watch(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            def see(_: nn.Module, arguments: tuple[Any, ...]) -> None:
                # Kept until the layer is through, so that no two live at one address.
                given[path] = arguments[0]

            return see

        handles = [
            self.model.get_submodule(path).register_forward_pre_hook(watch(path)) for path in paths
        ]
        try:
            with torch.no_grad():
                for state in self._states:
                    given.clear()
                    state.through(self.model.layers[index], index)
                    first: dict[tuple[int, torch.Size], str] = {}
                    for path, x in given.items():
                        leaders[path] = first.setdefault((x.data_ptr(), x.shape), path)
                    for path in first.values():
                        sums.setdefault(path, _Sums(moments)).add(state.tokens(given[path]))
        finally:
            for handle in handles:
                handle.remove()
        done = {path: total.means() for path, total in sums.items()}
        return {path: done[leader] for path, leader in leaders.items()}

    def advance(self, index: int) -> None:
        """Let the states pass layer `index` as it is now."""
        with torch.no_grad():
            for state in self._states:
                state.x = state.through(self.model.layers[index], index)

    def states(self) -> list[torch.Tensor]:
        """(N, H) of each batch: what the next layer is given at every token."""
        return [state.tokens(state.x) for state in self._states]

    def batches(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Of each batch: the states, (B, T, H), and where tokens are, (B, T) bool."""
        return [(state.x, state.seen) for state in self._states]

    def through(self, batch: int, x: torch.Tensor, index: int) -> torch.Tensor:
        """What layer `index` makes of other states of a batch; gradients flow."""
        return dataclasses.replace(self._states[batch], x=x).through(
            self.model.layers[index], index
        )

    def final(self, *, moments: bool = True) -> LayerInputs:
        """What the head's matrix is given, once all layers are passed."""
        total = _Sums(moments)
        norm, transform = self.model.norm, self.model.head
        with torch.no_grad():
            for state in self._states:
                x = state.x if norm is None else norm(state.x)
                total.add(state.tokens(x if transform is None else transform(x)))
        return total.means()


def linear_paths(layer: nn.Module, prefix: str) -> list[str]:
    """Paths of the modules in `layer` that multiply with a matrix, under `prefix`."""
    return [
        f"{prefix}.{name}"
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear) or hasattr(module, "dequantized")
    ]


class _Sums:
    """Over tokens, in float32; the moment is by far the most work and one matrix product."""

    def __init__(self, moments: bool) -> None:
        self._moments, self._count = moments, 0
        self._squares = self._largest = self._moment = torch.zeros(0)

    def add(self, x: torch.Tensor) -> None:  # (N, n)
        width = x.shape[-1]
        if not len(self._squares):
            self._squares, self._largest = x.new_zeros(width), x.new_zeros(width)
            if self._moments:
                self._moment = x.new_zeros(width, width)
        self._count += len(x)
        if self._moments:
            self._moment.addmm_(x.T, x)
        else:
            self._squares += x.square().sum(dim=0)
        if len(x):
            self._largest = torch.maximum(self._largest, x.abs().amax(dim=0))

    def means(self) -> LayerInputs:
        count = max(self._count, 1)
        moment = (self._moment / count).numpy() if self._moments else None
        squares = (self._squares / count).numpy() if moment is None else np.diag(moment).copy()
        return LayerInputs(
            count=self._count, mean_square=squares, largest=self._largest.numpy(), moment=moment
        )


@dataclasses.dataclass
class _State:
    """A batch on its way through the layers."""

    x: torch.Tensor  # (B, T, H)
    context: Any
    seen: torch.Tensor  # (B, T) bool: where a token is

    def through(self, layer: nn.Module, index: int) -> torch.Tensor:
        out: torch.Tensor = layer(self.x, dataclasses.replace(self.context, layer=index))
        return out

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, n) -> (N, n) without padding; what a module got in another shape, all of it."""
        if x.shape[:2] != self.seen.shape:
            return x.reshape(-1, x.shape[-1])
        return x[self.seen]


class _Stop(Exception):
    pass


def _first_states(model: Model, rows: Sequence[np.ndarray], batch_tokens: int) -> list[_State]:
    """What the first layer is given, batch by batch; texts of like lengths together."""
    found: list[tuple[torch.Tensor, Any]] = []

    def stop(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        found.append((arguments[0], arguments[1]))
        raise _Stop

    states = []
    handle = cast(nn.Module, model.layers[0]).register_forward_pre_hook(stop)
    try:
        for batch in _batches(rows, batch_tokens):
            width = max(len(row) for row in batch)
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            seen = torch.zeros(len(batch), width, dtype=torch.bool)
            for line, row in enumerate(batch):
                ids[line, : len(row)] = torch.from_numpy(np.asarray(row, dtype=np.int64))
                seen[line, : len(row)] = True
            try:
                model.hidden_states(ids, attention_mask=seen)
            except _Stop:
                states.append(_State(*found.pop(), seen))
    finally:
        handle.remove()
    return states


def _batches(rows: Sequence[np.ndarray], batch_tokens: int) -> Iterator[list[np.ndarray]]:
    batch: list[np.ndarray] = []
    for row in sorted((row for row in rows if len(row)), key=len):
        if batch and (len(batch) + 1) * len(row) > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
