"""The best that is here: codes, scales and shifts solved for together; see `block_solver`.

It begins with the scales that suit the importance of the inputs, takes codes with error feedback,
and then moves codes, scales and shifts in turns, each to where the outputs are nearest.
"""

from __future__ import annotations

import numpy as np

from lmworks.compression.block_rows import BlockRows
from lmworks.compression.methods.base import Matrix
from lmworks.compression.methods.imatrix import round_by_importance

_DAMPING = 0.1
_SWEEPS = 4


def solve_matrix(matrix: Matrix, kind: str) -> np.ndarray:
    """The bytes; without inputs those of `imatrix` for inputs that are all equal."""
    from lmworks.compression.block_solver import solve

    raw = round_by_importance(matrix, kind)
    if matrix.inputs is None or matrix.inputs.moment is None:
        return raw
    blocks = BlockRows.of_bytes(raw, kind)
    damping = matrix.damping or _DAMPING
    solve(blocks, matrix.weight, matrix.inputs.moment, damping=damping, sweeps=_SWEEPS)
    return blocks.raw()
