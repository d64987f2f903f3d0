"""Scales for the inputs that are large: each weight counts by the mean square of its input."""

from __future__ import annotations

import numpy as np

from lmworks.compression.block_rows import BlockRows
from lmworks.compression.methods.base import Matrix
from lmworks.compression.methods.rtn import round_to_nearest
from lmworks.compression.scale_search import search_scales


def round_by_importance(matrix: Matrix, kind: str) -> np.ndarray:
    """The blocks whose error, weighted by importance, is least among those that are tried."""
    return start(matrix, kind).raw()


def start(matrix: Matrix, kind: str) -> BlockRows:
    """The same as rows that a solver goes on with."""
    blocks = BlockRows.of_bytes(round_to_nearest(matrix, kind), kind)
    importance = None if matrix.inputs is None else matrix.inputs.mean_square
    search_scales(blocks, matrix.weight, importance)
    return blocks
