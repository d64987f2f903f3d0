"""AWQ on the grid of a ggml type: channels whose inputs are large get finer steps.

A column that is multiplied by s and whose input is divided by s gives the same, but is rounded s
times as finely beside the others of its block. s is the input's size to a power that is searched
for, pair by pair, by the error of the outputs; the scale moves into the norm, the values or the up
projection before (`folding`), so that the file needs nothing new to run.
Source: Lin et al. 2023, AWQ, arXiv 2306.00978, section 3.2; the search is theirs, on second moments
of the inputs instead of the inputs themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lmworks.compression.folding import Fold, apply_fold, find_folds, require_folds
from lmworks.compression.methods.base import Matrix
from lmworks.compression.methods.imatrix import round_by_importance
from lmworks.core.ggml_types import TYPES
from lmworks.core.gguf import GGUFTensor, dequantize

if TYPE_CHECKING:
    from lmworks.compression.layer_inputs import LayerInputs
    from lmworks.models.model import Model

_POWERS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
_ROWS = 256  # of each matrix, on which powers are compared


def rescale_layer(
    model: Model, index: int, inputs: dict[str, LayerInputs], kind: str
) -> dict[str, LayerInputs]:
    """Move the best scales within layer `index`, in place; see `Rescale`.

    Raises: UserError if no channel of the model can be rescaled.
    """
    folds = find_folds(model)
    require_folds(folds)
    found = dict(inputs)
    for fold in folds.of_layer(index):
        if all(path in found and _fits(model, path, kind) for path in fold.takers):
            scale = _best(model, fold, found, kind)
            apply_fold(model, fold, scale)
            for path in fold.takers:
                found[path] = found[path].divided(fold.spread(scale))
    return found


def _weight(model: Model, path: str) -> np.ndarray:
    weight: np.ndarray = model.get_parameter(f"{path}.weight").detach().numpy()
    return weight


def _fits(model: Model, path: str, kind: str) -> bool:
    return _weight(model, path).shape[1] % TYPES[kind].size == 0


def _best(model: Model, fold: Fold, inputs: dict[str, LayerInputs], kind: str) -> np.ndarray:
    """The scale (size,) with the least error of the takers' outputs."""
    sizes = fold.gathered(np.sqrt(inputs[fold.takers[0]].mean_square))
    sizes = np.maximum(sizes, max(float(sizes.max()), 1e-12) * 1e-4)
    best, least = np.ones(fold.size, dtype=np.float32), np.inf
    for power in _POWERS:
        scale = sizes**power
        scale = (scale / np.sqrt(scale.max() * scale.min())).astype(np.float32)
        error = sum(
            _error(model, path, inputs[path], fold.spread(scale), kind) for path in fold.takers
        )
        if error < least:
            best, least = scale, error
    return best


def _error(model: Model, path: str, inputs: LayerInputs, scale: np.ndarray, kind: str) -> float:
    weight = _weight(model, path)
    weight = weight[:: max(1, len(weight) // _ROWS)]
    scaled = Matrix(name=path, weight=weight * scale, inputs=inputs.divided(scale))
    raw = round_by_importance(scaled, kind)
    tensor = GGUFTensor(name=path, shape=weight.shape, type=kind, data=raw.reshape(-1))
    return scaled.output_error(dequantize(tensor) - scaled.weight)
