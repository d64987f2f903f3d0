"""LoRA and DoRA as PEFT's files: one pair of matrices per module of Hugging Face's model.

Where theirs is one matrix for several of ours (queries, keys and values of GPT-2 or Phi-3), what is
learned apart here is written as one update of all their ranks together, B block by block, which is
the same sum; `rank_pattern` and `alpha_pattern` tell it. Read back, each of ours gets the A that
they share, and its rows of B.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from lmworks.core.errors import UserError
from lmworks.models.adapters import frozen
from lmworks.models.adapters.base import Adapter
from lmworks.models.adapters.dora import DoRALinear
from lmworks.models.adapters.foreign import ForeignNames, Fused, grouped
from lmworks.models.adapters.lora import LoRAConfig, LoRAEmbedding, LoRALinear
from lmworks.models.adapters.peft_values import as_names, peft_values, refuse_others, taken
from lmworks.models.adapters.targets import put
from lmworks.models.adapters.whole_modules import WholeModule, put_whole_modules

if TYPE_CHECKING:
    from lmworks.models.model import Model

_A, _B, _MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
_TABLE_A, _TABLE_B = ".lora_embedding_A", ".lora_embedding_B"
# What PEFT can do besides, and the value that stands for "not": read here, it would be left out.
_NOT_KNOWN = {
    "bias": "none",
    "lora_bias": False,
    "layers_pattern": None,
    "megatron_config": None,
    "layer_replication": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "alora_invocation_tokens": None,
}


def write(
    config: LoRAConfig, adapter: Adapter, names: ForeignNames
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """See `AdapterConfig.to_files`."""
    parts: dict[str, Any] = adapter.parts
    updates = {p: x for p, x in parts.items() if isinstance(x, LoRALinear | LoRAEmbedding)}
    groups = grouped(names, updates)
    tensors: dict[str, torch.Tensor] = {}
    widths: dict[str, tuple[int, float]] = {}
    for name, fused in groups.items():
        first = next(iter(updates[path] for path in fused.own if path in updates))
        if isinstance(first, LoRAEmbedding):
            tensors[name + _TABLE_A], tensors[name + _TABLE_B] = first.lora_A, first.lora_B
            widths[name] = first.rank, first.scale
        else:
            widths[name] = _write_linear(tensors, fused, updates, adapter)
    whole = _write_whole(tensors, parts, names)
    patterns = _patterns(config, names, widths)
    values = peft_values("LORA", names, set(groups), groups) | {
        "r": config.rank,
        "lora_alpha": _whole(config.alpha),
        "lora_dropout": config.dropout,
        "use_dora": config.kind == "dora",
        "use_rslora": config.use_rslora,
        "bias": "none",
        "init_lora_weights": True,
        "modules_to_save": sorted(whole) or None,  # PEFT takes any ending, so whole names
        **patterns,
    }
    return values, tensors


def _write_linear(
    tensors: dict[str, torch.Tensor], fused: Fused, updates: Mapping[str, Any], adapter: Adapter
) -> tuple[int, float]:
    """Put one module's matrices into `tensors`; its rank and scale."""
    held = [updates[path] for path in fused.own if path in updates]
    scale = held[0].scale
    shared = len(held) == len(fused.own) and all(
        torch.equal(part.lora_A, held[0].lora_A) for part in held
    )
    width = held[0].rank if shared else sum(part.rank for part in held)
    b_parts, at = [], 0
    for path, rows in zip(fused.own, fused.rows, strict=True):
        block = torch.zeros(rows, width)
        if (part := updates.get(path)) is not None:
            block[:, at : at + part.rank] = part.lora_B
            at += 0 if shared else part.rank
        b_parts.append(block)
    a_parts = held[:1] if shared else held
    tensors[fused.name + _A] = torch.cat([part.lora_A for part in a_parts])
    tensors[fused.name + _B] = fused.rows_to_foreign(b_parts)
    if isinstance(held[0], DoRALinear):
        lengths = [_lengths(path, updates, adapter)[:, None] for path in fused.own]
        tensors[fused.name + _MAGNITUDE] = fused.rows_to_foreign(lengths)[:, 0]
    return width, scale


def _lengths(path: str, updates: Mapping[str, Any], adapter: Adapter) -> torch.Tensor:
    """DoRA's magnitudes; of a matrix that it was not put on, those that change nothing."""
    if path in updates:
        found: torch.Tensor = updates[path].magnitude
        return found
    return frozen.weight(adapter.model.get_submodule(path)).norm(dim=1)


def _write_whole(
    tensors: dict[str, torch.Tensor], parts: Mapping[str, Any], names: ForeignNames
) -> set[str]:
    whole = set()
    for path, part in parts.items():
        if isinstance(part, WholeModule):
            fused = names.fused(path)
            if len(fused.own) > 1:
                raise UserError(f"{fused.name} holds {path} and others: it can't be written whole")
            for kind, tensor in part.copy.named_parameters():
                theirs = fused.rows_to_foreign([tensor]) if kind == "weight" else tensor
                tensors[f"{fused.name}.{kind}"] = theirs.mT if _turned(fused, kind) else theirs
            whole.add(fused.name)
    return whole


def _turned(fused: Fused, kind: str) -> bool:
    return kind == "weight" and fused.transposed


