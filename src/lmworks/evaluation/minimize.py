"""BFGS for many small problems at once: one array holds them all, a row each.

A fit from many beginnings, or to many resamples, is hundreds of problems of five unknowns. Together
they cost little more than one of them, and each may take the iterations that it needs: stopping
early is what spoiled the published fit of Hoffmann et al. 2022, see Besiroglu et al. 2024.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# (P, K) points and (P,) numbers of the problems that they belong to -> (P,) values, (P, K) slopes.
Function = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

_DECREASE, _CURVATURE = 1e-4, 0.9
_TRIES = 25  # steps that a line search tries
_LEAST_GAIN = 1e-13  # of the value; a problem that gains less several times in a row has arrived
_PATIENCE = 3


def minimize(
    function: Function, starts: np.ndarray, *, num_iterations: int = 1000, tolerance: float = 1e-9
) -> tuple[np.ndarray, np.ndarray]:
    """A local minimum of each problem: (P, K) points and (P,) values.

    The line search is for the weak conditions of Wolfe, with which the method also copes with
    kinks, such as the two ends of Huber's loss nearly are.

    Args:
        starts: (P, K) float64.
        tolerance: a problem ends when no slope is larger, or no step leads down any more, but for
            rounding.
    Source: Nocedal & Wright 2006, algorithm 6.1; Lewis & Overton 2013, "Nonsmooth optimization via
        quasi-Newton methods", algorithm 2.6 (the line search).
    """
    x = np.array(starts, dtype=np.float64)
    count, size = x.shape
    everything = np.arange(count)
    value, slope = function(x, everything)
    inverse = np.tile(np.eye(size), (count, 1, 1))
    fresh = np.ones(count, dtype=bool)
    idle = np.zeros(count, dtype=int)
    active = np.isfinite(value) & (np.abs(slope).max(1) > tolerance)
    for _ in range(num_iterations):
        rows = np.flatnonzero(active)
        if not len(rows):
            break
        direction = -np.einsum("pij,pj->pi", inverse[rows], slope[rows])
        down = (direction * slope[rows]).sum(1)
        lost = ~(down < 0)  # rounding may turn a direction around: begin anew
        if lost.any():
            inverse[rows[lost]] = np.eye(size)
            direction[lost] = -slope[rows[lost]]
            down[lost] = -(slope[rows[lost]] ** 2).sum(1)
        new, new_value, new_slope, moved = _along(
            function, x[rows], value[rows], direction, down, rows
        )
        _learn(
            inverse, fresh, rows[moved], (new - x[rows])[moved], (new_slope - slope[rows])[moved]
        )
        gained = value[rows] - new_value > _LEAST_GAIN * np.abs(value[rows])
        idle[rows] = np.where(gained, 0, idle[rows] + 1)
        x[rows[moved]], value[rows[moved]] = new[moved], new_value[moved]
        slope[rows[moved]] = new_slope[moved]
        stuck = rows[~moved]
        active[stuck[fresh[stuck]]] = False
        inverse[stuck], fresh[stuck] = np.eye(size), True
        active[rows] &= (np.abs(slope[rows]).max(1) > tolerance) & (idle[rows] < _PATIENCE)
    return x, value


def _along(
    function: Function,
    x: np.ndarray,
    value: np.ndarray,
    direction: np.ndarray,
    down: np.ndarray,
    rows: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A step of each problem along its direction, and whether there was one that leads down."""
    count = len(x)
    step, low, high = np.ones(count), np.zeros(count), np.full(count, np.inf)
    new, new_value, new_slope = x.copy(), value.copy(), np.zeros_like(x)
    found = np.zeros(count, dtype=bool)
    searching = np.ones(count, dtype=bool)
    for _ in range(_TRIES):
        at = np.flatnonzero(searching)
        if not len(at):
            break
        point = x[at] + step[at, None] * direction[at]
        height, gradient = function(point, rows[at])
        enough = height <= value[at] + _DECREASE * step[at] * down[at]
        flat = (gradient * direction[at]).sum(1) >= _CURVATURE * down[at]
        # The best step so far is kept, should the search end without both conditions.
        better = at[enough]
        new[better], new_value[better] = point[enough], height[enough]
        new_slope[better], found[better] = gradient[enough], True
        searching[at[enough & flat]] = False
        high[at[~enough]] = step[at[~enough]]
        low[at[enough & ~flat]] = step[at[enough & ~flat]]
        bounded = np.isfinite(high[at])
        step[at] = np.where(bounded, (low[at] + np.where(bounded, high[at], 0)) / 2, 2 * step[at])
    return new, new_value, new_slope, found


def _learn(
    inverse: np.ndarray, fresh: np.ndarray, rows: np.ndarray, s: np.ndarray, y: np.ndarray
) -> None:
    """BFGS's update of the inverse Hessians of some problems, in place."""
    along = (s * y).sum(1)
    good = along > 1e-12 * np.sqrt((s * s).sum(1) * (y * y).sum(1))
    rows, s, y, along = rows[good], s[good], y[good], along[good]
    if not len(rows):
        return
    first = fresh[rows]
    scale = along[first] / (y[first] ** 2).sum(1)
    inverse[rows[first]] = scale[:, None, None] * np.eye(s.shape[1])
    fresh[rows] = False
    h = inverse[rows]
    hy = np.einsum("pij,pj->pi", h, y)
    yhy = (y * hy).sum(1)
    outer = np.einsum("pi,pj->pij", s, s)
    cross = np.einsum("pi,pj->pij", hy, s)
    gain = ((along + yhy) / along**2)[:, None, None]
    inverse[rows] = h + gain * outer - (cross + cross.transpose(0, 2, 1)) / along[:, None, None]
