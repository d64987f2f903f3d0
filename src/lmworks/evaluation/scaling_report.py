"""The page of a scaling series: the law, the profiles of its budgets, the run that tests it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmworks.core.files import write_json
from lmworks.evaluation.report import Curve, CurvePlot, Fact, Report, plain_values, write_report
from lmworks.evaluation.report_parts import versions
from lmworks.evaluation.scaling_law import MIN_LEVELS, Fit, IsoFlop, isoflop, power_of_compute
from lmworks.evaluation.statistics import Interval

if TYPE_CHECKING:
    from lmworks.evaluation.scaling import Measured
    from lmworks.evaluation.scaling_config import ScalingConfig

Foretold = tuple[float, float, Interval]  # parameters, tokens, loss
_POINTS = 24


def profiles_of(runs: Sequence[Measured]) -> list[IsoFlop]:
    """The parabola of each budget that has sizes enough."""
    budgets: dict[float, list[Measured]] = {}
    for each in runs:
        if each.budget:
            budgets.setdefault(each.budget, []).append(each)
    return [
        isoflop(budget, [r.parameters for r in of], [r.loss for r in of])
        for budget, of in sorted(budgets.items())
        if len({r.parameters for r in of}) >= MIN_LEVELS
    ]


def verdict_of(foretold: Foretold, larger: Measured) -> str:
    """Whether the larger run lies in the interval, in words."""
    interval = foretold[2]
    where = "inside" if interval.low <= larger.loss <= interval.high else "OUTSIDE"
    return (
        f"foretold {interval.estimate:.4f} [{interval.low:.4f}, {interval.high:.4f}], measured "
        f"{larger.loss:.4f} ({larger.loss / interval.estimate - 1:+.2%}): {where} the interval"
    )


def summary(
    runs: Sequence[Measured], fit: Fit, foretold: Foretold | None, larger: Measured | None
) -> dict[str, Any]:
    """The figures that a manifest keeps."""
    law = fit.law
    found: dict[str, Any] = {
        "law": f"L = {law.E:.4g} + {law.A:.4g} / N^{law.alpha:.3f} "
        f"+ {law.B:.4g} / D^{law.beta:.3f}",
        "num_runs": len(runs),
        "intervals": {n: plain_values(fit.interval(n)) for n in ("E", "A", "B", "alpha", "beta")},
        "residual_std": float(fit.residuals.std()),
        "power_of_compute": {
            "law": law.beta / (law.alpha + law.beta),
            "isoflop": power_of_compute(profiles_of(runs)),
        },
    }
    if foretold is not None:
        found["foretold"] = {
            "parameters": foretold[0],
            "tokens": foretold[1],
            "loss": plain_values(foretold[2]),
        }
    if foretold is not None and larger is not None:
        found["measured"] = larger.loss
        found["inside"] = bool(foretold[2].low <= larger.loss <= foretold[2].high)
        found["summary"] = verdict_of(foretold, larger)
    if notes := _notes(runs, fit):
        found["notes"] = notes
    return found


def _notes(runs: Sequence[Measured], fit: Fit) -> list[str]:
    told = [f"budget {p.flops:.3g}: {p.note}" for p in profiles_of(runs) if p.note]
    return [*fit.notes, *told]


def write(
    folder: Path,
    config: ScalingConfig,
    runs: Sequence[Measured],
    fit: Fit,
    foretold: Foretold | None,
    larger: Measured | None,
) -> None:
    """Write `scaling.json`, `runs.csv`, `report.json` and `report.html`."""
    from lmworks.core.files import write_text

    everything = [*runs, larger] if larger else list(runs)
    found = summary(runs, fit, foretold, larger)
    write_json(folder / "scaling.json", {**found, "runs": plain_values(everything)})
    lines = [f"{r.parameters:.6g},{r.tokens:.6g},{r.loss:.6f},{r.budget:.6g}" for r in everything]
    write_text(folder / "runs.csv", "\n".join(["parameters,tokens,loss,budget", *lines, ""]))
    told = found.get("summary", f"{len(runs)} runs follow {found['law']}.")
    report = Report(
        title="Scaling law",
        summary=" ".join(
            [f"{told}.".replace("..", "."), *(f"{n}." for n in found.get("notes", ()))]
        ),
        facts=tuple(_facts(fit, foretold)),
        curves=tuple(_plots(runs, fit, larger)),
        versions=versions(),
    )
    write_report(folder, report)


def _facts(fit: Fit, foretold: Foretold | None) -> list[Fact]:
    facts = []
    for name in ("E", "A", "B", "alpha", "beta"):
        interval = fit.interval(name)
        value = f"{interval.estimate:.3g} ({interval.low:.3g} to {interval.high:.3g})"
        facts.append(Fact(label=name, value=value))
    facts.append(Fact(label="Off the law", value=f"{fit.residuals.std():.2%}"))
    if foretold:
        size = f"{foretold[0] / 1e6:.3g} M, {foretold[1] / 1e6:.3g} M tokens"
        facts.append(Fact(label="Foretold run", value=size))
    return facts


def _plots(runs: Sequence[Measured], fit: Fit, larger: Measured | None) -> list[CurvePlot]:
    plots = []
    profiles = profiles_of(runs)
    if profiles:
        curves = []
        for profile in profiles:
            of = sorted((r for r in runs if r.budget == profile.flops), key=lambda r: r.parameters)
            x = tuple(math.log10(r.parameters) for r in of)
            name = f"{profile.flops:.1e}"
            curves.append(Curve(name=f"{name} measured", x=x, y=tuple(r.loss for r in of)))
            grid = _grid(of[0].parameters, of[-1].parameters)
            y = tuple(
                float(fit.law.loss(n, profile.flops / 6 / n)) for n in (10**value for value in grid)
            )
            curves.append(Curve(name=f"{name} law", x=grid, y=y))
        plots.append(
            CurvePlot(
                title="One budget over many sizes (IsoFLOP)",
                x_label="log10 of N",
                y_label="Loss",
                curves=tuple(curves),
            )
        )
    least, most = min(r.flops for r in runs), max(r.flops for r in runs)
    most = max(most, larger.flops) if larger else most
    grid = _grid(least, most)
    best = [fit.law.loss(*fit.law.optimum(10**value)) for value in grid]
    curves = [Curve(name="best of the law", x=grid, y=tuple(map(float, best)))]
    reached: list[Measured] = []
    for each in sorted(runs, key=lambda r: r.flops):
        if not reached or each.loss < reached[-1].loss:
            reached.append(each)
    if larger:
        reached.append(larger)
    curves.append(
        Curve(
            name="best run so far",
            x=tuple(math.log10(each.flops) for each in reached),
            y=tuple(each.loss for each in reached),
        )
    )
    plots.append(
        CurvePlot(
            title="Loss over operations",
            x_label="log10 of operations",
            y_label="Loss",
            curves=tuple(curves),
        )
    )
    return plots


def _grid(low: float, high: float) -> tuple[float, ...]:
    first, last = math.log10(low), math.log10(high)
    return tuple(first + (last - first) * i / (_POINTS - 1) for i in range(_POINTS))
