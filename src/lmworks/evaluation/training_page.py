"""Trainings as a page: losses, gradients and the objective's figures over steps, and what happened.

A training leaves `history.json` beside its model. One artifact gives its own curves; several are
laid over each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.files import read_json, write_text
from lmworks.core.stages import Artifact
from lmworks.evaluation.plots import CurvePicture, curve_picture

HISTORY = "history.json"
_MOST_EVENTS = 200
Curves = list[tuple[str, Sequence[float], Sequence[float]]]


def write_training_page(folders: Sequence[str | Path], out: Path) -> None:
    """Write one self-contained page about the trainings in `folders`.

    Raises: UserError for a folder that holds no training.
    """
    write_text(out, training_page([Artifact.load(folder) for folder in folders]))


def training_page(artifacts: Sequence[Artifact]) -> str:
    """The page as text. Raises: UserError for an artifact without a history."""
    from lmworks.evaluation.pages import render_page

    runs = {name: _history(a) for name, a in zip(_names(artifacts), artifacts, strict=True)}
    return render_page(
        "training.html.jinja",
        title=" and ".join(runs),
        pictures=[(title, note, p) for title, note, p in _pictures(runs) if p is not None],
        runs=[
            (name, _figures(a), _events(runs[name]))
            for name, a in zip(runs, artifacts, strict=True)
        ],
    )


def _names(artifacts: Sequence[Artifact]) -> list[str]:
    """The folders' names; whole paths where two would be the same."""
    short = [a.path.resolve().name for a in artifacts]
    return short if len(set(short)) == len(short) else [str(a.path) for a in artifacts]


def _history(artifact: Artifact) -> dict[str, Any]:
    path = artifact.path / HISTORY
    if not path.is_file():
        raise UserError(f"{artifact.path} is no training: it holds no {HISTORY}")
    history = read_json(path, "history of a training")
    if not isinstance(history, dict) or not isinstance(history.get("loss"), list):
        raise UserError(f"{path} is no history of a training")
    return history


def _pictures(runs: Mapping[str, Any]) -> list[tuple[str, str, CurvePicture | None]]:
    """(title, note, picture) of losses, gradient norms and each of the objective's figures."""
    losses: Curves = []
    for name, history in runs.items():
        losses.append((_label(name, "training", runs), *_steps(history["loss"])))
        if history.get("heldout_loss"):
            label = _label(name, "held out", runs)
            losses.append((label, history["heldout_step"], history["heldout_loss"]))
    drawn = [
        ("Loss", "As the objective measures it; for text, nats per token.", curve_picture(losses)),
        (
            "Norm of the gradient",
            "Before it is scaled down to the largest that is allowed.",
            curve_picture([(n, *_steps(h.get("grad_norm", []))) for n, h in runs.items()]),
        ),
    ]
    figures = dict.fromkeys(f for h in runs.values() for f in h.get("metrics", {}))
    for figure in figures:
        curves = [
            (name, *_steps(history["metrics"][figure]))
            for name, history in runs.items()
            if figure in history.get("metrics", {})
        ]
        drawn.append((figure, "A figure of the objective, of each step.", curve_picture(curves)))
    return drawn


def _steps(values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """A column with its steps; numbers that were none are left out by the picture."""
    return range(len(values)), [float("nan") if v is None else v for v in values]


def _label(run: str, what: str, runs: Mapping[str, Any]) -> str:
    return what if len(runs) == 1 else f"{run}: {what}"


def _figures(artifact: Artifact) -> list[tuple[str, str]]:
    """The manifest's figures as text."""
    rows = []
    for name, value in artifact.metrics.items():
        if isinstance(value, bool | int | float | str):
            shown = f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
            rows.append((name, value if isinstance(value, str) else shown))
    return rows


def _events(history: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(history.get("events", []))[:_MOST_EVENTS]
