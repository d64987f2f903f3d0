"""Configs: frozen keyword-only dataclasses that describe a stage once.

The command line, recipes, lineage and pages are all made from the same class: a field carries
its help text and its role, its annotation carries its type. Checking values is pydantic's job;
naming the nearest key for a misspelt one is ours.
"""

from __future__ import annotations

import copy
import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import yaml

from lmworks.core.errors import UserError, nearest

C = TypeVar("C")

# What a field means to the stage mechanism.
VALUE = "value"  # part of what the result depends on
REFERENCE = "reference"  # names an input; the content it points to counts, not its name
COSMETIC = "cosmetic"  # changes speed or looks, never the result


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    role: str = VALUE,
    flag: bool = True,
    repeat: str = "",
) -> Any:
    """A config field. `flag=False` keeps it off the command line (`--set` still reaches it).

    `repeat`: for a list of texts, a flag that gives one text as it is and may be repeated.
    """
    metadata = {"help": help, "role": role, "flag": flag, "repeat": repeat}
    if isinstance(default, list | dict | set) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """One field, with its annotation resolved."""

    name: str
    type: Any
    default: Any
    help: str
    role: str
    flag: bool
    repeat: str

    @property
    def required(self) -> bool:
        return self.default is dataclasses.MISSING

    @property
    def nested(self) -> bool:
        return dataclasses.is_dataclass(self.type)


def options(cls: type) -> Iterator[Option]:
    """The fields of a config class, in order."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        yield Option(
            name=field.name,
            type=hints[field.name],
            default=default,
            help=field.metadata.get("help", ""),
            role=field.metadata.get("role", VALUE),
            flag=field.metadata.get("flag", True),
            repeat=field.metadata.get("repeat", ""),
        )


def to_mapping(config: Any) -> dict[str, Any]:
    """A config as plain JSON values."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(config))
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def from_mapping(cls: type[C], values: Mapping[str, Any], *, where: str = "config") -> C:
    """Build a config from plain values.

    A nested mapping states what differs from the field's own default.

    Args:
        where: what to call the source in an error ("recipe.yaml, step pretrain").
    Raises: UserError for an unknown key (nearest named), a missing key, or a value of a wrong type.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: must hold settings as `key: value`, not {str(values)[:80]!r}")
    _check_keys(cls, values, where)
    import pydantic

    filled = _of_their_kinds(cls, _over_defaults(cls, values), where)
    try:
        return pydantic.TypeAdapter(cls).validate_python(filled)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "value"
        if first["type"] in ("missing", "missing_argument"):
            raise UserError(f"{where}: {key!r} is missing and has no default") from None
        got = repr(first.get("input"))[:80]
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{where}: {key} = {got} is not valid: {message}") from None


def _over_defaults(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, nested ones laid over the default of their field, which may not be its class's."""
    known = {item.name: item for item in options(cls)}
    filled = dict(values)
    for key, value in values.items():
        item = known[key]
        if item.nested and isinstance(value, Mapping) and not item.required:
            filled[key] = lay_over(dataclasses.asdict(item.default), value)
    return filled


def base_of_kinds(annotation: Any) -> Any:
    """The class in `C` or `C | None` whose subclasses are told apart by their `kind`, or None.

    Such a class has `of_kind(kind) -> type`. In a mapping, `kind` says which it is; a word alone is
    that kind with its defaults.
    """
    found = [a for a in (annotation, *typing.get_args(annotation)) if hasattr(a, "of_kind")]
    return found[0] if found else None


def _of_their_kinds(cls: type, values: dict[str, Any], where: str) -> dict[str, Any]:
    """`values`, those of fields with kinds made into the configs that they name."""
    made = dict(values)
    for item in options(cls):
        base, value = base_of_kinds(item.type), values.get(item.name)
        if base is None or not isinstance(value, str | Mapping):
            continue
        settings = {"kind": value} if isinstance(value, str) else dict(value)
        kind = settings.pop("kind", "")
        if not isinstance(kind, str) or not kind:
            raise UserError(f"{where}: {item.name} needs a kind, for example {item.name}.kind=lora")
        made[item.name] = from_mapping(
            base.of_kind(kind), settings, where=f"{where}: {item.name} ({kind})"
        )
    return made


def lay_over(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `base` with `values` in it, level by level."""
    merged = dict(base)
    for key, value in values.items():
        under = merged.get(key)
        if isinstance(under, Mapping) and isinstance(value, Mapping):
            value = lay_over(under, value)
        merged[key] = value
    return merged


def _check_keys(cls: type, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
    known = {item.name: item for item in options(cls)}
    for key, value in values.items():
        if key not in known:
            close = nearest(str(key), known)
            hint = f"did you mean {prefix + close!r}? " if close else ""
            names = ", ".join(prefix + name for name in known)
            raise UserError(f"{where}: unknown key {prefix + str(key)!r}: {hint}known: {names}")
        inner = _config_class(known[key].type)
        if base_of_kinds(known[key].type) is not None:
            continue  # checked against their own kind
        entries = {"": value} if isinstance(value, Mapping) else {}
        if isinstance(value, list | tuple):
            entries = {f".{i}": v for i, v in enumerate(value) if isinstance(v, Mapping)}
        for part, entry in entries.items():
            if inner is not None:
                _check_keys(inner, entry, where, f"{prefix}{key}{part}.")


def _config_class(annotation: Any) -> type | None:
    """The config class in `C`, `C | None` or `list[C]`; pydantic would pass over its odd keys."""
    if dataclasses.is_dataclass(annotation):
        return typing.cast(type, annotation)
    found = [_config_class(a) for a in typing.get_args(annotation) if a is not type(None)]
    return found[0] if len(found) == 1 else None


def parse_set(text: str) -> tuple[list[str], Any]:
    """`a.b=value` as (path, value); the value is read as YAML, so numbers and lists work."""
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise UserError(f"--set {text!r}: write it as key=value, for example --set seed=1")
    try:
        return path.strip().split("."), yaml.safe_load(value)
    # A date or number that looks right and is not, such as 2024-99-99, is a plain ValueError.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--set {text[:80]!r}: the value is not valid YAML") from error


def merge(base: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    """A copy of `base` with `value` at the nested `path`."""
    merged = dict(base)
    head, *rest = path
    if rest:
        inner = merged.get(head)
        merged[head] = merge(inner if isinstance(inner, Mapping) else {}, rest, value)
    else:
        merged[head] = value
    return merged


def type_name(annotation: Any) -> str:
    """A short word for an annotation, for help texts: `int`, `a|b`, `float or none`."""
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Literal:
        return "|".join(str(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("none" if a is type(None) else type_name(a) for a in arguments)
    if origin in (list, tuple):
        return f"list of {type_name(arguments[0])}"
    return getattr(annotation, "__name__", str(annotation))
