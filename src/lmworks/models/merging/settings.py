"""What a parameter of a recipe is for one tensor: one value, a gradient over layers, or by name.

    t: 0.3                                         everywhere
    t: [0, 0.5, 1]                                 along the layers, between neighbours in a line
    t: [{filter: mlp, value: 0.2}, {value: 0.5}]   the first whose filter is part of the name

Source: mergekit's README, "Parameter specification".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lmworks.core.errors import UserError
from lmworks.models.merging.base import Parameter, checked

Setting = Any  # a value, a list of values, {filter, value}, or a list of these


def setting_for(
    key: str,
    parameter: Parameter,
    levels: Iterable[Mapping[str, Setting]],
    *,
    method: str,
    tensor: str,
    depth: float,
) -> Any:
    """What the first of `levels` says that speaks of this tensor; None if none does.

    Args:
        levels: settings by name, the nearest first.
        depth: where the tensor's layer stands in its slice, 0 the first and 1 the last.
    Raises: UserError for a value that the parameter can't be.
    """
    for level in levels:
        if key in level:
            found = _value(level[key], parameter, key, method, tensor, depth)
            if found is not None:
                return found
    return None


def _value(
    setting: Setting, parameter: Parameter, key: str, method: str, tensor: str, depth: float
) -> Any:
    if setting is None:
        return None
    if isinstance(setting, Mapping):
        setting = [setting]
    if not isinstance(setting, list | tuple):
        return checked(parameter, method, key, setting)
    if not setting:
        raise UserError(f"{key} of {method} is an empty list: give a value")
    if any(isinstance(one, Mapping) for one in setting):
        return _by_name(setting, parameter, key, method, tensor, depth)
    values = [checked(parameter, method, key, one) for one in setting]
    place = depth * (len(values) - 1)
    if parameter.kind is bool:
        return values[int(place)]
    first = int(place)
    share = place - first
    after = values[min(len(values) - 1, first + 1)]
    return checked(parameter, method, key, (1 - share) * values[first] + share * after)


def _by_name(
    setting: Iterable[Any], parameter: Parameter, key: str, method: str, tensor: str, depth: float
) -> Any:
    for one in setting:
        if not isinstance(one, Mapping) or not {"value"} <= one.keys() <= {"filter", "value"}:
            raise UserError(f"{key} of {method}: {one!r} is not {{filter: ..., value: ...}}")
        wanted = one.get("filter")
        if wanted is None or wanted == "*" or str(wanted) in tensor:
            return _value(one["value"], parameter, key, method, tensor, depth)
    return None
