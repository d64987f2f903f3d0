"""What a folder of sentence-transformers adds to its model: how states become one vector.

`modules.json` lists steps. Read are the model itself, a pooling by the first, last or mean state,
and the division by the vector's length; whatever else a list holds is refused, since the vectors
would be others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmworks
from lmworks.core.errors import UserError
from lmworks.core.files import read_json, write_json
from lmworks.models.config import (
    EmbeddingHeadConfig,
    FirstPooling,
    LastPooling,
    LMHeadConfig,
    MeanPooling,
    Pooling,
)

if TYPE_CHECKING:
    from lmworks.models.model import Model
    from lmworks.tokenizers.base import Tokenizer

_LIST = "modules.json"
_POOLINGS: dict[str, Pooling] = {
    "cls_token": FirstPooling(),
    "mean_tokens": MeanPooling(),
    "lasttoken": LastPooling(),
}
_PREFIX = "pooling_mode_"


def sentence_head(folder: Path) -> EmbeddingHeadConfig | None:
    """The head that the folder's steps make, or None for a folder that lists none.

    Raises: UserError for a step or a pooling that is not supported.
    """
    if not (folder / _LIST).is_file():
        return None
    steps = read_json(folder / _LIST, "list of steps")
    if not isinstance(steps, list):
        raise UserError(f"{folder / _LIST} must be a list of steps")
    kinds = [_kind(step) for step in steps]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UserError(
            f"{folder / _LIST}: the steps {', '.join(kinds)} are not supported: known: "
            "Transformer, Pooling, Normalize; without the file the model alone is loaded"
        )
    return EmbeddingHeadConfig(pooling=_pooling(folder, steps[1]), normalize=len(kinds) == 3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentenceSettings:
    """How the folder wants texts to be read.

    Attributes:
        max_length: tokens of a text, or None where the folder names no limit.
        lower: in lower case.
        prompts: what goes before a text, by name.
        default_prompt: the name of the prompt that texts get unless told otherwise, or "".
    """

    max_length: int | None = None
    lower: bool = False
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_prompt: str = ""


def sentence_settings(folder: Path) -> SentenceSettings:
    """What the folder's two files of settings say; nothing, where there are none.

    Raises: UserError for settings that are of another kind than they should be.
    """
    values: dict[str, Any] = {}
    for name in ("sentence_bert_config.json", "config_sentence_transformers.json"):
        if (where := folder / name).is_file():
            found = read_json(where, "settings of sentence-transformers")
            if not isinstance(found, Mapping):
                raise UserError(f"{where} must be an object")
            values |= found
    length, prompts = values.get("max_seq_length"), values.get("prompts") or {}
    default = values.get("default_prompt_name") or ""
    if length is not None and (not isinstance(length, int) or length < 1):
        raise UserError(f"{folder}: max_seq_length must be a number of tokens, not {length!r}")
    texts = isinstance(prompts, Mapping) and all(isinstance(p, str) for p in prompts.values())
    if not texts or not isinstance(default, str):
        raise UserError(f"{folder}: prompts must be texts by name")
    if default and default not in prompts:
        raise UserError(f"{folder}: the default prompt {default!r} is not among the prompts")
    return SentenceSettings(
        max_length=length,
        lower=values.get("do_lower_case") is True,
        prompts=prompts,
        default_prompt=default,
    )


def _kind(step: Any) -> str:
    return str(step.get("type")).rpartition(".")[2] if isinstance(step, Mapping) else repr(step)


def _pooling(folder: Path, step: Mapping[str, Any]) -> Pooling:
    place = step.get("path")
    if not isinstance(place, str) or Path(place).name != place:
        raise UserError(f"{folder / _LIST}: the path {place!r} is not a folder beside it")
    where = folder / place / "config.json"
    values = read_json(where, "pooling config")
    if not isinstance(values, Mapping):
        raise UserError(f"{where} must be an object")
    chosen = [
        str(name).removeprefix(_PREFIX)
        for name, value in values.items()
        if str(name).startswith(_PREFIX) and value is True
    ]
    if len(chosen) != 1 or chosen[0] not in _POOLINGS:
        raise UserError(
            f"{where}: pooling by {', '.join(chosen) or 'nothing'} is not supported: known: one "
            f"of {', '.join(_POOLINGS)}"
        )
    return _POOLINGS[chosen[0]]


def save_sentence_model(
    model: Model,
    folder: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    max_length: int = 0,
    card: str = "",
) -> None:
    """Write a model with a vector for a head as sentence-transformers and `load_model` read it.

    A decoder is written with its embedding for a head, since transformers has no folder of a bare
    one; who loads it as an encoder leaves that out.

    Args:
        max_length: tokens that a text is cut at; 0 takes the model's context.
    Raises: UserError for a head that has no words there, and as `save_model`.
    """
    from lmworks.models.new_head import with_head
    from lmworks.models.save import save_model

    head = model.config.head
    if not isinstance(head, EmbeddingHeadConfig) or head.size is not None:
        raise UserError("sentence-transformers has no words for this model's head")
    name = next((name for name, pooling in _POOLINGS.items() if pooling == head.pooling), "")
    if not name:
        raise UserError(f"sentence-transformers has no words for a {head.pooling.kind} pooling")
    causal = all(getattr(layer.mixer, "causal", True) for layer in model.config.layers)
    body = with_head(model, LMHeadConfig() if causal else None)
    folder = Path(folder)
    save_model(body, folder, tokenizer=tokenizer, card=card)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if head.normalize else [])]
    steps = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{kind}" if index else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = {_PREFIX + known: known == name for known in _POOLINGS}
    size = {"word_embedding_dimension": model.config.hidden_size}
    write_json(folder / "1_Pooling" / "config.json", size | modes)
    if head.normalize:
        (folder / "2_Normalize").mkdir(exist_ok=True)
    length = max_length or model.config.max_position_embeddings
    sentence = {"max_seq_length": length, "do_lower_case": False}
    write_json(folder / "sentence_bert_config.json", sentence)
    versions = {"__version__": {"lmworks": lmworks.__version__}, "similarity_fn_name": "cosine"}
    write_json(folder / "config_sentence_transformers.json", versions)
    write_json(folder / _LIST, steps)
