"""What meets in the attention of a module that is not ours: q, k and v, after their positions.

Models of transformers hand them to a function that they look up by name; other modules mostly to
`scaled_dot_product_attention`. Either is watched while the module runs, and the results stay as
they are. A module that does neither is compared without these operations.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lmworks.models.architectures.rules import Bound
from lmworks.models.parity.operations import Record, layer_modules

_Seen = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


@contextlib.contextmanager
def attention_calls(root: nn.Module, bounds: Sequence[Bound], record: Record) -> Iterator[None]:
    """Record `layers.N.mixer.q`, `.k` and `.v` of the first attention of each layer."""
    current = {"layer": ""}
    modules = dict(root.named_modules())
    handles = []
    for own, path in layer_modules(bounds).items():
        if path in modules:
            enter = functools.partial(_enter, current, own)
            handles.append(modules[path].register_forward_pre_hook(enter))

    def seen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        layer, current["layer"] = current["layer"], ""  # cross attention comes second
        if layer:
            for name, value in (("q", q), ("k", k), ("v", v)):
                record(f"{layer}.mixer.{name}", value)

    try:
        with _of_transformers(seen) if hasattr(root, "config") else _Watch(seen):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _enter(current: dict[str, str], layer: str, *_: Any) -> None:
    current["layer"] = layer


@contextlib.contextmanager
def _of_transformers(seen: _Seen) -> Iterator[None]:
    """Watch the table in which transformers looks up its attention functions."""
    table: Any = getattr(sys.modules.get("transformers.modeling_utils"), _TABLE, None)
    plain = getattr(table, "get_interface", None)
    if plain is None:  # an old transformers
        yield
        return

    def watching(*args: Any, **named: Any) -> Any:
        function = plain(*args, **named)

        def call(module: Any, q: Any, k: Any, v: Any, *rest: Any, **options: Any) -> Any:
            seen(q, k, v)
            return function(module, q, k, v, *rest, **options)

        return call

    table.get_interface = watching
    try:
        yield
    finally:
        del table.get_interface


_TABLE = "ALL_ATTENTION_FUNCTIONS"


class _Watch(TorchFunctionMode):
    """Watch `scaled_dot_product_attention` of any module."""

    def __init__(self, seen: _Seen) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention and len(args) >= 3:
            self._seen(*args[:3])
        return func(*args, **(kwargs or {}))
