"""What `train tune` timed, as a page: speed and memory of each setting, the chosen one first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.files import read_json, write_text
from lmworks.core.stages import Artifact

TUNING = "tuning.json"
_SETTINGS = ("micro_batch_size", "threads", "activation_checkpointing", "precision", "compile")


def write_tuning_page(folder: str | Path, out: Path) -> None:
    """Write one self-contained page about the tuning in `folder`.

    Raises: UserError for a folder that holds none.
    """
    write_text(out, tuning_page(Artifact.load(folder)))


def tuning_page(artifact: Artifact) -> str:
    """The page as text. Raises: UserError for an artifact that is no tuning."""
    from lmworks.evaluation.pages import render_page

    path = artifact.path / TUNING
    if not path.is_file():
        raise UserError(f"{artifact.path} is no tuning: it holds no {TUNING}")
    found = read_json(path, "tuning")
    if not isinstance(found, dict) or not isinstance(found.get("timed"), list):
        raise UserError(f"{path} is no tuning: it lists nothing that was timed")
    config, metrics = artifact.manifest["config"], artifact.metrics
    rows = sorted(
        (_row(row, found, config["batch_size"]) for row in found["timed"]),
        key=lambda row: (not row["chosen"], -row["rate"]),
    )
    most = max(row["rate"] for row in rows)
    largest = max(row["memory"] for row in rows) or 1
    for row in rows:
        row["width"] = 100 * row["rate"] / most
        row["memory_width"] = 100 * row["memory"] / largest
    recipe = artifact.path / "recipe.yaml"
    return render_page(
        "tuning.html.jinja",
        title=f"Tuning of {artifact.path.resolve().name}",
        config=config,
        metrics=metrics,
        gain=_gain(rows, config["batch_size"]),
        rows=rows,
        recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
    )


def _row(row: Mapping[str, Any], found: Mapping[str, Any], batch_size: int) -> dict[str, Any]:
    looks = row.get("looks") or [row["tokens_per_s"]]
    return {
        "chosen": all(row[name] == found["best"][name] for name in _SETTINGS),
        "rows": row["micro_batch_size"],
        "parts": -(-batch_size // row["micro_batch_size"]),
        "threads": row["threads"],
        "beside": _beside(row),
        "rate": row["tokens_per_s"],
        "looks": len(looks),
        "low": min(looks),
        "high": max(looks),
        "memory": row.get("estimated_memory_bytes", 0),
        "plain": not _beside(row),
    }


def _beside(row: Mapping[str, Any]) -> str:
    words = ["layers computed again"] * row["activation_checkpointing"]
    words += [row["precision"]] * (row["precision"] != "float32") + ["compiled"] * row["compile"]
    return ", ".join(words)


def _gain(rows: list[dict[str, Any]], batch_size: int) -> float | None:
    """How many times as fast the chosen setting is as the whole batch at once."""
    whole = [r["rate"] for r in rows if r["rows"] == batch_size and r["plain"]]
    return rows[0]["rate"] / whole[0] if whole else None
