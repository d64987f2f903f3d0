"""A merge as a Hugging Face folder, written as it is made: memory is that of a few bands of rows.

Sizes are known from the plan, so each shard's header is written first and its tensors follow. A
shard that an earlier run finished is left as it is.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError
from lmworks.core.files import write_json, write_text
from lmworks.core.progress import track
from lmworks.core.safetensors_files import NewTensor, write_safetensors
from lmworks.models.merging.execute import bands
from lmworks.models.merging.plan import COUNTS, Layer, Output, Plan, of_layers
from lmworks.models.merging.sources import NAMES, GGUFSource, model_config
from lmworks.models.merging.tokenizers import has_tokenizer

if TYPE_CHECKING:
    from lmworks.models.config import ModelConfig

_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"),
    *("merges.txt", "tokenizer.model", "spiece.model", "added_tokens.json", "vocab.txt"),
    *("chat_template.jinja", "chat_template.json", "generation_config.json", "tekken.json"),
)


def write_folder(
    plan: Plan, folder: Path, *, seed: int, shard_bytes: int, chat_template: str = ""
) -> None:
    """Make every tensor and write config, weights, tokenizer.

    Args:
        seed: of the masks that are drawn.
        shard_bytes: the largest file of weights; a tensor above it gets one of its own.
        chat_template: Jinja, instead of the lead's.
    Raises: UserError for what `bands` refuses, or a disk that can't be written.
    """
    shards = _shards(plan.outputs, shard_bytes)
    weight_map: dict[str, str] = {}
    with track("merging", total=len(plan.outputs)) as bar:
        for number, shard in enumerate(shards, 1):
            file = "model.safetensors"
            if len(shards) > 1:
                file = f"model-{number:05}-of-{len(shards):05}.safetensors"
            weight_map |= dict.fromkeys((output.name for output in shard), file)
            if not (folder / file).is_file():
                write_safetensors(
                    folder / file, [_new(plan, output, seed, bar.advance) for output in shard]
                )
    if len(shards) > 1:
        total = sum(output.num_bytes for output in plan.outputs)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / "model.safetensors.index.json", index)
    write_json(folder / "config.json", config_values(plan))
    _write_tokenizer(plan, folder, chat_template)


def _shards(outputs: Sequence[Output], shard_bytes: int) -> list[list[Output]]:
    shards: list[list[Output]] = [[]]
    room = shard_bytes
    for output in outputs:
        if output.num_bytes > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(output)
        room -= output.num_bytes
    return shards


def _new(plan: Plan, output: Output, seed: int, done: Any) -> NewTensor:
    def pieces() -> Iterator[memoryview]:
        import torch

        for rows in bands(plan, output, seed=seed):
            yield rows.contiguous().reshape(-1).view(torch.uint8).numpy().data
        done()

    return NewTensor(
        name=output.name, dtype=NAMES[output.stored], shape=output.shape, pieces=pieces()
    )


def config_values(plan: Plan) -> dict[str, Any]:
    """config.json of the result: the lead's, with the layers and the type that it has now."""
    lead = plan.lead
    if isinstance(lead, GGUFSource):
        from lmworks.models.architectures.base import architecture_of

        config = layered_config(plan)
        values = dict(architecture_of(config).layout("hf").config_dict(config))
    else:
        values = dict(lead.settings)
        if plan.layers is not None:
            _set_layers(values, plan.layers)
    types = Counter(str(output.stored) for output in plan.outputs if not output.copied)
    word = types.most_common(1)[0][0].removeprefix("torch.")
    if "dtype" in values or "torch_dtype" not in values:
        values["dtype"] = word
    if "torch_dtype" in values:
        values["torch_dtype"] = word
    return values


def layered_config(plan: Plan) -> ModelConfig:
    """The lead's config with the layers of the result. Raises: UserError as `model_config`."""
    config = model_config(plan.lead)
    if plan.layers is None:
        return config
    configs = {source.reference: model_config(source) for source, _ in plan.layers}
    layers = tuple(configs[source.reference].layers[number] for source, number in plan.layers)
    return dataclasses.replace(config, layers=layers)


def _set_layers(values: dict[str, Any], layers: tuple[Layer, ...]) -> None:
    """The number of layers, and every list that has an entry for each."""
    before = {values[key] for key in COUNTS if key in values}
    for key, value in values.items():
        if key in COUNTS:
            values[key] = len(layers)
        elif isinstance(value, list) and len(value) in before:
            values[key] = of_layers(layers, key, lambda source: source.settings) or value


def _write_tokenizer(plan: Plan, folder: Path, chat_template: str) -> None:
    lead = plan.lead
    if isinstance(lead, GGUFSource):
        from lmworks.models.save import save_tokenizer
        from lmworks.tokenizers.load import load_tokenizer

        if has_tokenizer(lead):
            save_tokenizer(load_tokenizer(lead.path), folder)
    else:
        for name in _TOKENIZER_FILES:
            if (lead.path / name).is_file():
                shutil.copyfile(lead.path / name, folder / name)
    if chat_template:
        if "{" not in chat_template:
            raise UserError(
                f"chat_template {chat_template!r} is no Jinja: give the template itself"
            )
        write_text(folder / "chat_template.jinja", chat_template)
