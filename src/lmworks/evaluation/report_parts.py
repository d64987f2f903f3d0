"""Parts of a report out of what stages leave behind: `lmworks.json` and `history.json`."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import lmworks
from lmworks.evaluation.report import Curve, CurvePlot, StageCost, StageLineage


def lineage_of(manifest: Mapping[str, Any]) -> StageLineage:
    """What an artifact's manifest says about where it comes from."""
    return StageLineage(
        stage=str(manifest["stage"]),
        sha256=str(manifest["sha256"]),
        config=manifest["config"],
        inputs={name: str(entry["sha256"]) for name, entry in manifest["inputs"].items()},
    )


def cost_of(
    manifest: Mapping[str, Any],
    folder: Path,
    *,
    per_second: float = 0.0,
    per_second_unit: str = "tokens/s",
    cached: bool = False,
) -> StageCost:
    """Time, peak memory and size on disk of an artifact. A training's own speed is taken from its
    metrics when none is given."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return StageCost(
        name=str(manifest["stage"]),
        seconds=float(manifest["seconds"]),
        peak_memory_bytes=int(manifest.get("peak_memory_bytes") or 0),
        per_second=per_second or float(manifest["metrics"].get("targets_per_s") or 0),
        per_second_unit=per_second_unit,
        artifact_bytes=sum(path.stat().st_size for path in files),
        cached=cached,
    )


def loss_plot(title: str, history: Mapping[str, Any]) -> CurvePlot:
    """The picture of a training's `history.json`: loss per step, held-out loss now and then."""
    loss, heldout = history["loss"], history["heldout_loss"]
    curves = [Curve(name="training", x=tuple(range(1, len(loss) + 1)), y=tuple(loss))]
    if heldout:
        steps = tuple(history["heldout_step"])
        curves.append(Curve(name="held out", x=steps, y=tuple(heldout)))
    return CurvePlot(
        title=title, x_label="steps", y_label="Loss in nats per token", curves=tuple(curves)
    )


def versions() -> dict[str, str]:
    """What a run's figures depend on, with versions."""
    packages = {name: metadata.version(name) for name in ("torch", "numpy")}
    return {"lmworks": lmworks.__version__, "Python": platform.python_version(), **packages}
