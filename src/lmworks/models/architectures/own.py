"""Our own `config.json`, for models that no other project's config can tell of.

Names are ours as they are; the config is written as nested objects, each with its `kind`.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from lmworks.core.errors import UserError, unknown_name
from lmworks.models import config as configs
from lmworks.models.architectures.base import Architecture, Layout
from lmworks.models.architectures.rules import Bound, Rule, same
from lmworks.models.config import AnyConfig, BlockConfig, ModelConfig, TwoTowerConfig


def config_from_hf(values: Mapping[str, Any]) -> AnyConfig:
    """Read what `config_to_hf` wrote. Raises: UserError for what is missing or unknown."""
    model = values.get("model")
    if not isinstance(model, Mapping):
        raise UserError("the key 'model' is missing or no object")
    if model.get("kind") == TwoTowerConfig.kind:
        return _read(TwoTowerConfig, model, "model")  # type: ignore[no-any-return]
    layers = model.get("layers")
    if not isinstance(layers, list):
        raise UserError("model: layers must be a list")
    expanded = [layer for layer in layers for _ in range(_times(layer))]
    read: ModelConfig = _read(ModelConfig, {**model, "layers": expanded}, "model")
    return read


def _times(layer: Any) -> int:
    times = layer.get("times", 1) if isinstance(layer, Mapping) else 1
    if not isinstance(times, int) or isinstance(times, bool) or not 1 <= times <= 1024:
        raise UserError(f"model: times must be a whole number from 1 to 1024, not {times!r}")
    return times


def config_to_hf(config: AnyConfig) -> dict[str, Any]:
    """Nested objects; layers in a row that are alike are told once, with `times`."""
    model = _write(config)
    if isinstance(config, TwoTowerConfig):
        return {"model_type": "lmworks", "model": model}
    layers: list[dict[str, Any]] = []
    for layer in model["layers"]:
        if layers and {**layers[-1], "times": 1} == {**layer, "times": 1}:
            layers[-1]["times"] += 1
        else:
            layers.append({**layer, "times": 1})
    return {
        "model_type": "lmworks",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "max_position_embeddings": config.max_position_embeddings,
        "model": {**model, "layers": layers},
    }


def _write(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = {"kind": value.kind} if hasattr(value, "kind") else {}
        return kind | {
            field.name: _write(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    return [_write(item) for item in value] if isinstance(value, tuple) else value


def _read(annotation: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type. Raises: UserError naming `where` it does not fit."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _read(_choose(arguments, value, where), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{where} must be a list, not {value!r}")
        return tuple(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if annotation is BlockConfig:
        annotation = _block(value, where)
    if dataclasses.is_dataclass(annotation):
        return _read_fields(typing.cast(type, annotation), value, where)
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not annotation:
        raise UserError(f"{where} must be of type {annotation.__name__}, not {value!r}")
    return value


def _read_fields(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise UserError(f"{where} must be an object, not {value!r}")
    fields = {field.name for field in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    given = {key: item for key, item in value.items() if key not in ("kind", "times")}
    for key in given:
        if key not in fields:
            raise unknown_name(f"field of {where}", key, fields)
    read = {key: _read(hints[key], item, f"{where}.{key}") for key, item in given.items()}
    try:
        return kind(**read)
    except TypeError as error:  # a field without a default is missing
        raise UserError(f"{where}: {error}") from error


def _choose(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    """The type of the union that `value` is of, by its kind if it has one."""
    types_ = [argument for argument in arguments if argument is not type(None)]
    if len(types_) == 1 or not isinstance(value, Mapping):
        return types_[0]
    kinds = {argument.kind: argument for argument in types_}
    kind = value.get("kind")
    if kind not in kinds:
        raise unknown_name(f"kind of {where}", str(kind), kinds)
    return kinds[kind]


def _block(value: Any, where: str) -> type:
    kinds = {
        member.kind: member
        for member in vars(configs).values()
        if isinstance(member, type)
        and issubclass(member, BlockConfig)
        and member is not BlockConfig
    }
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if kind not in kinds:
        raise unknown_name(f"kind of {where}", str(kind), kinds)
    return kinds[kind]


class _Unchanged(Layout):
    """Every parameter under its own name."""

    def bind(self, parameters: Mapping[str, Any], config: AnyConfig) -> list[Bound]:
        """See `Layout`."""
        return [
            Bound(rule=_rule(name), config=config, numbers=(), own=(name,), foreign=(name,))
            for name in parameters
        ]


def _rule(name: str) -> Rule:
    return same(name, name)


OWN = Architecture(
    name="lmworks",
    hf=_Unchanged(rules=(), read_config=config_from_hf, write_config=config_to_hf),
)
