"""What a folder of sentence-transformers adds to its model: how states become one vector.

`modules.json` lists steps. Read are the model itself, a pooling by the first, last or mean state,
and the division by the vector's length; whatever else a list holds is refused, since the vectors
would be others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.files import read_json
from lmworks.models.config import (
    EmbeddingHeadConfig,
    FirstPooling,
    LastPooling,
    MeanPooling,
    Pooling,
)

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
