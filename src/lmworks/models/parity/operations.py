"""Operations: what is read of a running module, and under which of our names.

Ours are read by hooks on every part with a weight, and by what blocks note in their `Context`.
Another module is read at the parts that our parts' weights come from, by the same rules that read
its checkpoint: where a rule cuts a fused matrix, its output is cut likewise.

A name is the path of our part and means its output: `layers.3.mixer.q_proj`. Beside those:
`embedding` (what enters layer 0), `layers.3.mixer.q`, `.k`, `.v` (as they meet, heads apart),
`layers.3.mixer.attended` and `layers.3.feed_forward.inner` (what the projection back is given),
`layers.3.mixer` and `.feed_forward` (what it gives), `layers.3.mixer_residual` (the stream between
the two), `layers.3` (what leaves the layer), `norm`, `logits`.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from lmworks.models.architectures.rules import Bound
from lmworks.models.config import ModelConfig
from lmworks.models.model import Model

Record = Callable[[str, torch.Tensor], None]
Convert = Callable[[torch.Tensor], torch.Tensor]

# The projection back into the residual: its input and output have names of their own.
BACK = {"o_proj": "attended", "out_proj": "inner", "down_proj": "inner"}
_LAYER = re.compile(r"((?:encoder\.)?layers\.\d+)\.")
_WHOLE = re.compile(r"(?:encoder\.)?layers\.\d+")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One operation: the module that is hooked, and which side of it is read."""

    operation: str
    module: str
    side: Literal["input", "output"] = "output"
    convert: Convert | None = None


def normal_form(value: torch.Tensor, length: int) -> torch.Tensor | None:
    """(1, T, F), or (1, T, heads, D) where heads are apart; None for anything else."""
    if value.dim() == 2 and value.shape[0] == length:
        value = value[None]
    if value.dim() == 4 and value.shape[1] != length and value.shape[2] == length:
        value = value.transpose(1, 2)
    fits = value.dim() in (3, 4) and value.shape[0] == 1 and value.shape[1] == length
    return value.detach() if fits else None


