"""What PEFT's files of all methods share: common keys, and tensors by their module."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError

if TYPE_CHECKING:
    import torch

    from lmworks.models.adapters.foreign import ForeignNames, Fused


def peft_values(
    peft_type: str, names: ForeignNames, targets: set[str], groups: Mapping[str, Fused]
) -> dict[str, Any]:
    """The keys of `adapter_config.json` that methods on modules share."""
    return {
        "peft_type": peft_type,
        "target_modules": names.shortest(targets),
        "fan_in_fan_out": any(fused.transposed for fused in groups.values()),
    }


def taken(tensors: dict[str, torch.Tensor], ending: str) -> dict[str, torch.Tensor]:
    """Take the tensors with this ending out of `tensors`; by the names of their modules."""
    found = [name for name in tensors if name.endswith(ending)]
    return {name.removesuffix(ending): tensors.pop(name) for name in found}


def as_names(paths: Iterable[str]) -> tuple[str, ...]:
    """Modules' paths as the patterns of a config that name them and no others."""
    return tuple("^" + re.escape(path) for path in paths)


def refuse_others(values: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raises: UserError for a setting that stands for something this package does not do."""
    for key, harmless in known.items():
        value = values.get(key, harmless)
        if value not in (harmless, None, [], {}, ""):
            raise UserError(f"adapters with {key} = {value!r} are not supported")
