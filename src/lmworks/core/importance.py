"""Importance matrices: how much an error in each column of a matrix counts.

The importance of a column is the mean square of what it is multiplied with on a calibration text.
llama.cpp's `llama-imatrix` writes it; both of its kinds of file are read, the present one (GGUF,
sums of squares and counts) and the one before it (.dat, sums times calls over counts); the present
one is written. Matrices of experts hold one importance for each, side by side. Source: llama.cpp,
tools/imatrix.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lmworks.core.errors import UserError
from lmworks.core.gguf import GGUF, GGUFTensor, dequantize, read_gguf, write_gguf

__all__ = ["read_importance", "write_importance"]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MOST_VALUES = 1 << 26  # of one matrix of an old file, which says so itself


def read_importance(path: str | Path) -> dict[str, np.ndarray]:
    """Tensor name (of GGUF) -> (columns,) float32, mean squares.

    Experts that the text never reached get 1 for each column, as in llama.cpp's quantiser.
    Raises: UserError for a file that is neither kind, cut short or holds what is no mean square.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    with path.open("rb") as file:
        new = file.read(4) == b"GGUF"
    found = _of_gguf(path, read_gguf(path)) if new else _of_dat(path)
    if not found:
        raise UserError(f"{path} holds no importance of any matrix")
    for name, values in found.items():
        if not np.isfinite(values).all() or (values < 0).any():
            raise UserError(
                f"{path}: the importance of {name[:100]} is damaged (below zero or NaN)"
            )
    return found


def _of_gguf(path: Path, file: GGUF) -> dict[str, np.ndarray]:
    if file.metadata.get("general.type") != "imatrix":
        raise UserError(
            f"{path} is a GGUF file, but holds no importance matrix (general.type is "
            f"{str(file.metadata.get('general.type'))[:40]!r}): write one with `llama-imatrix`"
        )
    found = {}
    for name, sums in file.tensors.items():
        if not name.endswith(_SUMS):
            continue
        base = name[: -len(_SUMS)]
        counts = file.tensors.get(base + _COUNTS)
        if counts is None or sums.type != "F32" or counts.type != "F32":
            raise UserError(f"{path}: {base[:100]} needs sums and counts of type F32")
        values = dequantize(sums).reshape(-1, sums.shape[-1])  # (experts, columns)
        count = dequantize(counts).reshape(-1, 1)
        if len(count) != len(values):
            raise UserError(f"{path}: {base[:100]} has {len(values)} sums and {len(count)} counts")
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            found[base] = np.where(count > 0, values / count, np.float32(1)).reshape(-1)
    return found


def _of_dat(path: Path) -> dict[str, np.ndarray]:
    """The old kind: count, then name, calls and sums for each; the rest (its text) is left."""
    data = path.read_bytes()
    at = 0

    def take(code: str) -> int:
        nonlocal at
        size = struct.calcsize(code)
        if at + size > len(data):
            raise UserError(f"{path} is not an importance matrix, or is cut short at byte {at}")
        value: int = struct.unpack_from("<" + code, data, at)[0]
        at += size
        return value

    found = {}
    for _ in range(take("i")):
        length = take("i")
        if not 0 < length <= len(data) - at:
            raise UserError(f"{path} is not an importance matrix: a name of {length} bytes")
        name = data[at : at + length].decode("utf-8", "replace")
        at += length
        calls, count = take("i"), take("i")
        if not 0 < count <= min(_MOST_VALUES, (len(data) - at) // 4):
            raise UserError(f"{path}: {name[:100]!r} claims {count} values, more than there are")
        values = np.frombuffer(data, "<f4", count, at).copy()
        at += 4 * count
        found[name] = values / np.float32(max(calls, 1))
    return found


def write_importance(
    path: str | Path,
    importance: Mapping[str, np.ndarray],
    counts: Mapping[str, int] | int,
    *,
    texts: Sequence[str] = (),
    chunk_tokens: int = 512,
) -> None:
    """Write the kind that llama.cpp reads now.

    Args:
        importance: by tensor name, (columns,) mean squares, not negative.
        counts: of how many vectors each is the mean, or the one number of all.
        texts: names of the calibration texts, for whoever reads the file.
        chunk_tokens: how many tokens were read at once.
    """
    tensors, most = {}, 1
    for name, values in importance.items():
        count = counts if isinstance(counts, int) else counts[name]
        most = max(most, count)
        sums = np.ascontiguousarray(values, dtype=np.float32) * np.float32(count)
        for suffix, array in ((_SUMS, sums[None]), (_COUNTS, np.array([[count]], np.float32))):
            tensors[name + suffix] = GGUFTensor(
                name=name + suffix, shape=array.shape, type="F32",
                data=array.view(np.uint8).reshape(-1),
            )  # fmt: skip
    metadata = {
        "general.type": "imatrix",
        "imatrix.datasets": list(texts) or ["unnamed"],
        "imatrix.chunk_count": -(-most // chunk_tokens),
        "imatrix.chunk_size": chunk_tokens,
    }
    write_gguf(path, metadata, dict(sorted(tensors.items())))
