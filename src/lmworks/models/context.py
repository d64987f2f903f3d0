"""What a layer may look at beside its input, in one forward of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lmworks.models.cache_step import LayerCache
    from lmworks.models.documents import Bucket, Documents


class Encoded:
    """An encoder's states (B, S, H) and which of them stand for something, (B, S) bool or None.

    `keys_values` keeps what each cross attention makes of them, so that decoding asks once.
    """

    def __init__(self, states: torch.Tensor, padding: torch.Tensor | None = None) -> None:
        self.states, self.padding = states, padding
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def keys_values(
        self, layer: int, make: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What `make` gave when layer `layer` first asked; always anew where gradients flow."""
        if torch.is_grad_enabled():
            return make()
        if layer not in self._kept:
            self._kept[layer] = make()
        return self._kept[layer]


@dataclass(frozen=True, kw_only=True)
class Context:
    """One forward, as a layer sees it.

    Attributes:
        cache: this layer's part of the cache, or None.
        padding: (B, S) bool, True where a token is; None where all are.
        global_tokens: (B, T) bool, True where a token is global, for the patterns that know such.
        nodes: (G, M) bool, where the rows are M texts of each of G graphs: True where one is.
        bias: added to the scores of every attention, (1 or B, N, T, S).
        encoded: the encoder's states, for cross attention.
        documents: those that the rows are packed of; each is as if it stood alone.
        positions: (B, T), where each token stands, if not one behind the other.
        visible: (B, T, T) bool, True where a token may look, in place of "those up to itself".
        layer: the number of the layer.
        record: called with (operation, tensor) for each named operation; for explorers and the
            parity debugger.
        memo: what the layers of one forward share, such as masks.
    """

    cache: LayerCache | None = None
    padding: torch.Tensor | None = None
    global_tokens: torch.Tensor | None = None
    nodes: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    encoded: Encoded | None = None
    documents: Documents | None = None
    positions: torch.Tensor | None = None
    visible: torch.Tensor | None = None
    layer: int = 0
    record: Callable[[str, torch.Tensor], None] | None = None
    memo: dict[Any, Any] = field(default_factory=dict)

    @property
    def places(self) -> torch.Tensor | None:
        """(B, T), where each token stands; None where it is 0, 1, 2 ... in all rows."""
        if self.positions is None and self.documents is not None:
            return self.documents.positions
        return self.positions

    @property
    def apart(self) -> Documents | None:
        """The documents, if each can be read as a row of its own."""
        plain = self.positions is None and self.visible is None
        return self.documents if plain else None

    def of_bucket(self, bucket: Bucket) -> Context:
        """What a layer sees of a bucket of documents, each in a row of its own."""
        bias = self.bias
        if bias is not None:
            bias = bias[..., : bucket.length, : bucket.length]  # the same at the same distance
        return Context(bias=bias, layer=self.layer, memo=bucket.memo)

    def note(self, operation: str, value: torch.Tensor) -> None:
        """Record what an operation of this layer gave, if anybody asked."""
        if self.record is not None:
            self.record(f"layers.{self.layer}.{operation}", value)