@contextlib.contextmanager
def hooked(root: nn.Module, readings: Sequence[Reading], record: Record) -> Iterator[None]:
    """The readings are recorded while it lasts; modules that are not there are passed over."""
    modules = dict(root.named_modules())
    handles = []
    for reading in readings:
        module = modules.get(reading.module)
        if module is None:
            continue
        if reading.side == "input":
            handles.append(
                module.register_forward_pre_hook(_reader(reading, record), with_kwargs=True)
            )
        else:
            handles.append(module.register_forward_hook(_writer(reading, record)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _reader(reading: Reading, record: Record) -> Callable[..., None]:
    def before(module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        given = [*inputs, *(named.get(key) for key in ("hidden_states", "x", "input"))]
        value = next((item for item in given if isinstance(item, torch.Tensor)), None)
        if value is not None:
            record(reading.operation, value)

    return before


def _writer(reading: Reading, record: Record) -> Callable[..., None]:
    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        value = output[0] if isinstance(output, tuple | list) else output
        if isinstance(value, torch.Tensor):
            record(reading.operation, reading.convert(value) if reading.convert else value)

    return after


def own_readings(model: Model) -> list[Reading]:
    """What is read of a model of ours beside what its blocks note."""
    readings = []
    for path, module in model.named_modules():
        layer = _LAYER.match(path + ".")
        if layer and layer.group(1) == path:
            if path.endswith("layers.0"):
                readings.append(_first(path, path))
            readings.append(Reading(operation=path, module=path))
        elif layer and hasattr(module, "weight") and not list(module.children()):
            part, _, name = path.rpartition(".")
            if name in BACK:
                inner = f"{part}.{BACK[name]}"
                readings.append(Reading(operation=inner, module=path, side="input"))
            else:
                readings.append(Reading(operation=path, module=path))
    return readings


def _first(layer: str, module: str) -> Reading:
    """What enters the first layer."""
    name = layer.removesuffix("layers.0") + "embedding"
    return Reading(operation=name, module=module, side="input")


def foreign_readings(
    bounds: Sequence[Bound], config: ModelConfig, root: nn.Module
) -> list[Reading]:
    """What is read of another project's module whose weights the bounds speak of."""
    readings: list[Reading] = []
    for bound in bounds:
        for number, own in enumerate(bound.own):
            if own.endswith(".weight") and len(bound.foreign) == 1:
                readings += _of_weight(bound, number, own.removesuffix(".weight"), root)
    return readings + list(_of_groups(bounds, config, root))


def _of_weight(bound: Bound, number: int, own: str, root: nn.Module) -> Iterator[Reading]:
    module = bound.foreign[0].removesuffix(".weight")
    found = dict(root.named_modules()).get(module)
    part, _, name = own.rpartition(".")
    if not _LAYER.match(own + "."):
        if name == "norm":
            yield Reading(operation=own, module=module)
    elif name in BACK:
        yield Reading(operation=f"{part}.{BACK[name]}", module=module, side="input")
        yield Reading(operation=part, module=module)
    else:
        convert = _rows(bound, number, found) if name.endswith("proj") else None
        yield Reading(operation=own, module=module, convert=convert)


def _rows(bound: Bound, number: int, module: nn.Module | None) -> Convert:
    """The output of their matrix as that of ours: its features are the matrix's rows."""
    upright = isinstance(module, nn.Linear)  # (out, in); else as GPT-2's Conv1D

    def convert(output: torch.Tensor) -> torch.Tensor:
        flat = output.reshape(-1, output.shape[-1])
        rows = bound.rule.to_own([flat.mT if upright else flat], bound.config, bound.numbers)
        return rows[number].mT.reshape(*output.shape[:-1], -1)

    return convert


def layer_modules(bounds: Sequence[Bound]) -> dict[str, str]:
    """Our layers by their modules: `layers.0` -> `model.layers.0`."""
    return {
        own: _common(names) for own, (names, _) in _owners(bounds).items() if _WHOLE.fullmatch(own)
    }


def _owners(bounds: Sequence[Bound]) -> dict[str, tuple[list[str], bool]]:
    """Our layers and their parts: the names of their weights there, and whether one leads back."""
    owners: dict[str, tuple[list[str], bool]] = {}
    for bound in bounds:
        for own in bound.own:
            layer = _LAYER.match(own)
            if layer is None:
                continue
            part = own[layer.end() :].split(".")[0]
            back = own.rpartition(".")[0].rpartition(".")[2] in BACK
            for owner in (layer.group(1), f"{layer.group(1)}.{part}"):
                names, before = owners.get(owner, ([], False))
                owners[owner] = ([*names, *bound.foreign], back or before)
    return owners


def _of_groups(bounds: Sequence[Bound], config: ModelConfig, root: nn.Module) -> Iterator[Reading]:
    """Whole layers and whole blocks: the module that all of their weights lie under."""
    owners = _owners(bounds)
    modules = dict(root.named_modules())
    norms = {b.own[0].rpartition(".")[0]: b.foreign[0].rpartition(".")[0] for b in bounds}
    for own, module in layer_modules(bounds).items():
        if own.endswith("layers.0"):
            norm = norms.get(own.replace("layers.0", "embed_norm"), "")
            # RWKV norms the embedding inside its first layer.
            inside = norm.startswith(module + ".")
            name = own.replace("layers.0", "embedding")
            yield Reading(operation=name, module=norm) if inside else _first(own, module)
        yield Reading(operation=own, module=module)
        yield from _between(own, {name: names for name, (names, _) in owners.items()}, config)
    for own, (names, back) in owners.items():
        if own.endswith("norm") or back or _WHOLE.fullmatch(own):
            continue
        module = _common(names)
        if module not in modules:
            module = _unnamed(own, owners, modules)
        yield Reading(operation=own, module=module)


def _unnamed(
    own: str, owners: dict[str, tuple[list[str], bool]], modules: dict[str, nn.Module]
) -> str:
    """The one child of the layer that no rule names, for a block that is called otherwise there.

    transformers stores some experts under other names than those of its modules.
    """
    layer = own.rpartition(".")[0]
    path = _common(owners[layer][0]) + "."
    named = {name.removeprefix(path).split(".")[0] for name in owners[layer][0]}
    children = {name for name in modules if name.startswith(path) and "." not in name[len(path) :]}
    left = [name for name in sorted(children) if name.removeprefix(path) not in named]
    return left[0] if len(left) == 1 else ""


def _common(names: Sequence[str]) -> str:
    """The path that all names lie under: `a.b` for `a.b.c.weight` and `a.b.d.weight`."""
    steps = zip(*(name.split(".")[:-1] for name in names))
    alike = itertools.takewhile(lambda step: len(set(step)) == 1, steps)
    return ".".join(step[0] for step in alike)


def _between(layer: str, owners: dict[str, list[str]], config: ModelConfig) -> Iterator[Reading]:
    """The stream after the mixer is what the next part, or its norm, is given."""
    if layer.startswith("encoder.") and config.encoder is not None:
        config = config.encoder
    placement = config.layers[int(layer.rpartition(".")[2])].placement
    parts = [p for p in ("mixer", "cross_attention", "feed_forward") if f"{layer}.{p}" in owners]
    for this, following in itertools.pairwise(parts):
        if placement in ("pre", "sandwich"):
            names = owners.get(f"{layer}.{following}_norm", [""])
            module = names[0].rpartition(".")[0]
            yield Reading(operation=f"{layer}.{this}_residual", module=module, side="input")
        elif placement == "output":
            module = _common(owners[f"{layer}.{following}"])
            yield Reading(operation=f"{layer}.{this}_residual", module=module, side="input")
