"""safetensors files read and written a piece at a time, without a map of the whole file in memory.

The safetensors package maps files and writes what is all in memory; what streams from file to file
needs a table of places and plain reads. A header is not trusted: its length, every offset, every
shape is held against the file before anything is built from it.

Source: the format's description in the README of huggingface/safetensors: eight bytes of length, a
JSON header, then the tensors one after the other.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.files import atomic_open

SIZES = {  # bytes of one number
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1},
    **{"U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1},
}
_MOST_HEADER = 100_000_000  # bytes, the format's own limit
_MOST_NAME = 80  # characters of a name in an error


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies in a file, and what it is; `start` counts from the file's first byte."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    num_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewTensor:
    """A tensor to be written: its bytes come in pieces when its turn has come."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Iterable[bytes | memoryview]

    @property
    def num_bytes(self) -> int:
        """Of all pieces together."""
        return math.prod(self.shape) * SIZES[self.dtype]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file, by name, in the order in which they lie.

    Raises: UserError for a file that is damaged, cut short, or none of this format.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, _MOST_HEADER):
                raise _damaged(path, f"it claims a header of {length} bytes")
            header = json.loads(file.read(length))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise _damaged(path, "its header is no JSON") from error
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no table")
    header.pop("__metadata__", None)
    begin, room = 8 + length, size - 8 - length
    found = [_stored(path, name, entry, begin, room) for name, entry in header.items()]
    # Tensors without numbers come first where they lie: they are in nobody's way.
    found.sort(key=lambda tensor: (tensor.start, tensor.num_bytes))
    end = begin
    for tensor in found:
        if tensor.start < end:
            raise _damaged(path, f"{tensor.name[:_MOST_NAME]!r} lies over another tensor")
        end = tensor.start + tensor.num_bytes
    return {tensor.name: tensor for tensor in found}


def _stored(path: Path, name: str, entry: Any, begin: int, room: int) -> StoredTensor:
    what = repr(name[:_MOST_NAME])
    try:
        dtype, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise _damaged(path, f"{what} has no type, shape or place") from error
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise UserError(f"{path}: {what} is of type {str(dtype)[:20]}; known: {', '.join(SIZES)}")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise _damaged(path, f"{what} has no shape")
    if not (type(first) is int and type(last) is int and 0 <= first <= last <= room):
        raise _damaged(path, f"{what} ends past the end of the file")
    if last - first != math.prod(shape) * SIZES[dtype]:
        raise _damaged(path, f"{what} of shape {shape} takes other than {last - first} bytes")
    return StoredTensor(
        name=name,
        path=path,
        dtype=dtype,
        shape=tuple(shape),
        start=begin + first,
        num_bytes=last - first,
    )


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged or cut short ({why}): fetch or make it again")


def write_safetensors(path: Path, tensors: Sequence[NewTensor]) -> None:
    """Write a file, whole or not at all, holding one piece of one tensor at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.num_bytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_open(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            written = sum(file.write(piece) for piece in _bytes(tensor.pieces))
            if written != tensor.num_bytes:
                raise ValueError(f"{tensor.name}: {written} bytes of {tensor.num_bytes}")


def _bytes(pieces: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    for piece in pieces:
        view = memoryview(piece)
        if view.nbytes:  # one without numbers can't be cast
            yield view.cast("B")
