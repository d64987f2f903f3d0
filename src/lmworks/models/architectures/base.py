"""What an architecture is: two config readers, two config writers and a name map.

`ARCHITECTURES` is keyed by the name that files use for it: `model_type` in a `config.json`,
`general.architecture` in a GGUF file. Other packages add theirs through the entry-point group
`lmworks.architecture`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core.errors import UserError
from lmworks.core.tables import load_target, look_up
from lmworks.models.config import ModelConfig

if TYPE_CHECKING:
    import numpy as np

ARCHITECTURES = {
    "llama": "lmworks.models.architectures.llama:LLAMA",
}

Format = Literal["hf", "gguf"]


@dataclass(frozen=True, kw_only=True)
class Names:
    """One parameter's name elsewhere; `{}` stands for the number of the layer."""

    hf: str
    gguf: str


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """An architecture of another project, told in terms of our blocks.

    Attributes:
        hf_class: the class that transformers loads it with.
        names: our parameter names, with `{}` for the layer, to those of the two formats.
        ignored_hf, ignored_gguf: patterns of tensors that hold no parameter.
        config_from_hf: `config.json` as a dict -> ModelConfig.
        config_to_hf: the reverse; together they lose nothing.
        config_from_gguf: GGUF metadata and tensors (any mapping of name to object with `.shape`)
            -> ModelConfig.
        config_to_gguf: the metadata that llama.cpp needs, without the tokenizer's.
        gguf_row_order: (our name, config) -> rows so that `gguf[order]` is our tensor, or None.
        gguf_extras: tensors that a GGUF file carries beside the parameters.
        expresses: whether a config can be written as this architecture.
    """

    name: str
    hf_class: str
    names: Mapping[str, Names]
    config_from_hf: Callable[[Mapping[str, Any]], ModelConfig]
    config_to_hf: Callable[[ModelConfig], dict[str, Any]]
    config_from_gguf: Callable[[Mapping[str, Any], Mapping[str, Any]], ModelConfig]
    config_to_gguf: Callable[[ModelConfig], dict[str, Any]]
    gguf_row_order: Callable[[str, ModelConfig], np.ndarray | None]
    gguf_extras: Callable[[ModelConfig], dict[str, np.ndarray]]
    expresses: Callable[[ModelConfig], bool]
    ignored_hf: str = r"(?!)"
    ignored_gguf: str = r"(?!)"

    def foreign_name(self, name: str, format: Format) -> str:
        """Our parameter's name in `format`. Raises: KeyError for a name that is not ours."""
        template, numbers = _template(name)
        foreign: str = getattr(self.names[template], format)
        return foreign.format(*numbers)

    def own_name(self, name: str, format: Format) -> str | None:
        """Our name for a tensor of `format`, or None if it is no parameter of ours."""
        template, numbers = _template(name)
        for own, names in self.names.items():
            if getattr(names, format) == template:
                return own.format(*numbers)
        return None


def architecture(name: str) -> Architecture:
    """The architecture called `name`. Raises: UserError naming the nearest known one."""
    found: Architecture = look_up(ARCHITECTURES, name, seam="architecture")
    return found


def architecture_of(config: ModelConfig) -> Architecture:
    """The architecture to write `config` as. Raises: UserError if none can express it."""
    for target in ARCHITECTURES.values():
        found: Architecture = load_target(target)
        if found.expresses(config):
            return found
    parts = f"{config.mixer.kind} and {config.feed_forward.kind}"
    raise UserError(f"no known architecture has layers of {parts}: the model can't be saved")


def to_gguf(config: ModelConfig, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters as the tensors of a GGUF file: renamed, rows reordered, extras added."""
    target = architecture_of(config)
    tensors = {}
    for name, array in state.items():
        order = target.gguf_row_order(name, config)
        if order is not None:
            array = array[order.argsort()]
        tensors[target.foreign_name(name, "gguf")] = array
    return tensors | target.gguf_extras(config)


def _template(name: str) -> tuple[str, list[str]]:
    """`a.12.b` as (`a.{}.b`, ["12"])."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "{}", name), re.findall(r"(?<=\.)(\d+)(?=\.)", name)
