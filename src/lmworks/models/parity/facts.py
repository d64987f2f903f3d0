"""What configs and weights say of themselves: every field and every tensor that differs, and how.

A tensor that differs is held against what ports get wrong: is it the other's transpose, its rows
in another order, the same plus or times a number, rounded, or another tensor of the model?
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lmworks.models.config import ModelConfig

State = Mapping[str, torch.Tensor]
_CLOSE = 1e-5  # relative: what conversions through float32 leave
_BLOCK = 32  # of Q8_0
_HASHED = 64  # columns that stand for a row


@dataclass(frozen=True, kw_only=True)
class FieldFact:
    """A field of the config, `layers.mixer.rope.theta`, and its two values."""

    path: tuple[str, ...]
    layers: tuple[int, ...]
    a: Any
    b: Any

    @property
    def name(self) -> str:
        """The path as text, with the layers if they are not all."""
        return ".".join(self.path)


@dataclass(frozen=True, kw_only=True)
class TensorFact:
    """A parameter that differs, and what the second is to the first, in words.

    `rounding` is set where the second is the first in fewer bits, or the other way about.
    """

    name: str
    relation: str
    rounding: bool = False


def fields_apart(a: Any, b: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any, Any]]:
    """(path, value in a, value in b) of every field of two configs that differs."""
    if type(a) is not type(b) or not dataclasses.is_dataclass(a):
        if a != b:
            yield path, a, b
        return
    for field in dataclasses.fields(a):
        if field.name != "layers":
            one, other = getattr(a, field.name), getattr(b, field.name)
            yield from fields_apart(one, other, (*path, field.name))


def config_facts(a: ModelConfig, b: ModelConfig) -> list[FieldFact]:
    """The fields that differ; one fact for all layers in which it is the same."""
    found = [FieldFact(path=p, layers=(), a=x, b=y) for p, x, y in fields_apart(a, b)]
    if len(a.layers) != len(b.layers):
        counts = (len(a.layers), len(b.layers))
        found.append(FieldFact(path=("num_hidden_layers",), layers=(), a=counts[0], b=counts[1]))
    by_layer: dict[tuple[Any, str], list[int]] = {}
    values: dict[tuple[Any, str], tuple[Any, Any]] = {}
    for number, (one, other) in enumerate(zip(a.layers, b.layers)):
        for path, x, y in fields_apart(one, other):
            key = (path, repr((x, y)))
            by_layer.setdefault(key, []).append(number)
            values[key] = (x, y)
    for (path, said), layers in by_layer.items():
        x, y = values[path, said]
        found.append(FieldFact(path=("layers", *path), layers=tuple(layers), a=x, b=y))
    return found


def tensor_facts(a: State, b: State) -> list[TensorFact]:
    """The parameters that differ, and those that one side lacks, in the order of a."""
    found = []
    prints = {name: _print(tensor) for name, tensor in a.items()}
    for name, ours in a.items():
        if name not in b:
            found.append(TensorFact(name=name, relation="only the first has it"))
        elif fact := tensor_fact(name, ours, b[name], prints):
            found.append(fact)
    return found + [
        TensorFact(name=name, relation="only the second has it") for name in b if name not in a
    ]


def tensor_fact(
    name: str, a: torch.Tensor, b: torch.Tensor, prints: Mapping[str, Any]
) -> TensorFact | None:
    """What b is to a, or None if they are equal."""
    if a.shape != b.shape:
        return TensorFact(name=name, relation=f"{tuple(b.shape)} instead of {tuple(a.shape)}")
    if torch.equal(a, b):
        return None
    if not bool(torch.isfinite(b).all()):
        count = int((~torch.isfinite(b)).sum())
        return TensorFact(name=name, relation=f"{count} values are NaN or infinite")
    for dtype in (torch.bfloat16, torch.float16):
        word = str(dtype).removeprefix("torch.")
        if torch.equal(a.to(dtype).float(), b):
            return TensorFact(name=name, relation=f"rounded to {word}", rounding=True)
        if torch.equal(b.to(dtype).float(), a):
            return TensorFact(name=name, relation=f"not rounded to {word}", rounding=True)
    if _in_blocks(a, b) or _in_blocks(b, a):
        return TensorFact(name=name, relation="rounded to 8 bits in blocks (Q8_0)", rounding=True)
    if other := next((n for n, p in prints.items() if n != name and p == _print(b)), None):
        return TensorFact(name=name, relation=f"it is {other} of the first")
    if a.dim() == 2 and a.shape[0] == a.shape[1] and _equal(a.mT, b):
        return TensorFact(name=name, relation="transposed")
    if not bool(b.any()):
        return TensorFact(name=name, relation="all zero")
    return TensorFact(name=name, relation=_order(a, b) or _line(a, b) or _values(a, b))


def _in_blocks(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether b is a with each 32 numbers of a row rounded to 127ths of their largest."""
    if a.dim() != 2 or a.shape[1] % _BLOCK:
        return False
    blocks, others = a.reshape(-1, _BLOCK), b.reshape(-1, _BLOCK)
    steps = blocks.abs().amax(dim=1, keepdim=True) / 127
    return bool(((blocks - others).abs() <= 0.6 * steps + 1e-12).all())


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).norm() <= _CLOSE * a.norm())


def _print(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What tells a tensor from others: its shape and a few of its numbers."""
    flat = tensor.reshape(-1)
    picked = flat[:: max(1, flat.numel() // _HASHED)][:_HASHED]
    return (tuple(tensor.shape), *picked.tolist())


def _order(a: torch.Tensor, b: torch.Tensor) -> str:
    """Whether b holds the rows of a in another order."""
    rows_a = {tuple(row[:_HASHED].tolist()): i for i, row in enumerate(a.reshape(len(a), -1))}
    order = [rows_a.get(tuple(row[:_HASHED].tolist())) for row in b.reshape(len(b), -1)]
    if None in order or len(set(order)) < len(order) or a.dim() < 2:
        return ""
    moved = sum(i != row for i, row in enumerate(order))
    shown = ", ".join(str(row) for row in itertools.islice(order, 6))
    return f"its rows in another order ({moved} of {len(order)} moved: {shown}, ...)"


def _line(a: torch.Tensor, b: torch.Tensor) -> str:
    """Whether b is a plus a number, or times one."""
    shift = float((b - a).mean())
    if _equal(a + shift, b):
        return f"{shift:+.4g} added"
    scale = float((a * b).sum() / (a * a).sum().clamp(min=1e-30))
    return f"times {scale:.4g}" if _equal(a * scale, b) else ""


def _values(a: torch.Tensor, b: torch.Tensor) -> str:
    apart = float((a - b).norm() / a.norm().clamp(min=1e-30))
    return f"other values, {100 * apart:.2g} % apart"
