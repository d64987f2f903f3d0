"""Scales for the inputs that are large: each weight counts by the mean square of its input."""

from __future__ import annotations

import numpy as np

from lmworks.compression.methods.base import Matrix
from lmworks.core import quantizers

_LEAST = 1e-6  # of the mean


def round_by_importance(matrix: Matrix, kind: str) -> np.ndarray:
    """The bytes that ggml's reference code writes with an importance matrix.

    Channels that no text used count a little nevertheless: other text may use them.
    """
    importance = None if matrix.inputs is None else matrix.inputs.mean_square
    if importance is not None:
        least = _LEAST * float(importance.mean())
        importance = np.maximum(importance, least) if least > 0 else None
    return quantizers.quantize(matrix.weight, kind, importance=importance, name=matrix.name)
