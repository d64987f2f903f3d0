"""The best that is here: codes, scales and shifts solved for together; see `block_solver`.

It begins with the scales that suit the importance of the inputs, takes codes with error feedback,
and then moves codes, scales and shifts in turns, each to where the outputs are nearest.
"""

from __future__ import annotations

import numpy as np

from lmworks.compression.methods.base import Matrix
from lmworks.compression.methods.imatrix import start

_DAMPING = 0.1
_SWEEPS = 4


def solve_matrix(matrix: Matrix, kind: str) -> np.ndarray:
    """The bytes; without inputs those of `imatrix` for inputs that are all equal."""
    from lmworks.compression.block_solver import solve

    blocks = start(matrix, kind)
    if matrix.inputs is None or matrix.inputs.moment is None:
        return blocks.raw()
    damping = matrix.damping or _DAMPING
    solve(blocks, matrix.weight, matrix.inputs.moment, damping=damping, sweeps=_SWEEPS)
    return blocks.raw()
