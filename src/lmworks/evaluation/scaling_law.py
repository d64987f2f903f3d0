"""Loss as a law of parameters and tokens, L = E + A / N^alpha + B / D^beta, and what follows.

`fit` is approach 3 of Hoffmann et al. 2022 (Chinchilla, arXiv 2203.15556, section 3.3 and appendix
D.2): Huber's loss on the logarithm, from many beginnings. `isoflop` is approach 2 (section 3.2): a
parabola through the losses of one budget. Sums are kept and stops are tight, as Besiroglu et al.
2024 (arXiv 2404.10102) found that the published fit had averaged and stopped early. Differs: the
beginnings are laid around the data instead of over a fixed grid, and the unknowns are those at the
middle of the data, so that one does not stand for another.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmworks.core.errors import UserError
from lmworks.evaluation.minimize import minimize
from lmworks.evaluation.statistics import Interval

HUBER = 1e-3
MIN_RUNS, MIN_LEVELS = 8, 3  # five unknowns, and three numbers more to tell how well they fit
_FIRST, _KEPT = 40, 4  # steps from every beginning, and beginnings that are followed to the end


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScalingLaw:
    """The five numbers of the law."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: Any, tokens: Any) -> Any:
        """What the law foretells, for numbers or arrays."""
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta

    def optimum(self, flops: float) -> tuple[float, float]:
        """The parameters and tokens of the least loss with 6 N D = `flops`.

        Source: Hoffmann et al. 2022, equation 4.
        """
        total = self.alpha + self.beta
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / total)
        parameters = ratio * (flops / 6) ** (self.beta / total)
        return parameters, flops / 6 / parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """A law, how far it is from the runs, and laws of resampled runs.

    Attributes:
        residuals: (N,) logarithms of measured over foretold losses.
        resampled: laws that the same runs could have led to.
        notes: what the runs can't tell.
    """

    law: ScalingLaw
    residuals: np.ndarray
    resampled: tuple[ScalingLaw, ...]
    notes: tuple[str, ...]

    def interval(self, name: str) -> Interval:
        """95 % of the resampled values of one of the five numbers."""
        values = [getattr(law, name) for law in self.resampled]
        low, high = np.quantile(values, [0.025, 0.975])
        return Interval(getattr(self.law, name), float(low), float(high))

    def predict(self, parameters: float, tokens: float, *, seed: int = 0) -> Interval:
        """The loss of a run that was not made: where it lies in 95 of 100 cases.

        Two things are uncertain: the law (each resampled one foretells another loss) and the run
        itself (it will lie off the law as the others do). That the law holds so far out is assumed.
        """
        random = np.random.default_rng([seed, 7])
        off = _spread(self.residuals)
        losses = [
            float(law.loss(parameters, tokens)) * math.exp(draw)
            for law in self.resampled
            for draw in random.choice(off, 10)
        ]
        low, high = np.quantile(losses, [0.025, 0.975])
        return Interval(float(self.law.loss(parameters, tokens)), float(low), float(high))


def check_runs(parameters: Sequence[float], tokens: Sequence[float]) -> None:
    """Raises: UserError that says how many runs a fit needs, if these are too few."""
    sizes, lengths = len(set(parameters)), len(set(tokens))
    if len(parameters) < MIN_RUNS or sizes < MIN_LEVELS or lengths < MIN_LEVELS:
        raise UserError(
            f"{len(parameters)} runs over {sizes} sizes and {lengths} numbers of tokens are too "
            f"few for a law of five numbers, which needs at least {MIN_RUNS} runs over "
            f"{MIN_LEVELS} sizes and {MIN_LEVELS} numbers of tokens: add widths or "
            "budgets, or raise --flops"
        )


