"""`save_model`: a model folder that transformers, vLLM and the llama.cpp converter read.

config.json, model.safetensors (in shards above 2 GiB), README.md as model card and, with a
tokenizer, its files and generation_config.json. All of it is written beside the target first and
moved in at the end, so a full disk leaves a former model whole. The same weights give the same
bytes: no date, no version, no path is written.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from lmworks.core.errors import UserError
from lmworks.core.files import atomic_save, fsync_folder, write_json, write_text, writing
from lmworks.models.architectures.base import Layout, architecture, architecture_of, to_foreign
from lmworks.models.model_card import model_card
from lmworks.models.safetensors_weights import INDEX, SINGLE
from lmworks.models.skeleton import skeleton
from lmworks.models.two_tower import TwoTower

if TYPE_CHECKING:
    from lmworks.models.model import Model
    from lmworks.tokenizers.base import Tokenizer

_SHARD_BYTES = 2 * 2**30
_END_TOKENS = ("<|endoftext|>", "<|im_end|>")  # the end of a document, the end of a turn


def save_model(
    model: Model | TwoTower,
    folder: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    card: str = "",
    shard_bytes: int = _SHARD_BYTES,
    model_type: str = "",
) -> None:
    """Write `model` into `folder`, in place of a model that is there.

    Args:
        tokenizer: saved with the model; its end tokens go into generation_config.json.
        card: Markdown for the model card, after the table of sizes.
        shard_bytes: the largest file of weights.
        model_type: the architecture to write; by default the first that can tell the config.
    Raises: UserError for a full disk, a folder that can't be written, or a packed model.
    """
    layout = _layout(model, model_type)
    state = _state(model, layout)
    save_state(
        state, model, layout, Path(folder), tokenizer=tokenizer, card=card, shard_bytes=shard_bytes
    )


def save_state(
    state: dict[str, torch.Tensor],
    model: Model | TwoTower,
    layout: Layout,
    folder: Path,
    *,
    tokenizer: Tokenizer | None = None,
    card: str = "",
    shard_bytes: int = _SHARD_BYTES,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write tensors, by the names that the file is to have, as the folder of `model`.

    Args:
        more: further entries of config.json.
    Raises: UserError as `save_model` does.
    """
    with writing(folder / SINGLE), _staging(folder) as staged:
        _save_weights(state, staged, shard_bytes)
        write_text(staged / "README.md", model_card(model, card))
        ids = _special_ids(tokenizer)
        write_json(
            staged / "config.json", ids | layout.config_dict(model.config) | dict(more or {})
        )
        if tokenizer is not None:
            save_tokenizer(tokenizer, staged)
        _move_in(staged, folder)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer's files, and generation_config.json with the ids that end an answer."""
    tokenizer.save(folder)
    write_json(folder / "generation_config.json", _special_ids(tokenizer))


@contextlib.contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """An empty folder on the same disk; what a killed run left there is thrown away."""
    staged = folder / ".saving"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    try:
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _move_in(staged: Path, folder: Path) -> None:
    new = {path.name for path in staged.iterdir()}
    mode = (staged / "README.md").stat().st_mode
    for shard in staged.glob("*.safetensors"):
        shard.chmod(mode)  # safetensors makes its files readable by their owner alone
    for path in staged.iterdir():
        os.replace(path, folder / path.name)
    # Shards of a former model would be read as part of this one.
    for path in (*folder.glob("*.safetensors"), folder / INDEX):
        if path.name not in new:
            path.unlink(missing_ok=True)
    fsync_folder(folder)


def _layout(model: Model | TwoTower, model_type: str) -> Layout:
    if not model_type:
        return architecture_of(model.config).layout("hf")
    chosen = architecture(model_type)
    if not chosen.expresses(model.config, "hf"):
        raise UserError(f"{model_type} has no words for this model's config: leave model_type out")
    return chosen.layout("hf")


def _state(model: Model | TwoTower, layout: Layout) -> dict[str, torch.Tensor]:
    """The parameters by their Hugging Face names, float32 on the CPU."""
    state = model.state_dict()
    plain = skeleton(model.config).state_dict()
    if odd := sorted(state.keys() ^ plain.keys()):
        raise UserError(
            f"a packed or adapted model can't be saved as safetensors ({len(odd)} parameters are "
            f"not plain, first {odd[0]}): load it without packed=True, or merge its adapters"
        )
    ours = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in state.items()}
    theirs = to_foreign(ours, model.config, layout)
    return {name: tensor.contiguous() for name, tensor in theirs.items()}


def _save_weights(state: dict[str, torch.Tensor], folder: Path, shard_bytes: int) -> None:
    shards = _shards(state, shard_bytes)
    if len(shards) == 1:
        _save_shard(shards[0], folder / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _save_shard(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in state.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _shards(state: dict[str, torch.Tensor], shard_bytes: int) -> list[dict[str, torch.Tensor]]:
    """Split in the order of the layers; a tensor above the limit gets a file of its own."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    room = shard_bytes
    for name, tensor in state.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    return shards


def _save_shard(shard: dict[str, torch.Tensor], path: Path) -> None:
    # transformers insists on this key.
    atomic_save(path, lambda part: save_file(shard, part, metadata={"format": "pt"}))


def _special_ids(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The ids that generation needs; null where unknown, lest readers fall back on Llama's."""
    if tokenizer is None:
        return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    ends = {tokenizer.special_tokens.get(token) for token in _END_TOKENS}
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": sorted(i for i in ends | {tokenizer.eos_token_id} if i is not None) or None,
        "pad_token_id": tokenizer.pad_token_id,
    }
