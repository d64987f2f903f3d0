"""An attention report as one self-contained page, as an SVG or as a PNG."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from lmworks.core.errors import UserError
from lmworks.core.files import atomic_open, write_text
from lmworks.evaluation.attention_report import AttentionReport, HeadPicture
from lmworks.evaluation.heat_maps import data_uri, grid_pixels, grid_svg, heat_png, heat_svg, png
from lmworks.models.attention_summaries import KINDS

_KINDS_OF_FILES = (".html", ".svg", ".png")


def check_path(path: Path) -> None:
    """Raises: UserError for a file that is no page or picture, before anything is computed."""
    if path.suffix.lower() not in _KINDS_OF_FILES:
        raise UserError(f"{path} is neither .html, .svg nor .png: choose one of these")


def save(report: AttentionReport, path: Path) -> None:
    """Write the report as its suffix says.

    A picture of one head is that head, of several the grid of them.
    Raises: UserError for another suffix, or where the file can't be written.
    """
    check_path(path)
    suffix = path.suffix.lower()
    if suffix == ".html":
        write_text(path, render(report))
        return
    alone = report.chosen[0] if len(report.summaries) == 1 else None
    if suffix == ".svg":
        write_text(path, head_svg(report, alone) if alone else overview_svg(report))
        return
    with atomic_open(path) as file:
        scale = max(1, 512 // len(alone.image)) if alone else 1
        grid = _grid(report)[2]
        file.write(heat_png(alone.image, scale) if alone else png(grid_pixels(grid)))


def render(report: AttentionReport) -> str:
    """The page as text."""
    from markupsafe import Markup

    from lmworks.evaluation.pages import render_page

    counts = Counter(summary.kind for summary in report.summaries)
    return render_page(
        "attention.html.jinja",
        report=report,
        kinds=[(*KINDS[kind], counts[kind]) for kind in KINDS if counts[kind]],
        grid=_cells(report),
        chosen=[(head, Markup(head_svg(report, head))) for head in report.chosen],
        rollout=None if report.rollout is None else Markup(_rollout_svg(report, report.rollout)),
    )


def head_svg(report: AttentionReport, head: HeadPicture) -> str:
    """One head with its tokens."""
    title = f"{report.model}: layer {head.summary.layer}, head {head.summary.head}"
    return heat_svg(head.image, report.tokens if head.step == 1 else [], title)


def overview_svg(report: AttentionReport) -> str:
    """All heads in rows of layers."""
    rows, columns, images = _grid(report)
    title = f"{report.model}: attention of {len(report.tokens):,} tokens"
    names = [f"layer {row}" for row in rows]
    return grid_svg(images, names, [f"head {column}" for column in columns], title)


def _rollout_svg(report: AttentionReport, image: np.ndarray) -> str:
    labels = report.tokens if len(image) == len(report.tokens) else []
    return heat_svg(image, labels, f"{report.model}: rollout over all layers")


def _grid(report: AttentionReport) -> tuple[list[int], list[int], list[list[Any]]]:
    rows = sorted({layer for layer, _ in report.images})
    columns = sorted({head for _, head in report.images})
    return rows, columns, [[report.images.get((y, x)) for x in columns] for y in rows]


def _cells(report: AttentionReport) -> list[tuple[int, list[Any]]]:
    """(layer, [(summary, picture)]) for the page."""
    rows: dict[int, list[Any]] = {}
    for summary in report.summaries:
        image = report.images[summary.layer, summary.head]
        rows.setdefault(summary.layer, []).append((summary, data_uri(heat_png(image))))
    return sorted(rows.items())
