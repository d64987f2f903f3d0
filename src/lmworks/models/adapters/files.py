"""Adapters as folders in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

    save_adapter(adapter, "runs/adapter", base="smollm2-135m")
    adapter = load_adapter(load_model("smollm2-135m"), "runs/adapter")

Modules are called as in Hugging Face's model of the same architecture, so that PEFT puts what is
written here on transformers' model, and what PEFT wrote is read here. A `.bin` is refused: it is a
pickle. `base_model_name_or_path` is the reference that the base was loaded by.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from lmworks.core.errors import UserError
from lmworks.core.files import atomic_save, read_json, write_json, writing
from lmworks.models.adapters.base import CONFIG, Adapter, AdapterConfig, check_free
from lmworks.models.adapters.foreign import ForeignNames

if TYPE_CHECKING:
    from lmworks.models.model import Model

TENSORS = "adapter_model.safetensors"
BASE = "base_model_name_or_path"
_PREFIX = "base_model.model."
_PREFIXED = ("LORA", "IA3")  # PEFT keeps the tensors of prompts without
# PEFT's names -> ours.
PEFT_TYPES = {"LORA": "lora", "IA3": "ia3", "PREFIX_TUNING": "prefix"}


def save_adapter(adapter: Adapter, folder: str | Path, *, base: str = "") -> None:
    """Write the adapter's two files into `folder`.

    Args:
        base: the reference of the model that it is for.
    Raises: UserError for a full disk, or an adapter that the format has no words for.
    """
    folder = Path(folder)
    names = ForeignNames(adapter.model)
    values, tensors = adapter.config.to_files(adapter, names)
    peft_type = values.get("peft_type")
    prefix = _PREFIX if peft_type in _PREFIXED else ""
    plain = {
        prefix + name: tensor.detach().to("cpu", torch.float32).clone().contiguous()
        for name, tensor in tensors.items()
    }
    common = {BASE: base or None, "inference_mode": True}
    if peft_type:
        common["task_type"] = "CAUSAL_LM"
    with writing(folder / TENSORS):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / TENSORS
        atomic_save(path, lambda part: save_file(plain, part, metadata={"format": "pt"}))
        path.chmod(0o644)  # safetensors makes its files readable by their owner alone
        write_json(folder / CONFIG, common | values)


def load_adapter(model: Model, folder: str | Path) -> Adapter:
    """Put the adapter of a folder on `model`, frozen or not; it can be trained on.

    Raises: UserError for a folder that holds none, a damaged file, an adapter of an unknown kind,
        or one that was made for another base, with the shapes.
    """
    folder = Path(folder)
    values = read_adapter_config(folder)
    config_type = _config_type(values, folder / CONFIG)
    tensors = _tensors(folder)
    check_free(model)
    names = ForeignNames(model)
    try:
        adapter = config_type.from_files(model, values, tensors, names)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    if tensors:
        adapter.remove()
        more = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
        raise UserError(
            f"{folder}: the adapter holds tensors that have no place in this model: "
            f"{', '.join(sorted(tensors)[:3])}{more}"
        )
    return adapter


def read_adapter_config(folder: Path) -> Mapping[str, Any]:
    """What `adapter_config.json` says. Raises: UserError where there is none."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} holds no {CONFIG}: it is no adapter")
    values = read_json(path, "adapter config")
    if not isinstance(values, Mapping):
        raise UserError(f"{path} is not the config of an adapter")
    return values


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The adapter's tensors and their shapes, without reading them.

    Raises: UserError for a folder that holds none, or a damaged file.
    """
    path = _tensor_file(folder)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def base_reference(folder: Path, base: str = "") -> str:
    """The reference of the model that an adapter is for.

    Args:
        base: takes the place of what the adapter says.
    Raises: UserError where neither says it.
    """
    found = base or read_adapter_config(folder).get(BASE)
    if not isinstance(found, str) or not found:
        raise UserError(f"{folder / CONFIG} names no {BASE}: give the model with --base")
    return found


def _config_type(values: Mapping[str, Any], path: Path) -> type[AdapterConfig]:
    own, theirs = values.get("adapter_type"), values.get("peft_type")
    if isinstance(own, str):
        return AdapterConfig.of_kind(own)
    if theirs not in PEFT_TYPES:
        raise UserError(
            f"{path}: peft_type {theirs!r} is not supported; known: {', '.join(PEFT_TYPES)}"
        )
    kind = PEFT_TYPES[theirs]
    return AdapterConfig.of_kind("dora" if kind == "lora" and values.get("use_dora") else kind)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    path = _tensor_file(folder)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error
    return {name.removeprefix(_PREFIX): tensor.float() for name, tensor in tensors.items()}


def _tensor_file(folder: Path) -> Path:
    path = folder / TENSORS
    if path.is_file():
        return path
    if (pickle := folder / "adapter_model.bin").is_file():
        raise UserError(
            f"{pickle} is a pickle, which can run code when it is read: convert it to "
            "safetensors where you trust it, and load that"
        )
    raise UserError(f"{folder} holds no {TENSORS}")


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged or cut short ({error}): fetch or make it again")
