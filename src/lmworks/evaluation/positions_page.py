"""The pictures of how positions are told, as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmworks.evaluation.heat_maps import data_uri, diverging, png
from lmworks.evaluation.plots import curve_picture
from lmworks.evaluation.position_pictures import Picture, PositionPictures

_MOST_CELLS = 512


def render(found: PositionPictures, own: Sequence[Picture] = (), model: str = "") -> str:
    """The page as text.

    Args:
        own: pictures of what a model has learned, and what it is called.
    """
    from lmworks.evaluation.pages import render_page

    p = found.parameters
    waves = [(w.name, range(len(w.lengths)), np.log10(w.lengths).tolist()) for w in found.waves]
    decay = [(name, range(len(values)), values) for name, values in found.decay]
    return render_page(
        "positions.html.jinja",
        model=model,
        parameters=p,
        own=[(picture, picture_uri(picture)) for picture in own],
        pictures=[(picture, picture_uri(picture)) for picture in found.pictures],
        waves=curve_picture(waves),
        decay=curve_picture(decay),
        factors=[w for w in found.waves if w.attention_factor != 1],
        slopes=found.slopes,
    )


def picture_uri(picture: Picture) -> str:
    """The matrix as a PNG: shares in one hue, values around zero in two."""
    values = picture.values[:_MOST_CELLS, :_MOST_CELLS]
    low = picture.low if picture.low < 0 else -picture.high
    return data_uri(png(diverging(values / max(picture.high, -low))))
