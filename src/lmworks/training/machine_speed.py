"""How fast this machine can multiply matrices: what a training's speed is a share of.

The limit is the best that was ever seen here, kept in the cache folder per processor, number of
threads and type: a machine that is busy now must not make a training look good.
"""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path

import torch

from lmworks.core.errors import UserError
from lmworks.core.files import read_json, write_json
from lmworks.core.folders import cache_folder
from lmworks.core.machine import best_seconds

_MEASURE_S = 0.3
# Products of a small model's layers, rows x inner x columns; the best counts.
_SHAPES = ((768, 768, 768), (2048, 384, 1536), (1024, 1024, 1024))
_GPU_SHAPES = ((8192, 8192, 8192),)


def matrix_product_limit(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Operations per second of the best product ever measured here with the threads that are set.

    Takes a third of a second. A cache that can't be read or written is passed over.
    """
    path = cache_folder() / "speed.json"
    name = f"{_processor(device)}, {torch.get_num_threads()} threads, {dtype}, {torch.__version__}"
    known = _read(path)
    found = max(known.get(name, 0.0), product_speed(device, dtype))
    if found > known.get(name, 0.0):
        with contextlib.suppress(UserError):  # on a full disk the figure is good for this run
            write_json(path, {**known, name: found})
    return found


def product_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a product now; a third of a second's measurement."""
    shapes = _SHAPES if device.type == "cpu" else _GPU_SHAPES
    best = 0.0
    for rows, inner, columns in shapes:
        a = torch.ones(rows, inner, device=device, dtype=dtype)
        b = torch.ones(inner, columns, device=device, dtype=dtype)
        out = torch.empty(rows, columns, device=device, dtype=dtype)

        def product(a: torch.Tensor = a, b: torch.Tensor = b, out: torch.Tensor = out) -> None:
            torch.mm(a, b, out=out)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        seconds = best_seconds(product, _MEASURE_S / len(shapes))
        best = max(best, 2 * rows * inner * columns / seconds)
    return best


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _read(path: Path) -> dict[str, float]:
    try:
        values = read_json(path)
    except UserError:
        return {}
    return values if isinstance(values, dict) else {}
