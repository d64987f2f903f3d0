"""What ports get wrong about weights: transposed, swapped, in another order, left out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from lmworks.models.config import AttentionConfig
from lmworks.models.parity.changes import part_of
from lmworks.models.parity.trial import Change, Stage, State


def weight_changes(stage: Stage) -> Iterator[Change]:
    """Those of every tensor of the stage."""
    names = [n for n in stage.state if n.startswith("layers.") == stage.name.startswith("layers.")]
    for name in names:
        tensor = stage.state[name]
        if tensor.dim() == 2 and tensor.shape[0] == tensor.shape[1]:
            yield _change(name, "transposed weight", "is transposed", "transpose it", _transpose)
        if name.endswith("bias"):
            says, fix = "is left out", "add it"
            yield _change(name, "bias missing", says, fix, torch.zeros_like)
        if name.endswith("weight") and tensor.dim() == 1:
            yield _change(name, "norm weight +1", "has 1 added", "do not add 1", _plus_one)
            yield _change(name, "norm weight -1", "has 1 taken away", "do not", _minus_one)
    yield from _swaps(stage, names)
    yield from _row_orders(stage)
    yield from _roundings(stage)


def _transpose(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.mT.contiguous()


def _plus_one(tensor: torch.Tensor) -> torch.Tensor:
    return tensor + 1


def _minus_one(tensor: torch.Tensor) -> torch.Tensor:
    return tensor - 1


def _change(name: str, cause: str, says: str, fix: str, change: Any) -> Change:
    return Change(
        cause=cause,
        says=f"{part_of(name)} {says}",
        fix=f"{fix} when {part_of(name)} is read",
        state=lambda state: state | {name: change(state[name])},
    )


def _swaps(stage: Stage, names: list[str]) -> Iterator[Change]:
    """Each two parts of one shape with their weights (and biases) changed about."""
    parts: dict[str, dict[str, torch.Size]] = {}
    for name in names:
        path, _, kind = name.rpartition(".")
        parts.setdefault(path, {})[kind] = stage.state[name].shape
    for one, other in itertools.combinations(parts, 2):
        if parts[one] == parts[other]:
            first, second = part_of(one), part_of(other)
            yield Change(
                cause=f"{first.rpartition('.')[2]} and {second.rpartition('.')[2]} swapped",
                says=f"takes {first} for {second} and the other way about",
                fix=f"change {first} and {second} about (the order of a fused matrix?)",
                state=_swapping(one, other, tuple(parts[one])),
                expense=1,
            )


def _swapping(one: str, other: str, kinds: tuple[str, ...]) -> Any:
    def change(state: State) -> State:
        swapped = dict(state)
        for kind in kinds:
            swapped[f"{one}.{kind}"] = state[f"{other}.{kind}"]
            swapped[f"{other}.{kind}"] = state[f"{one}.{kind}"]
        return swapped

    return change


def _row_orders(stage: Stage) -> Iterator[Change]:
    """The rows of q and k in the order of the other rotary layout; heads in another order."""
    mixer = stage.config.layers[0].mixer
    if not stage.name.startswith("layers.") or not isinstance(mixer, AttentionConfig):
        return
    size, heads, groups = mixer.head_dim, mixer.num_attention_heads, mixer.num_key_value_heads
    counts = {"q": heads, "k": groups, "v": groups}
    halves = torch.arange(size).view(-1, 2).mT.reshape(-1) if size % 2 == 0 else None
    if halves is not None:
        for order, says in ((halves, "interleaved"), (halves.argsort(), "in halves")):
            yield Change(
                cause="rope rows interleaved",
                says=f"holds the rows of q and k {says} (the other rotary layout)",
                fix="permute the rows of q_proj and k_proj of each head when they are read",
                state=_ordering({"q": _by_head(order, heads), "k": _by_head(order, groups)}),
            )
    if heads != groups:
        tiled = torch.arange(heads).view(groups, -1).mT.reshape(-1)
        for order, says in ((tiled, "tiled"), (tiled.argsort(), "untiled")):
            yield Change(
                cause="query head order",
                says=f"takes the query heads in another order ({says}) over the key-value heads",
                fix="repeat each key-value head for its neighbours (repeat_interleave)",
                state=_ordering({"q": _heads(order, size)}),
            )
    for letter, count in counts.items():
        if count > 1:
            order = _heads(torch.arange(count).flip(0), size)
            yield Change(
                cause="head order",
                says=f"holds the heads of {letter}_proj in the reverse order",
                fix=f"keep the order of the heads of {letter}_proj",
                state=_ordering({letter: order}),
                expense=1,
            )


def _by_head(order: torch.Tensor, count: int) -> torch.Tensor:
    return (torch.arange(count)[:, None] * len(order) + order).reshape(-1)


def _heads(order: torch.Tensor, size: int) -> torch.Tensor:
    return (order[:, None] * size + torch.arange(size)).reshape(-1)


def _ordering(orders: dict[str, torch.Tensor]) -> Any:
    def change(state: State) -> State:
        changed = dict(state)
        for letter, order in orders.items():
            for kind in ("weight", "bias"):
                name = f"layers.0.mixer.{letter}_proj.{kind}"
                if name in state:
                    changed[name] = state[name][order]
        return changed

    return change


def _roundings(stage: Stage) -> Iterator[Change]:
    for dtype in (torch.bfloat16, torch.float16):
        word = str(dtype).removeprefix("torch.")
        yield Change(
            cause=f"weights rounded to {word}",
            says=f"holds weights that are rounded to {word}",
            fix=f"nothing, if {word} is meant; else load float32 weights",
            state=lambda state, dtype=dtype: {k: v.to(dtype).float() for k, v in state.items()},  # type: ignore[misc]
            expense=2,
        )
