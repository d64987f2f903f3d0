"""What an architecture is: config readers and writers, and name maps, for each file format.

`ARCHITECTURES` is keyed by the name that files use for it: `model_type` in a `config.json`,
`general.architecture` in a GGUF file. Other packages add theirs through the entry-point group
`lmworks.architecture`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lmworks.core.errors import UserError
from lmworks.core.tables import load_target, look_up
from lmworks.models.architectures.rules import Bound, Rule, bind
from lmworks.models.config import AnyConfig, ModelConfig

if TYPE_CHECKING:
    import numpy as np
    import torch

ARCHITECTURES = {
    "llama": "lmworks.models.architectures.llama:LLAMA",
    "qwen2": "lmworks.models.architectures.qwen2:QWEN2",
    "mistral": "lmworks.models.architectures.mistral:MISTRAL",
    "qwen3": "lmworks.models.architectures.qwen3:QWEN3",
    "gemma": "lmworks.models.architectures.gemma:GEMMA",
    "gemma2": "lmworks.models.architectures.gemma2:GEMMA2",
    "gemma3_text": "lmworks.models.architectures.gemma3:GEMMA3_TEXT",
    "gemma3": "lmworks.models.architectures.gemma3:GEMMA3",
    "phi3": "lmworks.models.architectures.phi3:PHI3",
    "olmo2": "lmworks.models.architectures.olmo2:OLMO2",
    "olmo3": "lmworks.models.architectures.olmo3:OLMO3",
    "smollm3": "lmworks.models.architectures.smollm3:SMOLLM3",
    "deepseek_v3": "lmworks.models.architectures.deepseek_v3:DEEPSEEK_V3",
    "mixtral": "lmworks.models.architectures.mixtral:MIXTRAL",
    "olmoe": "lmworks.models.architectures.olmoe:OLMOE",
    "qwen2_moe": "lmworks.models.architectures.qwen2_moe:QWEN2_MOE",
    "qwen3_moe": "lmworks.models.architectures.qwen3_moe:QWEN3_MOE",
    "gpt2": "lmworks.models.architectures.gpt2:GPT2",
    "mamba": "lmworks.models.architectures.mamba:MAMBA",
    "mamba2": "lmworks.models.architectures.mamba:MAMBA2",
    "rwkv": "lmworks.models.architectures.rwkv:RWKV",
    "lfm2": "lmworks.models.architectures.lfm2:LFM2",
    "phi": "lmworks.models.architectures.phi:PHI",
    "bloom": "lmworks.models.architectures.bloom:BLOOM",
    "gpt_neox": "lmworks.models.architectures.gpt_neox:GPT_NEOX",
    "bert": "lmworks.models.architectures.bert:BERT",
    "roberta": "lmworks.models.architectures.roberta:ROBERTA",
    "xlm-roberta": "lmworks.models.architectures.roberta:XLM_ROBERTA",
    "distilbert": "lmworks.models.architectures.distilbert:DISTILBERT",
    "mpnet": "lmworks.models.architectures.mpnet:MPNET",
    "electra": "lmworks.models.architectures.electra:ELECTRA",
    "longformer": "lmworks.models.architectures.longformer:LONGFORMER",
    "big_bird": "lmworks.models.architectures.big_bird:BIG_BIRD",
    "t5": "lmworks.models.architectures.t5:T5",
    "mt5": "lmworks.models.architectures.t5:MT5",
    "bart": "lmworks.models.architectures.bart:BART",
    "whisper": "lmworks.models.architectures.whisper:WHISPER",
    "vit": "lmworks.models.architectures.vit:VIT",
    "clip": "lmworks.models.architectures.clip:CLIP",
    "siglip": "lmworks.models.architectures.siglip:SIGLIP",
    "lmworks": "lmworks.models.architectures.own:OWN",
}

Format = Literal["hf", "gguf"]


def _no_extras(config: AnyConfig) -> dict[str, np.ndarray]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one file format holds an architecture.

    Attributes:
        rules: the name map.
        read_config: what the file says -> ModelConfig. For Hugging Face a `config.json` as a
            dict; for GGUF its metadata, and its tensors (any mapping of name to object with
            `.shape`). Raises: UserError for what is missing or not supported.
        write_config: the reverse, or None if it can't be written. It may raise whatever it likes
            for a config of another architecture.
        ignored: pattern of tensors that hold no parameter.
        prefix: of names that some files leave out (`transformer.` in GPT-2's).
        spare: pattern of weights that some files hold beside those that the config asks for, of
            a head that is not the config's; they are left where they are.
        renamed: endings of names in old files -> what they are called today.
        extras: tensors that a file carries beside the parameters.
        variants: pattern of a tensor's name -> the name map of files that hold such a one.
    """

    rules: Sequence[Rule]
    read_config: Callable[..., Any]
    write_config: Callable[[Any], dict[str, Any]] | None = None
    ignored: str = r"(?!)"
    prefix: str = ""
    spare: str = r"(?!)"
    renamed: Mapping[str, str] = field(default_factory=dict)
    extras: Callable[[Any], dict[str, np.ndarray]] = field(default=_no_extras)
    variants: Mapping[str, Sequence[Rule]] = field(default_factory=dict)

    def of_file(self, names: Collection[str]) -> Layout:
        """The layout of a file that holds tensors of these names."""
        for pattern, rules in self.variants.items():
            if any(re.fullmatch(pattern, name) for name in names):
                return dataclasses.replace(self, rules=rules)
        return self

    def bind(self, parameters: Mapping[str, Any], config: AnyConfig) -> list[Bound]:
        """The name map for a model with these parameters (name -> anything with a shape)."""
        return list(bind(self.rules, parameters, config))

    def config_dict(self, config: AnyConfig) -> dict[str, Any]:
        """What `write_config` gives. Raises: UserError if this layout can't be written."""
        if self.write_config is None:
            raise UserError("models of this architecture can be read, but not written")
        return self.write_config(config)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """An architecture of another project, told in terms of our blocks."""

    name: str
    hf: Layout | None = None
    gguf: Layout | None = None

    def layout(self, format: Format) -> Layout:
        """How `format` holds it. Raises: UserError if it does not."""
        found = self.hf if format == "hf" else self.gguf
        if found is None:
            words = {"hf": "Hugging Face folders", "gguf": "GGUF files"}
            raise UserError(f"{self.name} is not supported in {words[format]}")
        return found

    def expresses(self, config: AnyConfig, format: Format) -> bool:
        """Whether `config`, written and read again, is still the same."""
        layout = self.hf if format == "hf" else self.gguf
        if layout is None or layout.write_config is None:
            return False
        try:
            written = layout.write_config(config)
            again = (
                layout.read_config(written, _tensors(layout, config))
                if (format == "gguf")
                else layout.read_config(written)
            )
        except Exception:  # a writer meets a config that is not its own
            return False
        return again == config


