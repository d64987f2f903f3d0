"""What is to be merged: mergekit's YAML, as it is, in the plain form that `plan.py` works from.

`models:` becomes one slice over all layers; strings stand for sources without parameters; a base
that is not among the models joins them. Keys that mean nothing here are refused by name and never
passed over: a setting that nothing reads would be a merge other than the one that was asked for.

Read: merge_method, models, slices, modules (of one module), base_model, parameters, dtype,
out_dtype, tokenizer_source, tokenizer.source, chat_template. Source: mergekit's README and
docs/merge_methods.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError, unknown_name
from lmworks.core.tables import load_target
from lmworks.models.merging.base import METHODS, Method, method

_SOURCE_KEYS = ("model", "layer_range", "parameters")
_SLICE_KEYS = ("sources", "base_model", "parameters", "residual_weight")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A model, the layers that are taken of it (all, if None), and its own parameters."""

    model: str
    layers: tuple[int, int] | None = None
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
    """Layers of the result, one after the other, and what each is made of."""

    sources: tuple[Source, ...]
    base: str
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole merge.

    Attributes:
        method, how: its name and what it stands for.
        base: reference of the base model, or "".
        parameters: what holds where no slice or source says otherwise.
        unread: parameters that are known, but that this method does not read.
    """

    method: str
    how: Method
    slices: tuple[Slice, ...]
    base: str
    parameters: Mapping[str, Any]
    unread: tuple[str, ...] = ()

    def models(self) -> list[str]:
        """All references, each once, in the order in which they are named."""
        named = [source.model for part in self.slices for source in part.sources]
        return list(dict.fromkeys([*named, *([self.base] if self.base else [])]))


def read_recipe(
    merge_method: str,
    *,
    models: Sequence[Any] = (),
    slices: Sequence[Any] = (),
    modules: Mapping[str, Any] | None = None,
    base_model: Any = "",
    parameters: Mapping[str, Any] | None = None,
) -> Recipe:
    """Bring the keys of a YAML file into one form.

    Raises: UserError for what is missing, twice there, unknown, or can't be merged here.
    """
    how = method(merge_method)
    parameters = parameters or {}
    if len(modules or {}) > 1:
        raise UserError(
            f"modules: {', '.join(modules or {})}: only models of one module can be merged so; "
            "give models: or slices:"
        )
    for name, inner in (modules or {}).items():
        _known(inner, ("models", "slices", "parameters"), f"modules.{name}")
        if models or slices:
            raise UserError("give one of models, slices and modules, not several")
        models, slices = inner.get("models") or (), inner.get("slices") or ()
        parameters = {**parameters, **(inner.get("parameters") or {})}
    if bool(models) == bool(slices):
        raise UserError("a merge needs either models: or slices:, a list of what goes in")
    base = reference(base_model, "base_model") if base_model else ""
    if models:
        sources = [_source(one, f"models[{i}]") for i, one in enumerate(models)]
        if base and how.base != "unused" and base not in [source.model for source in sources]:
            sources.append(Source(model=base))
        made = [Slice(sources=tuple(sources), base=base)]
    else:
        made = [_slice(one, f"slices[{i}]", base) for i, one in enumerate(slices)]
    for index, part in enumerate(made):
        _check_inputs(part, merge_method, how, "models" if models else f"slices[{index}]")
    unread = _check_parameters(made, parameters, merge_method, how)
    return Recipe(
        method=merge_method,
        how=how,
        slices=tuple(made),
        base=base,
        parameters=parameters,
        unread=unread,
    )


def reference(value: Any, where: str) -> str:
    """The reference that a `model:` holds: a text, or mergekit's {model: {path: ...}}.

    Raises: UserError for an adapter behind a "+", which must be folded in first.
    """
    if isinstance(value, Mapping):
        inner = value.get("model", value)
        if value.get("lora") or not isinstance(inner, Mapping) or "path" not in inner:
            raise UserError(f"{where}: {dict(value)} names no model: give a folder or reference")
        value = inner["path"]
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: {value!r} names no model: give a folder or reference")
    model, plus, adapter = value.partition("+")
    if plus and adapter and not Path(value).exists():
        raise UserError(
            f"{where}: {value} is a model with an adapter on it: fold it in with `lmworks model "
            f"merge-adapter --base {model} --adapter {adapter}`, and name what that makes"
        )
    return value


def _known(value: Any, keys: Sequence[str], where: str) -> None:
    if not isinstance(value, Mapping):
        raise UserError(f"{where} must hold settings as `key: value`, not {str(value)[:80]!r}")
    for key in value:
        if key not in keys:
            raise unknown_name(f"key of {where}", str(key), keys)


def _source(value: Any, where: str) -> Source:
    if isinstance(value, str):
        return Source(model=reference(value, where))
    _known(value, _SOURCE_KEYS, where)
    layers = value.get("layer_range")
    if layers is not None:
        whole = isinstance(layers, list | tuple) and len(layers) == 2
        if not whole or not all(type(n) is int for n in layers) or not 0 <= layers[0] < layers[1]:
            raise UserError(
                f"{where}: layer_range is {layers!r}: give [first, end], the end not counted"
            )
        layers = (layers[0], layers[1])
    return Source(
        model=reference(value.get("model"), where),
        layers=layers,
        parameters=_mapping(value.get("parameters"), where),
    )


def _slice(value: Any, where: str, base: str) -> Slice:
    _known(value, _SLICE_KEYS, where)
    if value.get("residual_weight") is not None:
        raise UserError(f"{where}: residual_weight is not supported: leave it out")
    given = value.get("sources") or ()
    sources = tuple(_source(one, f"{where}.sources[{i}]") for i, one in enumerate(given))
    own = value.get("base_model")
    lengths = {source.layers and source.layers[1] - source.layers[0] for source in sources}
    if None in lengths or len(lengths) != 1:
        raise UserError(f"{where}: each of its sources needs a layer_range, all of one length")
    return Slice(
        sources=sources,
        base=reference(own, where) if own else base,
        parameters=_mapping(value.get("parameters"), where),
    )


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: parameters must be `name: value`, not {str(value)[:80]!r}")
    return value


def _check_inputs(part: Slice, name: str, how: Method, where: str) -> None:
    named = [source.model for source in part.sources]
    if how.base == "required" and not part.base:
        raise UserError(f"{name} takes differences from a base: give base_model")
    if how.base != "unused" and part.base and part.base not in named:
        raise UserError(f"{where}: the base {part.base} is not among its sources: add it")
    twice = [model for model in named if named.count(model) > 1]
    if twice and how.base != "unused":
        raise UserError(f"{where}: {twice[0]} is there twice")
    count = len(named) - (part.base in named if how.base != "unused" else 0)
    if count < how.fewest or (how.most is not None and count > how.most):
        beside = " beside the base" if how.base == "required" else ""
        span = f"{how.fewest}" if how.fewest == how.most else f"at least {how.fewest}"
        if how.most is not None and count > how.most and how.fewest != how.most:
            span = f"at most {how.most}"
        models = "model" if span.endswith(" 1") or span == "1" else "models"
        raise UserError(f"{where}: {name} takes {span} {models}{beside}; given: {count}")


def _check_parameters(
    slices: Sequence[Slice], parameters: Mapping[str, Any], name: str, how: Method
) -> tuple[str, ...]:
    """Names that are known, but not read by the method. Raises: UserError for unknown ones."""
    everyones = sorted(
        {key for target in METHODS.values() for key in load_target(target).parameters}
    )
    unread: dict[str, None] = {}
    for given in _all_parameters(slices, parameters):
        for key in given:
            if key not in how.parameters:
                if key not in everyones:
                    raise unknown_name(f"parameter of {name}", str(key), list(how.parameters))
                unread[key] = None
    return tuple(unread)


def _all_parameters(
    slices: Sequence[Slice], parameters: Mapping[str, Any]
) -> Iterator[Mapping[str, Any]]:
    yield parameters
    for part in slices:
        yield part.parameters
        for source in part.sources:
            yield source.parameters
