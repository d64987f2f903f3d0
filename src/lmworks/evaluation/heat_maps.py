"""Matrices of shares as pictures: PNG bytes without a library, and SVG with words beside it.

A share from 0 to 1 is drawn by its square root, so that a tenth of the attention can still be
seen beside all of it. The scale runs from paper to a dark teal, lighter to darker throughout.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

# Colours at equal steps of the square root of a share.
_SCALE = np.array(
    [[250, 249, 246], [205, 226, 220], [134, 190, 181], [62, 139, 132], [22, 86, 84], [8, 42, 45]],
    dtype=np.float64,
)
# From -1 over 0 to 1, for what has two sides.
_TWO_SIDED = np.array(
    [[122, 62, 24], [222, 169, 125], [250, 249, 246], [134, 190, 181], [16, 74, 74]],
    dtype=np.float64,
)
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
_MOST_LABELS = 64
_LABEL_CHARACTERS = 14


def colours(shares: np.ndarray) -> np.ndarray:
    """(...) shares, 0 to 1 -> (..., 3) uint8."""
    return _between(_SCALE, np.sqrt(np.clip(shares, 0, 1)))


def diverging(values: np.ndarray) -> np.ndarray:
    """(...) values, -1 to 1 -> (..., 3) uint8: paper at 0, brown below, teal above."""
    return _between(_TWO_SIDED, (np.clip(values, -1, 1) + 1) / 2)


def _between(scale: np.ndarray, shares: np.ndarray) -> np.ndarray:
    places = shares * (len(scale) - 1)
    low = np.minimum(places.astype(int), len(scale) - 2)
    part = (places - low)[..., None]
    mixed: np.ndarray = np.rint(scale[low] * (1 - part) + scale[low + 1] * part)
    return mixed.astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """(height, width, 3) uint8 as a PNG file. Source: the PNG specification, ISO 15948."""
    height, width, _ = pixels.shape
    rows = np.concatenate((np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)), axis=1)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def heat_png(shares: np.ndarray, scale: int = 1) -> bytes:
    """A matrix as a PNG, `scale` pixels to a cell."""
    return png(colours(shares).repeat(scale, axis=0).repeat(scale, axis=1))


def data_uri(image: bytes) -> str:
    """A PNG for a page that loads nothing."""
    return "data:image/png;base64," + base64.b64encode(image).decode()


def grid_pixels(images: Sequence[Sequence[np.ndarray | None]], gap: int = 2) -> np.ndarray:
    """Rows of equally large matrices side by side, (height, width, 3) uint8; None stays empty."""
    size = next(len(image) for row in images for image in row if image is not None)
    cell, columns = size + gap, max(map(len, images))
    out = np.full((len(images) * cell + gap, columns * cell + gap, 3), 255, dtype=np.uint8)
    for y, row in enumerate(images):
        for x, image in enumerate(row):
            if image is not None:
                top, left = y * cell + gap, x * cell + gap
                out[top : top + size, left : left + size] = colours(image)
    return out


def heat_svg(shares: np.ndarray, labels: Sequence[str], title: str, size: int = 560) -> str:
    """A matrix with its tokens at both sides, as an SVG; labels only up to 64 of them.

    Args:
        shares: (n, n): row, query; column, key.
        labels: n tokens, or fewer names of nothing when cells stand for several.
    """
    count = len(shares)
    named = len(labels) == count <= _MOST_LABELS
    margin = 120 if named else 8
    cell = size / count
    parts = [_image(shares, margin, margin + 24, size, size)]
    if named:
        font = f'font-size="{min(13.0, max(7.0, cell * 0.8)):.1f}"'
        for index, label in enumerate(labels):
            middle = margin + (index + 0.5) * cell
            text = escape(_short(label))
            parts.append(
                f'<text {font} x="{margin - 6}" y="{middle + 28:.1f}" text-anchor="end">'
                f"{text}</text>"
                f'<text {font} x="0" y="0" transform="translate({middle + 4:.1f} {margin + 18}) '
                f'rotate(-60)">{text}</text>'
            )
    return _svg(size + margin + 60, size + margin + 36, title, parts)


def grid_svg(
    images: Sequence[Sequence[np.ndarray | None]], rows: Sequence[str], columns: Sequence[str],
    title: str, cell: int = 54,
) -> str:  # fmt: skip
    """Small matrices in rows and columns with their names, as an SVG."""
    left, top = 76, 52
    parts = []
    for y, name in enumerate(rows):
        at = top + y * cell + cell / 2 + 4
        parts.append(f'<text x="{left - 8}" y="{at}" text-anchor="end">{escape(name)}</text>')
    for x, name in enumerate(columns):
        at = left + x * cell + (cell - 4) / 2
        parts.append(f'<text x="{at}" y="{top - 8}" text-anchor="middle">{escape(name)}</text>')
    for y, row in enumerate(images):
        for x, image in enumerate(row):
            if image is not None:
                place = (left + x * cell, top + y * cell)
                parts.append(_image(image, *place, cell - 4, cell - 4))
    return _svg(left + len(columns) * cell + 8, top + len(rows) * cell + 8, title, parts)


def _image(shares: np.ndarray, x: float, y: float, width: float, height: float) -> str:
    return (
        f'<image x="{x}" y="{y}" width="{width}" height="{height}" preserveAspectRatio="none" '
        f'style="image-rendering: pixelated" href="{data_uri(heat_png(shares))}"/>'
    )


def _svg(width: float, height: float, title: str, parts: Sequence[Any]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="{_FONT}" font-size="11" fill="#4a4f55" role="img">'
        f'<title>{escape(title)}</title><rect width="100%" height="100%" fill="#faf9f6"/>'
        f'<text x="10" y="20" font-size="14" fill="#23262b">{escape(title)}</text>'
        + "".join(parts)
        + "</svg>\n"
    )


def _short(label: str) -> str:
    return label if len(label) <= _LABEL_CHARACTERS else label[: _LABEL_CHARACTERS - 1] + "…"