def _tensors(layout: Layout, config: AnyConfig) -> dict[str, Any]:
    """The tensors of a GGUF file with this config, without memory."""
    from lmworks.core.gguf import GGUFTensor
    from lmworks.models.skeleton import skeleton

    assert isinstance(config, ModelConfig)  # two towers have no GGUF
    tensors: dict[str, Any] = {**to_foreign(skeleton(config).state_dict(), config, layout)}
    for name, array in layout.extras(config).items():
        data = array.astype("float32").view("uint8").reshape(-1)
        tensors[name] = GGUFTensor(name=name, shape=array.shape, type="F32", data=data)
    return tensors


def architecture(name: str) -> Architecture:
    """The architecture called `name`. Raises: UserError naming the nearest known one."""
    found: Architecture = look_up(ARCHITECTURES, name, seam="architecture")
    return found


def architecture_of(config: AnyConfig, format: Format = "hf") -> Architecture:
    """The architecture to write `config` as: the first whose own reader gives it back.

    Raises: UserError if none can express it.
    """
    for target in ARCHITECTURES.values():
        found: Architecture = load_target(target)
        if found.expresses(config, format):
            return found
    layers = config.layers if isinstance(config, ModelConfig) else ()
    kinds = {part.kind for x in layers for part in (x.mixer, x.feed_forward) if part}
    raise UserError(
        f"no architecture of {'GGUF' if format == 'gguf' else 'Hugging Face'} files has layers of "
        f"{' and '.join(sorted(kinds))} as this model has them: it can't be written as one"
    )


def to_foreign(
    state: Mapping[str, torch.Tensor], config: AnyConfig, layout: Layout
) -> dict[str, torch.Tensor]:
    """Our parameters as the tensors of a file. Raises: KeyError for one that is not the model's."""
    return {
        name: tensor
        for bound in layout.bind(state, config)
        for name, tensor in bound.to_foreign([state[part] for part in bound.own]).items()
    }


def to_gguf(config: AnyConfig, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters as the tensors of a GGUF file: renamed, rows reordered, extras added."""
    import torch

    layout = architecture_of(config, "gguf").layout("gguf")
    ours = {name: torch.from_numpy(array) for name, array in state.items()}
    theirs = to_foreign(ours, config, layout)
    return {name: t.contiguous().numpy() for name, t in theirs.items()} | layout.extras(config)
