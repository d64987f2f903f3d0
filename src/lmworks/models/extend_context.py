"""Stage `extend_context`: a model in, one that reads longer sequences out.

Weights are not touched: a GGUF file keeps its blocks, a folder its tensors and their types. Only
the config changes (see `context_scaling`), and a file that can't tell the new one is refused.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.config import REFERENCE, option
from lmworks.core.errors import UserError
from lmworks.core.stages import Run, stage

if TYPE_CHECKING:
    from lmworks.models.config import ModelConfig
    from lmworks.models.gguf_weights import GGUFWeights

MODEL_FILE = "model.gguf"
_ROTARY = ("rope_", "max_position_embeddings")  # the keys of a config that change


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtendContextConfig:
    """Let a model read longer texts than it was trained on, without training.

    Texts within the trained length are read as before, to the bit; longer ones with rotary
    positions that are stretched by the factor. `lmworks eval context` measures what that gives.

    Examples:
        lmworks model extend-context --model smollm2-135m --factor 4 --out runs/long
        lmworks model extend-context --model runs/base --factor 8 --method ntk --ladder --out long
        lmworks model extend-context --model runs/base --factor 2 --no-keep-native --out static
    """

    model: str = option(role=REFERENCE, help="model folder, GGUF file or reference")
    factor: float = option(4.0, help="so many times as long")
    method: str = option("yarn", help="yarn, ntk, abf, dynamic, llama3, pi, none")
    native_length: int = option(0, help="tokens that it was trained on; 0 takes its context")
    keep_native: bool = option(True, help="read texts within that length exactly as before")
    ladder: bool = option(False, help="stretch by 2, 4, 8 ..., by no more than a text needs")


@stage("extend_context", makes="model")
def extend_context(config: ExtendContextConfig, run: Run) -> dict[str, Any]:
    """Change the config, write the weights as they are; see ExtendContextConfig."""
    from lmworks.models.config import ModelConfig
    from lmworks.models.context_scaling import extended
    from lmworks.models.gguf_weights import GGUFWeights
    from lmworks.models.load import open_weights

    weights = open_weights(run.inputs["model"])
    if not isinstance(weights.config, ModelConfig):
        raise UserError(f"{config.model} holds two towers that meet: neither reads long texts")
    changed = extended(
        weights.config,
        factor=config.factor,
        method=config.method,
        native_length=config.native_length,
        keep_native=config.keep_native,
        ladder=config.ladder,
    )
    if isinstance(weights, GGUFWeights):
        write_extended_gguf(weights, changed, run.folder / MODEL_FILE)
    else:
        _write_folder(weights.path, changed, run.folder, config)
    native = config.native_length or weights.config.max_position_embeddings
    return {
        "native_length": native,
        "context_length": changed.max_position_embeddings,
        "method": config.method,
    }


def write_extended_gguf(weights: GGUFWeights, config: ModelConfig, path: Path) -> None:
    """The file `weights` with the settings of `config`, its tensors as they are.

    Raises: UserError if the format can't tell the new positions.
    """
    from lmworks.core.gguf import GGUFTensor, read_gguf, write_gguf
    from lmworks.models.architectures.base import architecture

    chosen = architecture(weights.model_type)
    if not chosen.expresses(config, "gguf"):
        raise UserError(
            f"a GGUF file of {weights.model_type} can't tell these positions: take another method "
            "(yarn, ntk and pi, without a ladder), or begin with a model folder"
        )
    layout, file = chosen.layout("gguf"), read_gguf(weights.path)
    rotary = (f"{weights.model_type}.rope.", f"{weights.model_type}.context_length")
    kept = {name: value for name, value in file.metadata.items() if not name.startswith(rotary)}
    told = {n: v for n, v in layout.config_dict(config).items() if n.startswith(rotary)}
    tensors = dict(file.tensors)
    for name, array in layout.extras(config).items():
        data = array.astype("<f4").reshape(-1).view("u1")
        tensors[name] = GGUFTensor(name=name, shape=array.shape, type="F32", data=data)
    write_gguf(path, kept | told, tensors)


def _write_folder(
    source: Path, changed: ModelConfig, folder: Path, config: ExtendContextConfig
) -> None:
    """Copy the folder with another `config.json`; where that can't tell it, write our own."""
    from lmworks.core.files import read_json, write_json, write_text
    from lmworks.models.architectures.base import architecture
    from lmworks.models.load import load_single_model
    from lmworks.models.save import save_model
    from lmworks.models.skeleton import skeleton
    from lmworks.tokenizers.load import load_tokenizer

    values = read_json(source / "config.json", "model config")
    chosen = architecture(values["model_type"])
    if chosen.expresses(changed, "hf"):
        layout = chosen.layout("hf")
        told = {n: v for n, v in layout.config_dict(changed).items() if n.startswith(_ROTARY)}
        new = {n: v for n, v in values.items() if not n.startswith(_ROTARY)} | told
        if layout.read_config(new) == changed:
            _copy(source, folder)
            write_json(folder / "config.json", new)
            write_text(folder / "README.md", _card(changed, config))
            return
    model = load_single_model(source)
    longer = skeleton(changed)
    longer.load_state_dict(model.state_dict(), assign=True)
    save_model(longer, folder, tokenizer=load_tokenizer(source), card=_card(changed, config))


def _copy(source: Path, folder: Path) -> None:
    """The files of a model; not what tells how it was made, nor folders, nor pickles."""
    for path in sorted(source.iterdir()):
        named = path.suffix in (".json", ".safetensors", ".jinja", ".model", ".txt")
        if path.is_file() and named and path.name not in ("config.json", "lmworks.json"):
            shutil.copyfile(path, folder / path.name)


def _card(changed: ModelConfig, config: ExtendContextConfig) -> str:
    native = "Texts within the trained length are read as before. " if config.keep_native else ""
    return (
        f"`{Path(config.model).name}`, its context extended to "
        f"{changed.max_position_embeddings:,} tokens by {config.method}, without training. "
        f"{native}Engines that know no `rope_native` scale texts of every length.\n"
    )
