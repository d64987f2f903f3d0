"""Which tensors make which: a recipe and opened models in, a list of tensors to be made out.

Everything that does not fit is told here, before anything is read: other architectures, other
shapes, missing layers. Layers are told by the first number in a tensor's name. Of what lies outside
the layers, embeddings come from the first slice and the rest (norm, head) from the last, as in
mergekit.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from lmworks.core.errors import UserError
from lmworks.models.merging.base import settled
from lmworks.models.merging.parts import promoted
from lmworks.models.merging.recipe import Recipe, Slice
from lmworks.models.merging.recipe import Source as Given
from lmworks.models.merging.settings import setting_for
from lmworks.models.merging.sources import Source

HEADS = ("lm_head.weight", "embed_out.weight")
_EMBEDDING = re.compile(
    r"(.*\.)?(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight"
)
_BEFORE = re.compile(r"embed|wte|wpe")  # what lies before the layers
# Computed from the config, and stored by old versions all the same.
_NO_WEIGHTS = re.compile(r".*(rotary_emb\.inv_freq|attn\.masked_bias|attn\.bias|position_ids)")
_LAYER = re.compile(r"(.*?\.?)(\d+)\.(.+)")
COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers")
# Two models that differ in one of these compute other things with tensors of the same shapes.
_MUST_AGREE = (
    *("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act"),
    *("intermediate_size", "num_experts_per_tok", "num_local_experts", "n_head", "n_embd"),
)
_SHOULD_AGREE = (
    *("rope_theta", "rope_scaling", "rope_parameters", "rms_norm_eps", "sliding_window"),
    *("max_position_embeddings", "vocab_size"),
)
_MOST_NAMES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """A tensor of a model, and the parameters that hold for it."""

    source: Source
    name: str
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """A tensor to be made: in `compute` type, kept in `stored` type.

    `copied`: it holds no weights (integers) and is the first input's as it is.
    """

    name: str
    models: tuple[Input, ...]
    base: Input | None
    shape: tuple[int, ...]
    compute: torch.dtype
    stored: torch.dtype
    shared: Mapping[str, Any]
    copied: bool = False

    @property
    def num_bytes(self) -> int:
        return int(torch.Size(self.shape).numel()) * self.stored.itemsize


Layer = tuple[Source, int]  # a model, and the number of a layer in it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The tensors of the result and what its config says.

    Attributes:
        lead: the model whose config and tokenizer the result gets.
        layers: for each layer of the result, the model and the number of the one that it is like;
            None where all layers stay where they are.
        notes: what a person should know and is no error.
    """

    recipe: Recipe
    outputs: tuple[Output, ...]
    lead: Source
    layers: tuple[Layer, ...] | None
    notes: tuple[str, ...]


def make_plan(
    recipe: Recipe,
    sources: Mapping[str, Source],
    *,
    dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
) -> Plan:
    """Find the inputs of every tensor.

    Args:
        sources: by reference, one for each that the recipe names.
        dtype: the type that inputs are turned into; by default the widest of them.
        out_dtype: the type that is written; by default the one that was computed in.
    Raises: UserError for models that do not fit together, naming the tensors.
    """
    lead = sources[recipe.base] if recipe.base else sources[recipe.slices[0].sources[0].model]
    notes = [f"{key} is not read by {recipe.method}" for key in recipe.unread]
    for source in sources.values():
        notes += _check_fits(source, lead)
    planner = _Planner(recipe, sources, lead, dtype, out_dtype)
    outputs = tuple(planner.outputs())
    return Plan(
        recipe=recipe, outputs=outputs, lead=lead, layers=planner.layers, notes=tuple(notes)
    )


def _check_fits(source: Source, lead: Source) -> list[str]:
    """Notes on what differs. Raises: UserError where merging would make no sense."""
    if source.model_type != lead.model_type:
        raise UserError(
            f"{source.reference} is a {source.model_type} and {lead.reference} a "
            f"{lead.model_type}: models of different architectures can't be merged"
        )
    mine, theirs = source.settings, lead.settings
    for key in _MUST_AGREE:
        if mine.get(key) is not None and theirs.get(key) is not None and mine[key] != theirs[key]:
            raise UserError(
                f"{source.reference} has {key} {mine[key]} and {lead.reference} {theirs[key]}: "
                "models of different shapes can't be merged"
            )
    return [
        f"{key} is {mine[key]} in {source.reference}; the result gets {theirs[key]} of "
        f"{lead.reference}"
        for key in _SHOULD_AGREE
        if key in mine and key in theirs and mine[key] != theirs[key]
    ]


