"""The pages of the two reports on long contexts: a grid of cells, and curves with their bands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmworks.evaluation.pages import render_page
from lmworks.evaluation.plots import curve_picture

if TYPE_CHECKING:
    import numpy as np

    from lmworks.evaluation.context import Comparison, ContextConfig
    from lmworks.evaluation.needle import Cell, NeedleConfig
    from lmworks.evaluation.position_perplexity import Reading


def needle_page(title: str, cells: Sequence[Cell], config: NeedleConfig) -> str:
    """Lengths as columns, depths as rows."""
    from lmworks.evaluation.needle import summary

    lengths = sorted({cell.length for cell in cells})
    by_place = {(cell.depth, cell.length): cell for cell in cells}
    return render_page(
        "long_context.html.jinja",
        title=title,
        summary=summary(cells),
        needle=config.needle,
        samples=config.samples,
        lengths=lengths,
        rows=[(d, [by_place[d, n] for n in lengths]) for d in dict.fromkeys(config.depths)],
        readings=[],
        picture=None,
    )


def position_page(title: str, readings: Sequence[Reading], num_sequences: int) -> str:
    """Loss over positions: a line per model over the logarithm of the position, and tables."""
    from lmworks.evaluation.position_perplexity import summary

    return render_page(
        "long_context.html.jinja",
        title=title,
        summary=summary(readings[0]),
        samples=num_sequences,
        rows=[],
        readings=readings,
        picture=curve_picture([_curve(reading) for reading in readings]),
    )


def write_context_page(
    path: Path,
    title: str,
    found: Comparison,
    losses: dict[str, np.ndarray],
    config: ContextConfig,
) -> None:
    """Both models by length: a table, and the loss over the position in the longest texts."""
    from lmworks.core.files import write_text
    from lmworks.evaluation.context import summary
    from lmworks.evaluation.position_perplexity import reading

    curves = [_curve(reading(name, losses[name])) for name in ("after", "before")]
    page = render_page(
        "context.html.jinja",
        title=title,
        summary=summary(found),
        found=found,
        config=config,
        num_texts=len(losses["after"]),
        longest=losses["after"].shape[1] + 1,
        picture=curve_picture(curves),
    )
    write_text(path, page)


def _curve(reading: Reading) -> tuple[str, list[float], list[float]]:
    """A name, the middle of each span as a power of two, and the nats per token there."""
    middles = [math.log2(math.sqrt(span.first * span.last)) for span in reading.spans]
    return reading.name, middles, [span.nats.estimate for span in reading.spans]
