"""A merge as one GGUF file: each tensor is merged in bands, quantised band by band, and written.

With a GGUF file as the lead, its metadata, vocabulary and chat template are kept, and every tensor
gets the type that it had, or the one that is asked for. A folder as the lead is written as its
architecture's GGUF. Rows that do not divide into blocks of 256 get a type with blocks of 32, or
float16.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lmworks.core import quantizers
from lmworks.core.errors import UserError
from lmworks.core.ggml_types import FILE_TYPES, FLOATS, INSTEAD, TYPES, encode_floats
from lmworks.core.gguf import GGUFTensor, LaterTensor, write_gguf
from lmworks.core.progress import track
from lmworks.models.merging.execute import bands
from lmworks.models.merging.folder import layered_config
from lmworks.models.merging.plan import Layer, Output, Plan, of_layers
from lmworks.models.merging.sources import GGUFSource, Source
from lmworks.models.merging.tokenizers import has_tokenizer

if TYPE_CHECKING:
    from lmworks.models.architectures.rules import Bound
    from lmworks.models.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Wanted:
    """A tensor of the file: what it is made of and the type that it gets."""

    name: str
    bound: Bound
    shape: tuple[int, ...]
    type: str


def write_gguf_file(
    plan: Plan, path: Path, *, kind: str, seed: int, chat_template: str = ""
) -> None:
    """Make every tensor and write the file.

    Args:
        kind: the type of the matrices; "" keeps what the lead's file has (float16 for a folder).
        seed: of the masks that are drawn.
        chat_template: Jinja, instead of the lead's.
    Raises: UserError for a type that can't be written, or an architecture that GGUF has no words
        for.
    """
    from lmworks.models.architectures.base import architecture_of
    from lmworks.models.skeleton import skeleton

    config = layered_config(plan)
    lead = plan.lead
    if isinstance(lead, GGUFSource):
        layout = lead.weights.layout
    else:
        layout = architecture_of(config, "gguf").layout("gguf")
    parameters = dict(skeleton(config).named_parameters())
    made_of = _made_of(config, parameters)
    outputs = {output.name: output for output in plan.outputs}
    wanted = []
    for bound in layout.bind(parameters, config):
        shapes = bound.to_foreign([parameters[own].detach() for own in bound.own])
        for name, tensor in shapes.items():
            shape = tuple(tensor.shape)
            wanted.append(
                _Wanted(name=name, bound=bound, shape=shape, type=_type(plan, name, shape, kind))
            )
    with track("merging", total=len(wanted)) as bar:
        maker = _Maker(outputs, made_of, plan, seed, bar.advance)
        tensors: dict[str, GGUFTensor | LaterTensor] = {
            one.name: LaterTensor(
                name=one.name, shape=one.shape, type=one.type, make=maker.later(one)
            )
            for one in wanted
        }
        if isinstance(lead, GGUFSource):  # frequencies and the like, which are no parameters
            held = lead.weights.tensors
            spare = held.keys() - lead.weights.shapes().keys()
            tensors |= {name: held[name] for name in held if name in spare}
        else:
            for name, array in layout.extras(config).items():
                data = np.ascontiguousarray(array, dtype="<f4").view(np.uint8).reshape(-1)
                tensors[name] = GGUFTensor(name=name, shape=array.shape, type="F32", data=data)
        write_gguf(path, _metadata(plan, config, kind, chat_template), tensors)


def _made_of(config: ModelConfig, parameters: Mapping[str, torch.Tensor]) -> dict[str, Bound]:
    """Our parameters -> the Hugging Face tensors that hold them."""
    from lmworks.models.architectures.base import architecture_of

    layout = architecture_of(config).layout("hf")
    return {own: bound for bound in layout.bind(parameters, config) for own in bound.own}


def _type(plan: Plan, name: str, shape: tuple[int, ...], kind: str) -> str:
    lead = plan.lead
    if len(shape) < 2:
        return "F32"
    if not kind:
        kind = "F16"
        if isinstance(lead, GGUFSource):
            # The type of the lead's tensor of this name; in a layer that the lead lacks, of the
            # tensor that the layer was.
            held = lead.weights.tensors.get(name) or _stacked(plan, name)
            kind = held.type if held else "F16"
    if kind in FLOATS:
        return kind
    quantizers.check_writable(kind, name)
    for one in (kind, INSTEAD.get(kind, "F16")):
        if shape[-1] % TYPES[one].size == 0:
            return one
    return "F16"


def _stacked(plan: Plan, name: str) -> GGUFTensor | None:
    """The tensor of a layer in the GGUF file that the layer comes from."""
    before, _, rest = name.partition(".")
    number, _, after = rest.partition(".")
    if plan.layers is None or not number.isdigit():
        return None
    source, index = plan.layers[int(number)]
    if not isinstance(source, GGUFSource):
        return None
    return source.weights.tensors.get(f"{before}.{index}.{after}")


class _Maker:
    """Makes the bytes of a tensor when its turn has come."""

    def __init__(
        self,
        outputs: Mapping[str, Output],
        made_of: Mapping[str, Bound],
        plan: Plan,
        seed: int,
        done: Any,
    ) -> None:
        self.outputs, self.made_of, self.plan = outputs, made_of, plan
        self.seed, self.done = seed, done

    def later(self, wanted: _Wanted) -> Any:
        """A function that gives the bytes."""

        def make() -> np.ndarray:
            made = self._rows(wanted) if self._plain(wanted) else self._whole(wanted)
            self.done()
            return made

        return make

    def _plain(self, wanted: _Wanted) -> bool:
        return wanted.bound.rule.plain and self.made_of[wanted.bound.own[0]].rule.plain

    def _rows(self, wanted: _Wanted) -> np.ndarray:
        """Band by band; rows change places as bytes."""
        source = self.made_of[wanted.bound.own[0]]
        made = [_encoded(rows, wanted) for rows in self._bands(self.outputs[source.foreign[0]])]
        whole = np.concatenate(made)
        order = torch.arange(len(whole))
        for bound, forwards in ((source, True), (wanted.bound, False)):
            rows = bound.row_order
            if rows is not None:
                order = order[rows] if forwards else order[rows.argsort()]
        if not bool((order[1:] > order[:-1]).all()):
            whole = whole[order.numpy()]
        return whole.reshape(-1)

    def _whole(self, wanted: _Wanted) -> np.ndarray:
        own: dict[str, torch.Tensor] = {}
        for name in wanted.bound.own:
            if name not in own:
                source = self.made_of[name]
                theirs = [torch.cat(list(self._bands(self.outputs[n]))) for n in source.foreign]
                own |= source.to_own(theirs)
        made = wanted.bound.to_foreign([own[name] for name in wanted.bound.own])[wanted.name]
        return _encoded(made, wanted).reshape(-1)

    def _bands(self, output: Output) -> Iterator[torch.Tensor]:
        for rows in bands(self.plan, output, seed=self.seed):
            yield rows.float()


def _encoded(rows: torch.Tensor, wanted: _Wanted) -> np.ndarray:
    """(rows, bytes of a row); of a vector, (numbers, 4)."""
    array = rows.contiguous().numpy()
    if wanted.type not in FLOATS:
        flat = array.reshape(-1, array.shape[-1])
        return quantizers.quantize(flat, wanted.type, name=wanted.name).reshape(len(array), -1)
    raw = encode_floats(array, wanted.type).reshape(len(array), -1)
    if not np.isfinite(
        TYPES[wanted.type].decode(raw.reshape(-1, TYPES[wanted.type].num_bytes))
    ).all():
        raise UserError(f"{wanted.name} holds numbers too large for {wanted.type}: take F32")
    return raw


def _metadata(plan: Plan, config: ModelConfig, kind: str, chat_template: str) -> dict[str, Any]:
    from lmworks.models.architectures.base import architecture_of
    from lmworks.tokenizers.load import load_tokenizer

    lead = plan.lead
    if isinstance(lead, GGUFSource):
        metadata = dict(lead.metadata)
        architecture = metadata["general.architecture"]
        if plan.layers is not None:
            _set_layers(metadata, architecture, lead.config, plan.layers)
        if kind in FILE_TYPES:
            metadata["general.file_type"] = FILE_TYPES[kind]
    else:
        found = architecture_of(config, "gguf")
        metadata = {
            "general.architecture": found.name,
            "general.file_type": FILE_TYPES.get(kind or "F16", 0),
            "general.quantization_version": 2,
            **found.layout("gguf").config_dict(config),
        }
        if has_tokenizer(lead):
            metadata |= load_tokenizer(lead.path).gguf_metadata()
    if chat_template:
        metadata["tokenizer.chat_template"] = chat_template
    return metadata


def _set_layers(
    metadata: dict[str, Any], architecture: str, config: ModelConfig, layers: tuple[Layer, ...]
) -> None:
    """The number of layers, and every list of the architecture that has an entry for each."""
    before = len(config.layers)
    for key, value in metadata.items():
        if key == f"{architecture}.block_count":
            metadata[key] = len(layers)
        elif (
            key.startswith(f"{architecture}.") and isinstance(value, list) and len(value) == before
        ):
            metadata[key] = of_layers(layers, key, _metadata_of) or value


def _metadata_of(source: Source) -> Mapping[str, Any]:
    return source.metadata if isinstance(source, GGUFSource) else {}