def _patterns(
    config: LoRAConfig, names: ForeignNames, widths: Mapping[str, tuple[int, float]]
) -> dict[str, Any]:
    """The ranks and alphas of modules that differ from the config's, by their names."""
    ranks, alphas = {}, {}
    for name, (rank, scale) in widths.items():
        alpha = scale * (math.sqrt(rank) if config.use_rslora else rank)
        if rank != config.rank:
            ranks[_exactly(name)] = rank
        if not math.isclose(alpha, config.alpha):
            alphas[_exactly(name)] = _whole(alpha)
    return {"rank_pattern": ranks, "alpha_pattern": alphas}


def _exactly(name: str) -> str:
    return "^" + re.escape(name)


def _whole(number: float) -> float:
    """2.0 as 2, since PEFT calls alpha an int."""
    return int(number) if float(number).is_integer() else number


def read(
    kind: type[LoRAConfig],
    model: Model,
    values: Mapping[str, Any],
    tensors: dict[str, torch.Tensor],
    names: ForeignNames,
) -> Adapter:
    """See `AdapterConfig.from_files`."""
    refuse_others(values, _NOT_KNOWN)
    theirs = names.by_foreign()
    pairs = taken(tensors, _A), taken(tensors, _B)
    tables = taken(tensors, _TABLE_A), taken(tensors, _TABLE_B)
    lengths = taken(tensors, _MAGNITUDE)
    found: dict[str, dict[str, torch.Tensor]] = {}
    ranks: dict[str, tuple[int, float]] = {}
    config = kind(
        rank=int(values.get("r", 8)),
        alpha=float(values.get("lora_alpha", 8)),
        dropout=float(values.get("lora_dropout", 0.0)),
        use_rslora=bool(values.get("use_rslora", False)),
    )
    for first, second in (pairs, tables):
        for name in sorted(first.keys() | second.keys()):
            fused = theirs.get(name) or names.unknown(name)
            if name not in first or name not in second:
                raise UserError(f"the adapter holds only one of the two matrices of {name}")
            is_table = first is tables[0]
            split = _split(fused, first[name], second[name], lengths.get(name), names, is_table)
            scale = _scale(values, config, name, len(first[name]))
            for path, state in split.items():
                found[path], ranks[path] = state, (len(first[name]), scale)
    if not found:
        raise UserError("the adapter holds no LoRA matrices")
    _check_tables(model, tensors, theirs)
    whole = sorted({path for name in tensors for path in _whole_path(name, theirs)})
    config = dataclasses.replace(config, targets=as_names(found), modules_to_save=as_names(whole))
    parts: dict[str, Any] = {}
    generator = torch.Generator()
    for path, (rank, scale) in ranks.items():
        part: Any = config.part(path, model.get_submodule(path), rank, scale, generator)
        for name, value in found[path].items():
            names.fill(getattr(part, name), value, f"{path}.{name}")
        parts[path] = part
    for path, part in parts.items():
        put(model, path, part)
    parts |= put_whole_modules(model, config.modules_to_save)
    for path in whole:
        _fill_whole(parts[path], path, tensors, names)
    return Adapter(model, config, parts)


def _check_tables(
    model: Model, tensors: dict[str, torch.Tensor], theirs: Mapping[str, Fused]
) -> None:
    """Take the base's own tables, which PEFT writes beside an adapter on them, out of `tensors`.

    Raises: UserError where they are not those of `model`.
    """
    for name, table in taken(tensors, ".base_layer.weight").items():
        fused = theirs.get(name)
        own = frozen.weight(model.get_submodule(fused.own[0])) if fused else None
        if own is None or own.shape != table.shape or not torch.equal(own, table):
            raise UserError(
                f"the adapter brings a table {name} {tuple(table.shape)} of its own, which is not "
                "this model's: it was made for another base"
            )


def _split(
    fused: Fused,
    a: torch.Tensor,
    b: torch.Tensor,
    lengths: torch.Tensor | None,
    names: ForeignNames,
    is_table: bool,
) -> dict[str, dict[str, torch.Tensor]]:
    """What each of our modules gets of one of theirs."""
    if is_table:
        return {fused.own[0]: {"lora_A": a, "lora_B": b}}
    names.check_rows(fused, b)
    blocks = fused.rows_to_own(b)
    states: dict[str, dict[str, torch.Tensor]] = {
        path: {"lora_A": a, "lora_B": block} for path, block in zip(fused.own, blocks, strict=True)
    }
    if lengths is not None:
        names.check_rows(fused, lengths[:, None])
        for path, part in zip(fused.own, fused.rows_to_own(lengths[:, None]), strict=True):
            states[path]["magnitude"] = part[:, 0]
    return states


def _scale(values: Mapping[str, Any], config: LoRAConfig, name: str, rank: int) -> float:
    alpha = config.alpha
    for pattern, other in dict(values.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            alpha = float(other)
            break
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)


def _whole_path(name: str, theirs: Mapping[str, Fused]) -> tuple[str, ...]:
    fused = theirs.get(name.rpartition(".")[0])
    return fused.own if fused is not None and len(fused.own) == 1 else ()


def _fill_whole(
    part: Any, path: str, tensors: dict[str, torch.Tensor], names: ForeignNames
) -> None:
    fused = names.fused(path)
    for kind, parameter in part.copy.named_parameters():
        theirs = tensors.pop(f"{fused.name}.{kind}", None)
        if theirs is not None and kind == "weight":
            theirs = fused.rows_to_own(theirs.mT if fused.transposed else theirs)[0]
        names.fill(parameter, theirs, f"{path}.{kind}")
