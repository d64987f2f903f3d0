"""Tensors that have a shape and no memory, and a record of the memory they would have taken.

A training step runs through the real modules, autograd and the real optimizer, so whatever a block
keeps for its backward is counted, and no formula can fall behind the code. What flows from weights
is a `ShapeTensor`: on the CPU for all who ask, computed on the "meta" device. Ids, labels and masks
stay real, so that code may look at their values. Of a ShapeTensor a single number is always one,
and tokens are spread over experts about as unevenly as a fresh router does it.

Source: the idea is that of PyTorch's fake tensors; these are smaller, and know what is asked here.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

_aten = torch.ops.aten


class ShapeTensor(torch.Tensor):
    """A CPU tensor without memory; `shapes` is the same on the "meta" device."""

    shapes: torch.Tensor

    @staticmethod
    def __new__(cls, shapes: torch.Tensor) -> ShapeTensor:
        made: ShapeTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[assignment]
            cls,
            shapes.size(),
            strides=shapes.stride(),
            storage_offset=shapes.storage_offset(),
            dtype=shapes.dtype,
            device=torch.device("cpu"),
        )
        made.shapes = shapes
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"ShapeTensor({tuple(self.shape)}, {self.dtype})"


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operation gives: shapes if a shape goes in, else values."""
    flat, spec = tree_flatten((args, kwargs))
    if not any(isinstance(x, ShapeTensor) for x in flat):
        return func(*args, **kwargs)
    if func in _KNOWN:
        return _KNOWN[func](*args, **kwargs)
    outside = {id(x.shapes): x for x in flat if isinstance(x, ShapeTensor)}
    if func is _aten.index.Tensor or func is _aten.index_put_.default:
        flat, spec = tree_flatten((_without_masks(args), kwargs))
    args, kwargs = tree_unflatten([_inner(x) for x in flat], spec)
    found = func(*args, **kwargs)
    return tree_map_only(
        torch.Tensor, lambda x: outside[id(x)] if id(x) in outside else ShapeTensor(x), found
    )


def _inner(x: Any) -> Any:
    if isinstance(x, ShapeTensor):
        return x.shapes
    if isinstance(x, torch.Tensor) and x.device.type != "meta":
        return _empty(x)
    return torch.device("meta") if isinstance(x, torch.device) else x


def _without_masks(args: Any) -> Any:
    """Indices with masks, whose values are at hand, as the places that they choose."""
    x, indices, *rest = args
    places: list[Any] = []
    for index in indices:
        if isinstance(index, torch.Tensor) and index.dtype == torch.bool:
            places.extend(index.nonzero(as_tuple=True))
        else:
            places.append(index)
    return [x, places, *rest]


def _one(x: torch.Tensor) -> Any:
    return torch.ones((), dtype=x.dtype).item()


_GOLDEN = 0.6180339887  # its multiples lie evenly between whole numbers


def _spread(x: torch.Tensor, weights: Any = None, minlength: int = 0) -> torch.Tensor:
    """Counts from half to one and a half of the mean. Were they equal, all experts' blocks would be
    of one size, and each would fit into the hole that another left."""
    count = max(1, minlength)
    parts = 0.5 + torch.arange(count, dtype=torch.float64) * _GOLDEN % 1
    ends = (parts.cumsum(0) / parts.sum() * x.numel()).round().long()
    return ends.diff(prepend=ends.new_zeros(1))


_KNOWN: dict[Any, Callable[..., Any]] = {
    _aten._local_scalar_dense.default: _one,
    _aten.is_nonzero.default: lambda x: True,
    _aten.equal.default: lambda a, b: True,
    _aten.bincount.default: _spread,
}


@dataclasses.dataclass(frozen=True)
class Event:
    """A block of memory taken (`num_bytes` > 0) or given back (< 0), and during what."""

    block: int
    num_bytes: int
    part: str


class MemoryRecord(TorchDispatchMode):
    """`with MemoryRecord() as record:` writes down what is allocated and freed meanwhile.

    Args:
        real: leave all tensors as they are, also large new ones.
    Attributes:
        events: in order.
        labels: block -> what it is for.
        part: what goes on now; the label of blocks that nothing else names.
        label: what the blocks taken from now on are for, or "".
        kernels: compiled kernels that would have run, (module, name), if someone notes them.
    """

    def __init__(self, *, real: bool = False) -> None:
        super().__init__()
        self._real = real
        self.events: list[Event] = []
        self.labels: dict[int, str] = {}
        self.part = self.label = ""
        self.kernels: Mapping[tuple[str, str], None] = {}
        self._alive: dict[int, tuple[int, weakref.ref[Any]]] = {}  # address of a storage -> block

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made_up = func.overloadpacket in _FACTORIES and not self._real
        if made_up and _stands_for_much(func, args, kwargs):
            found = ShapeTensor(func(*args, **{**kwargs, "device": torch.device("meta")}))
        else:
            found = _run(func, args, kwargs)
        for x in tree_flatten(found)[0]:
            if isinstance(x, torch.Tensor):
                self.take(x)
        return found

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first operation would import torch's compiler, which takes seconds

    def take(self, x: torch.Tensor) -> int:
        """The number of the block that a tensor lies in, which is written down if it is new."""
        storage = (x.shapes if isinstance(x, ShapeTensor) else x).untyped_storage()
        key = storage._cdata
        if key in self._alive and self._alive[key][1]() is storage:
            return self._alive[key][0]
        block, size = len(self.labels), storage.nbytes()
        self.labels[block] = self.label or self.part
        self.events.append(Event(block, size, self.part))
        reference = weakref.ref(storage, lambda _: self._free(key, block, size))
        self._alive[key] = (block, reference)
        return block

    def _free(self, key: int, block: int, size: int) -> None:
        if key in self._alive and self._alive[key][0] == block:
            del self._alive[key]
        self.events.append(Event(block, -size, self.part))


_FACTORIES = {
    _aten.empty, _aten.zeros, _aten.ones, _aten.full, _aten.empty_strided, _aten.rand, _aten.randn
}  # fmt: skip
_SMALL = 1024


def _stands_for_much(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a new tensor is large and holds no whole numbers, whose values may be asked for."""
    if kwargs.get("device") == torch.device("meta"):
        return False
    value = args[1] if func.overloadpacket is _aten.full else 0.0
    dtype = kwargs.get("dtype") or torch.get_default_dtype()
    whole = not dtype.is_floating_point or isinstance(value, int)
    return not whole and math.prod(args[0]) >= _SMALL


def shape_twin(module: nn.Module) -> nn.Module:
    """A copy of a module with ShapeTensors for weights; what shares weights goes on sharing them.

    Args:
        module: on any device, also "meta"; it is not changed and none of its weights is copied.
    """
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        shape = ShapeTensor(_empty(parameter))
        memo[id(parameter)] = nn.Parameter(shape, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = ShapeTensor(_empty(buffer)) if buffer.is_floating_point() else buffer
    twin: nn.Module = copy.deepcopy(module, memo)
    return twin


def _empty(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
