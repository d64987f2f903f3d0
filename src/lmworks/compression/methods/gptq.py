"""GPTQ on the grid of a ggml type: error feedback over the inverse second moment of the inputs.

Scales are those of plain rounding and stay; columns with large inputs come first.
Source: Frantar et al. 2022, arXiv 2210.17323, algorithm 1, with its order by the diagonal.
"""

from __future__ import annotations

import numpy as np

from lmworks.compression.block_rows import BlockRows
from lmworks.compression.methods.base import Matrix
from lmworks.compression.methods.rtn import round_to_nearest

_DAMPING = 0.01  # as published


def round_with_feedback(matrix: Matrix, kind: str) -> np.ndarray:
    """The bytes; without inputs those of `rtn`."""
    from lmworks.compression.block_solver import solve

    raw = round_to_nearest(matrix, kind)
    if matrix.inputs is None or matrix.inputs.moment is None:
        return raw
    blocks = BlockRows.of_bytes(raw, kind)
    damping = matrix.damping or _DAMPING
    solve(blocks, matrix.weight, matrix.inputs.moment, damping=damping, sweeps=0)
    return blocks.raw()