class _Planner:
    """State of `make_plan`."""

    def __init__(
        self,
        recipe: Recipe,
        sources: Mapping[str, Source],
        lead: Source,
        dtype: torch.dtype | None,
        out_dtype: torch.dtype | None,
    ) -> None:
        self.recipe, self.sources, self.lead = recipe, sources, lead
        self.dtype, self.out_dtype = dtype, out_dtype
        self.layers: tuple[Layer, ...] | None = None
        self._sized: dict[str, dict[str, int]] = {}

    def outputs(self) -> Iterator[Output]:
        """Embeddings, layers in order, the rest."""
        first, last = self.recipe.slices[0], self.recipe.slices[-1]
        outside = [name for name in _names(self.lead) if not self._layer(name)]
        for name in outside:
            if _BEFORE.search(name):
                yield self._output(first, name, [name] * len(first.sources), depth=0)
        if all(source.layers is None for source in first.sources):
            yield from self._all_layers(first)
        else:
            yield from self._sliced()
        for name in outside:
            if not _BEFORE.search(name):
                yield self._output(last, name, [name] * len(last.sources), depth=0)

    def _all_layers(self, part: Slice) -> Iterator[Output]:
        stacks = self._stacks(self.lead)
        for given in part.sources:
            source = self.sources[given.model]
            if self._stacks(source) != stacks:
                raise UserError(
                    f"{source.reference} has {sum(self._stacks(source).values())} layers and "
                    f"{self.lead.reference} {sum(stacks.values())}: say which with slices: and "
                    "layer_range"
                )
            spare = [name for name in _names(source) if name not in self.lead.tensors]
            spare = [name for name in spare if name not in HEADS]
            if spare:
                raise UserError(
                    f"{source.reference} holds {len(spare)} tensors that {self.lead.reference} "
                    f"lacks ({', '.join(spare[:_MOST_NAMES])}): they can't be merged"
                )
        for name in _names(self.lead):
            if place := self._layer(name):
                prefix, number, _ = place
                count = stacks[prefix]
                depth = number / (count - 1) if count > 1 else 1.0
                yield self._output(part, name, [name] * len(part.sources), depth=depth)

    def _sliced(self) -> Iterator[Output]:
        stacks = self._stacks(self.lead)
        if len(stacks) != 1:
            raise UserError(
                f"{self.lead.reference} has several stacks of layers ({', '.join(stacks)}): "
                "slices can't say which; give models:"
            )
        (prefix,) = stacks
        layers: list[Layer] = []
        for index, part in enumerate(self.recipe.slices):
            ranges = [given.layers for given in part.sources]
            for given in part.sources:
                self._check_range(given, prefix, f"slices[{index}]")
            (begin, end), *_ = [span for span in ranges if span]
            pattern = self.sources[part.sources[0].model]
            for offset in range(end - begin):
                for name in _names(pattern):
                    place = self._layer(name, pattern)
                    if place is None or place[1] != begin + offset:
                        continue
                    theirs = [f"{prefix}{span[0] + offset}.{place[2]}" for span in ranges if span]
                    depth = offset / (end - begin - 1) if end - begin > 1 else 1.0
                    name = f"{prefix}{len(layers)}.{place[2]}"
                    yield self._output(part, name, theirs, depth=depth)
                layers.append((pattern, begin + offset))
        self.layers = tuple(layers)

    def _check_range(self, given: Given, prefix: str, where: str) -> None:
        source = self.sources[given.model]
        count = self._stacks(source).get(prefix, 0)
        assert given.layers is not None
        if given.layers[1] > count:
            raise UserError(
                f"{where}: layer_range {list(given.layers)} of {given.model}, which has {count} "
                "layers"
            )

    def _output(self, part: Slice, name: str, names: list[str], *, depth: float) -> Output:
        method, how = self.recipe.method, self.recipe.how
        models: list[Input] = []
        base: Input | None = None
        for given, theirs in zip(part.sources, names, strict=True):
            source = self.sources[given.model]
            theirs = self._found(source, theirs)
            if how.base != "unused" and given.model == part.base:
                base = Input(source=source, name=theirs)
                continue
            own = (given.parameters, part.parameters, self.recipe.parameters)
            values = self._settings(own, theirs, depth, each=True)
            where = f"{given.model}, {theirs}"
            models.append(
                Input(
                    source=source,
                    name=theirs,
                    values=settled(how, method, values, each=True, where=where),
                )
            )
        levels = (part.parameters, self.recipe.parameters)
        shared = self._settings(levels, name, depth, each=False)
        everything = [*models, *([base] if base else [])]
        held = [one.source.tensors[one.name] for one in everything]
        self._check_shapes(name, everything)
        floats = all(tensor.dtype.is_floating_point for tensor in held)
        compute = self.dtype or promoted([tensor.dtype for tensor in held])
        if not floats:
            compute = held[0].dtype
        return Output(
            name=name,
            models=tuple(models),
            base=base,
            shape=held[0].shape,
            compute=compute,
            stored=(self.out_dtype or compute) if floats else compute,
            shared=settled(how, method, shared, each=False, where=name),
            copied=not floats,
        )

    def _settings(
        self, levels: tuple[Mapping[str, Any], ...], tensor: str, depth: float, *, each: bool
    ) -> dict[str, Any]:
        return {
            key: setting_for(
                key, parameter, levels, method=self.recipe.method, tensor=tensor, depth=depth
            )
            for key, parameter in self.recipe.how.parameters.items()
            if parameter.each == each
        }

    def _found(self, source: Source, name: str) -> str:
        """The tensor `name` of a model; its embedding, for a head that is tied to it."""
        if name in source.tensors:
            return name
        if name in HEADS and source.tied:
            tied = [held for held in source.tensors if _EMBEDDING.fullmatch(held)]
            if len(tied) == 1:
                return tied[0]
        raise UserError(
            f"{source.reference} has no tensor {name}, which {self.lead.reference} has: they "
            "can't be merged"
        )

    def _check_shapes(self, name: str, inputs: list[Input]) -> None:
        shapes = [one.source.tensors[one.name].shape for one in inputs]
        for one, shape in zip(inputs, shapes, strict=True):
            if shape != shapes[0]:
                vocabulary = _EMBEDDING.fullmatch(name) or name in HEADS
                why = (
                    "their vocabularies differ: put one tokenizer into both with `lmworks model "
                    "transplant`"
                    if vocabulary
                    else "they can't be merged"
                )
                raise UserError(
                    f"{name} is {list(shapes[0])} in {inputs[0].source.reference} and "
                    f"{list(shape)} in {one.source.reference}: {why}"
                )

    def _stacks(self, source: Source) -> dict[str, int]:
        """The stacks of layers: what stands before the number -> how many there are."""
        if source.reference not in self._sized:
            found: dict[str, int] = {}
            for name in _names(source):
                if match := _LAYER.fullmatch(name):
                    prefix, number = match[1], int(match[2])
                    found[prefix] = max(found.get(prefix, 0), number + 1)
            counts = {source.settings.get(key) for key in COUNTS} - {None}
            layers = {prefix: count for prefix, count in found.items() if count in counts}
            if not layers and found:
                most = max(found.values())
                layers = {prefix: count for prefix, count in found.items() if count == most}
            self._sized[source.reference] = layers
        return self._sized[source.reference]

    def _layer(self, name: str, source: Source | None = None) -> tuple[str, int, str] | None:
        """(before the number, number, after it) of a tensor of a layer."""
        match = _LAYER.fullmatch(name)
        if match is None or match[1] not in self._stacks(source or self.lead):
            return None
        return match[1], int(match[2]), match[3]


def of_layers(
    layers: Sequence[Layer], key: str, settings_of: Callable[[Source], Mapping[str, Any]]
) -> list[Any] | None:
    """The entries that a setting with one for each layer has for these; None if a model has none.

    Args:
        settings_of: gives the settings of a model, in which `key` is such a list.
    """
    entries = []
    for source, number in layers:
        held = settings_of(source).get(key)
        if not isinstance(held, list) or number >= len(held):
            return None
        entries.append(held[number])
    return entries


def _names(source: Source) -> list[str]:
    """The tensors that are weights; a tied head that is stored all the same is left out."""
    return [
        name
        for name in source.tensors
        if not _NO_WEIGHTS.fullmatch(name) and not (source.tied and name in HEADS)
    ]