def fit(
    parameters: Sequence[float] | np.ndarray,
    tokens: Sequence[float] | np.ndarray,
    losses: Sequence[float] | np.ndarray,
    *,
    num_resamples: int = 200,
    seed: int = 0,
) -> Fit:
    """The law that lies nearest to some runs.

    Args:
        parameters, tokens, losses: (N,), all above 0.
        num_resamples: laws to fit again, each to the first one's losses with residuals drawn anew
            (Efron & Tibshirani 1993, section 9.5).
    Raises: UserError for too few runs or a number that is not above 0.
    """
    n, d, measured = (np.asarray(v, dtype=np.float64) for v in (parameters, tokens, losses))
    check_runs(n.tolist(), d.tolist())
    for name, values in (("parameters", n), ("tokens", d), ("losses", measured)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise UserError(f"a law of {name} needs them finite and above 0")
    problem = _Problem(n, d)
    target = np.log(measured)
    best = problem.solve(target[None], problem.starts(measured)[None])[0]
    law = problem.law(best)
    residuals = target - np.log(law.loss(n, d))
    random = np.random.default_rng([seed, 5])
    draws = random.choice(_spread(residuals), (num_resamples, len(n)))
    again = np.log(law.loss(n, d)) + draws
    near = best + np.stack([np.zeros(5), *0.3 * np.random.default_rng(5).standard_normal((3, 5))])
    solved = problem.solve(again, np.tile(near, (num_resamples, 1, 1)))
    resampled = tuple(problem.law(x) for x in solved)
    return Fit(
        law=law, residuals=residuals, resampled=resampled, notes=_notes(law, resampled, measured)
    )


class _Problem:
    """Unknowns (a, b, e, alpha, beta): the logarithms of the three terms at the data's middle."""

    def __init__(self, parameters: np.ndarray, tokens: np.ndarray) -> None:
        self._middle = np.log(parameters).mean(), np.log(tokens).mean()
        self._n = np.log(parameters) - self._middle[0]
        self._d = np.log(tokens) - self._middle[1]

    def starts(self, losses: np.ndarray) -> np.ndarray:
        """(S, 5): every split of the loss between the terms with every pair of powers."""
        level = float(np.median(losses))
        rows = []
        for rest, first, alpha, beta in itertools.product(
            (0.1, 0.4, 0.8), (0.2, 0.5, 0.8), (0.1, 0.3, 0.7, 1.2), (0.1, 0.3, 0.7, 1.2)
        ):
            moving = (1 - rest) * level
            terms = (first * moving, (1 - first) * moving, rest * level)
            rows.append([*map(math.log, terms), alpha, beta])
        return np.array(rows)

    def solve(self, targets: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """The best point of each row of targets: (R, N) and (R, S, 5) -> (R, 5)."""
        rows, each, size = starts.shape
        owner = np.repeat(np.arange(rows), each)

        def function(x: np.ndarray, problems: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return self._value(x, targets[owner[problems]])

        # From everywhere a few steps, then the best of them to the end.
        points, values = minimize(function, starts.reshape(-1, size), num_iterations=_FIRST)
        values = np.where(np.isfinite(values), values, np.inf).reshape(rows, each)
        kept = np.argsort(values, axis=1)[:, :_KEPT]
        points = np.take_along_axis(points.reshape(rows, each, size), kept[:, :, None], axis=1)
        owner = np.repeat(np.arange(rows), kept.shape[1])
        points, values = minimize(function, points.reshape(-1, size))
        values = np.where(np.isfinite(values), values, np.inf).reshape(rows, -1)
        found = points.reshape(rows, -1, size)
        best: np.ndarray = found[np.arange(rows), values.argmin(1)]
        return best

    def _value(self, x: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Huber's loss in units of its own width, (P,), and its slopes, (P, 5)."""
        a, b, e, alpha, beta = (x[:, i, None] for i in range(5))
        with np.errstate(over="ignore", invalid="ignore"):
            terms = np.stack([a - alpha * self._n, b - beta * self._d, e + 0 * self._n])
            top = terms.max(0)
            shares = np.exp(terms - top)  # (3, P, N)
            whole = shares.sum(0)
            off = (top + np.log(whole) - targets) / HUBER
            size = np.abs(off)
            value = np.where(size <= 1, off * off / 2, size - 0.5).sum(1)
            pull = np.clip(off, -1, 1) / HUBER
            first, second, third = shares / whole * pull
        slopes = [first, second, third, -first * self._n, -second * self._d]
        return value, np.stack([s.sum(1) for s in slopes], axis=1)

    def law(self, x: np.ndarray) -> ScalingLaw:
        a, b, e, alpha, beta = map(float, x)
        return ScalingLaw(
            E=_exp(e),
            A=_exp(a + alpha * self._middle[0]),
            B=_exp(b + beta * self._middle[1]),
            alpha=alpha,
            beta=beta,
        )


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


def _spread(residuals: np.ndarray) -> np.ndarray:
    """Residuals as wide as errors are: a fit of five numbers draws itself near to its runs."""
    count = len(residuals)
    wide: np.ndarray = (residuals - residuals.mean()) * math.sqrt(count / (count - 5))
    return wide


def _notes(law: ScalingLaw, resampled: Sequence[ScalingLaw], losses: np.ndarray) -> tuple[str, ...]:
    """What the runs don't tell, so that nobody reads more out of the law than is in it."""
    notes = []
    nothing = 0.02 * losses.min()
    floors = np.array([each.E for each in (law, *resampled)])
    if floors[0] < nothing or (floors < nothing).mean() > 0.1:
        notes.append(
            "the loss that stays (E) is not told from 0: these runs still fall like plain powers, "
            "so that far beyond them the law foretells too little"
        )
    for name, what in (("alpha", "more parameters"), ("beta", "more tokens")):
        power = getattr(law, name)
        if power < 0.02:
            notes.append(f"{what} do not lower the loss of these runs ({name} = {power:.3f})")
        elif power > 2.5:
            notes.append(f"{what} lower the loss in a jump and no more ({name} = {power:.2f})")
        else:
            low, high = np.quantile([getattr(each, name) for each in resampled], [0.025, 0.975])
            if high > 3 * max(low, 1e-9):
                notes.append(
                    f"{name} could be anything from {low:.2f} to {high:.2f}: more runs, or a wider "
                    "range of them, are needed"
                )
    return tuple(notes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IsoFlop:
    """The runs of one budget.

    Attributes:
        parameters, loss: at the bottom of the parabola.
        note: why that is not to be trusted, if so.
        curve: coefficients of the parabola over the logarithm of the parameters, highest first.
    """

    flops: float
    parameters: float
    loss: float
    note: str
    curve: tuple[float, float, float]

    @property
    def tokens(self) -> float:
        """What the budget leaves for the tokens."""
        return self.flops / 6 / self.parameters


def isoflop(flops: float, parameters: Sequence[float], losses: Sequence[float]) -> IsoFlop:
    """The parabola through the losses of one budget, and its bottom.

    Raises: UserError for fewer than three sizes.
    """
    if len(set(parameters)) < MIN_LEVELS:
        raise UserError(
            f"budget {flops:.3g}: {len(set(parameters))} sizes, and a parabola needs {MIN_LEVELS}"
        )
    x = np.log(np.asarray(parameters, dtype=np.float64))
    curve = np.polyfit(x, np.asarray(losses, dtype=np.float64), 2)
    bottom = -curve[1] / (2 * curve[0]) if curve[0] > 0 else x[int(np.argmin(losses))]
    note = ""
    if curve[0] <= 0:
        note = "the losses bend downwards: no best size is shown"
    elif not x.min() <= bottom <= x.max():
        side = "smaller" if bottom < x.min() else "larger"
        note = f"the best size lies outside the runs: try {side} ones"
        bottom = np.clip(bottom, x.min(), x.max())
    return IsoFlop(
        flops=flops,
        parameters=float(np.exp(bottom)),
        loss=float(np.polyval(curve, bottom)),
        note=note,
        curve=(float(curve[0]), float(curve[1]), float(curve[2])),
    )


def power_of_compute(profiles: Sequence[IsoFlop]) -> float | None:
    """The power a of N ~ C^a through the bottoms that are to be trusted; None below two of them."""
    trusted = [p for p in profiles if not p.note]
    if len(trusted) < 2:
        return None
    x = np.log([p.flops for p in trusted])
    return float(np.polyfit(x, np.log([p.parameters for p in trusted]), 1)[0])
