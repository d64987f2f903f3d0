"""SmoothQuant: the far larger channels of activations become smaller, and their weights larger.

An activation channel j is divided by s_j = max|x_j|^a / max|w_j|^(1-a), and the columns of the
matrices that read it are multiplied by it; a norm before them takes the division, so that nothing
is computed for it. With a = 0.5 the difficulty is shared evenly.

Source: Xiao et al. 2022, arXiv 2211.10438, equation 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lmworks.compression.folding import Fold, apply_fold
from lmworks.models.norms import LayerNorm, RMSNorm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lmworks.compression.layer_inputs import LayerInputs
    from lmworks.models.model import Model

_LEAST = 1e-5


def smoothing_scale(largest: np.ndarray, weights: Sequence[np.ndarray], share: float) -> np.ndarray:
    """What each column of the weights is multiplied by, (n,) float32.

    Args:
        largest: (n,) the largest |x| of each channel. weights: (rows, n) each.
        share: how much of the difficulty moves into the weights, from 0 to 1.
    """
    of_weights = np.maximum.reduce([np.abs(w).max(axis=0) for w in weights])
    x, w = np.maximum(largest, _LEAST), np.maximum(of_weights, _LEAST)
    scale = np.maximum(x**share / w ** (1 - share), _LEAST)
    dead = (largest <= _LEAST) | (of_weights <= _LEAST)
    return np.where(dead, 1.0, scale).astype(np.float32)


def smooth_layer(
    model: Model, folds: Sequence[Fold], inputs: dict[str, LayerInputs], share: float
) -> dict[str, LayerInputs]:
    """Smooth what the norms of a layer give; the inputs of its modules, as they are then.

    Args:
        folds: of the layer. inputs: of its linear modules, by path.
    """
    inputs = dict(inputs)
    for fold in folds:
        giver: Any = model.get_submodule(fold.giver)
        if not isinstance(giver, RMSNorm | LayerNorm) or fold.takers[0] not in inputs:
            continue
        takers: list[Any] = [model.get_submodule(path) for path in fold.takers]
        weights = [taker.weight.detach().numpy() for taker in takers]
        scale = smoothing_scale(inputs[fold.takers[0]].largest, weights, share)
        apply_fold(model, fold, scale)
        for path in fold.takers:
            inputs[path] = inputs[path].divided(fold.spread(scale))
    return inputs
