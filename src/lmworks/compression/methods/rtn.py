"""Round to nearest: what is known of the inputs is not looked at."""

from __future__ import annotations

import numpy as np

from lmworks.compression.methods.base import Matrix
from lmworks.core import quantizers


def round_to_nearest(matrix: Matrix, kind: str) -> np.ndarray:
    """The bytes that ggml's reference code writes."""
    return quantizers.quantize(matrix.weight, kind, name=matrix.name)
