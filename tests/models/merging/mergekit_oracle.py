"""mergekit's methods on tensors in memory, as the answers that ours are held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

pytest.importorskip("mergekit")

from mergekit import merge_methods
from mergekit.merge_methods import base as mk


def theirs(
    name: str,
    tensors: Sequence[torch.Tensor],
    base: torch.Tensor | None = None,
    *,
    each: Mapping[str, Sequence[Any]] | None = None,
    shared: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> torch.Tensor:
    """Arguments as those of `merge_tensors`."""
    entries = [mk.TensorEntry(id=str(i), tensor=t) for i, t in enumerate(tensors)]
    if base is not None:
        entries.insert(0, mk.TensorEntry(id="base", tensor=base, is_base=True))
    values: dict[str, Any] = dict(shared or {})
    for key, row in (each or {}).items():
        values[key] = mk.PerInputValues([(str(i), v) for i, v in enumerate(row)])
    torch.manual_seed(seed)
    group = mk.TensorGroup(entries=tuple(entries))
    merged: torch.Tensor = merge_methods.get(name)([group], parameters=values)[0]
    return merged
