"""GGUF files: metadata and tensors, read without trusting a single number in them.

The file is memory-mapped, so tensors cost nothing until they are used. Every count and length is
held against the bytes that are left before anything is built from it: a hostile file is refused
at once, with the place.

Source: the GGUF specification, versions 2 and 3 (little-endian).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from lmworks.core.errors import UserError
from lmworks.core.files import atomic_open
from lmworks.core.ggml_types import NAMES, TYPES

__all__ = [
    "GGUF",
    "GGUFTensor",
    "LaterTensor",
    "dequantize",
    "find_gguf",
    "read_gguf",
    "write_gguf",
]

_MAGIC = b"GGUF"
_VERSION = 3
_ALIGNMENT = 32
_MAX_DIMS = 4
_DECODED_AT_ONCE = 1 << 17  # numbers, so that what is in between stays in the caches
_MAX_DEPTH = 4  # of arrays in arrays
_MAX_MESSAGE = 200  # characters of an error

# Metadata value types by number: (struct code, NumPy dtype).
_SCALARS = {
    0: ("B", "<u1"),
    1: ("b", "<i1"),
    2: ("H", "<u2"),
    3: ("h", "<i2"),
    4: ("I", "<u4"),
    5: ("i", "<i4"),
    6: ("f", "<f4"),
    7: ("?", "?"),
    10: ("Q", "<u8"),
    11: ("q", "<i8"),
    12: ("d", "<f8"),
}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_U8, _U32, _I32, _F32, _U64, _I64 = 0, 4, 5, 6, 10, 11
# Integer types in the order they are tried; llama.cpp reads its sizes as unsigned 32-bit.
_RANGES = {
    _U32: range(0, 1 << 32),
    _I32: range(-(1 << 31), 1 << 31),
    _I64: range(-(1 << 63), 1 << 63),
    _U64: range(0, 1 << 64),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GGUFTensor:
    """`shape` in NumPy's order (rows, columns); `data` the raw bytes, uint8, a view of the file.

    `start`: where they begin in the file that the tensor was read from.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    data: np.ndarray
    start: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaterTensor:
    """A tensor to write whose bytes are made when its turn comes, so that one at a time is there.

    Attributes:
        shape, type: as in GGUFTensor; they say how many bytes there must be.
        make: gives them, uint8; called once.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    make: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GGUF:
    """A file's metadata and tensors, in file order."""

    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def find_gguf(path: Path) -> Path | None:
    """`path` itself if it is a .gguf file, or the only one in that folder, or None.

    Raises: UserError when a folder holds several.
    """
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(p.name for p in found[:5])
        raise UserError(f"{path} holds {len(found)} GGUF files ({names}): name one of them")
    return found[0] if found else None


class _Cursor:
    """Reads little-endian values and says where it stood when the bytes ran out."""

    def __init__(self, path: Path, data: np.ndarray) -> None:
        self.path, self.data, self.at = path, data, 0
        self._view = data.data  # a memoryview: slices of a memmap are many times slower

    def fail(self, what: str) -> UserError:
        # Names out of the file are part of it: no control characters and no megabytes of them.
        clean = "".join(c if c.isprintable() else "?" for c in what[:_MAX_MESSAGE])
        return UserError(f"{self.path} is not a GGUF file that can be read: {clean}")

    def take(self, count: int, what: str) -> bytes:
        left = len(self._view) - self.at
        if count > left:
            raise self.fail(f"{what} at byte {self.at} needs {count} bytes, {left} are left")
        self.at += count
        return self._view[self.at - count : self.at].tobytes()

    def number(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def string(self, what: str) -> str:
        return self.take(self.number("Q", what), what).decode("utf-8", "replace")

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind][0], what)
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY and depth < _MAX_DEPTH:
            return self._array(what, depth)
        raise self.fail(f"{what} has the unknown value type {kind}")

    def _array(self, what: str, depth: int) -> list[Any]:
        kind, count = self.number("I", what), self.number("Q", what)
        if kind in _SCALARS:
            dtype = np.dtype(_SCALARS[kind][1])
            values: list[Any] = np.frombuffer(
                self.take(count * dtype.itemsize, what), dtype
            ).tolist()
            return values
        smallest = 8 if kind == _STRING else 12  # bytes that each entry takes at least
        if count * smallest > len(self.data) - self.at:
            raise self.fail(f"{what} claims {count} entries, more than the file has bytes for")
        return [self.value(kind, what, depth + 1) for _ in range(count)]


def read_gguf(path: str | Path) -> GGUF:
    """Read metadata and map the tensors.

    Raises: UserError for anything that is not a whole, well-formed GGUF file, naming the place;
        for a file cut short, how many bytes are missing.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    if path.stat().st_size < 24:
        raise UserError(f"{path} is too short to be a GGUF file ({path.stat().st_size} bytes)")
    cursor = _Cursor(path, np.memmap(path, dtype=np.uint8, mode="r"))
    if cursor.take(4, "magic") != _MAGIC:
        raise cursor.fail("it does not begin with the letters GGUF")
    version = cursor.number("I", "version")
    if version not in (2, 3):
        raise cursor.fail(f"version {version}; known: 2 and 3 (little-endian)")
    num_tensors, num_keys = cursor.number("Q", "header"), cursor.number("Q", "header")
    metadata: dict[str, Any] = {}
    for _ in range(_bounded(cursor, num_keys, 13, "metadata keys")):
        key = cursor.string("a metadata key")
        if key in metadata:
            raise cursor.fail(f"metadata key {key!r} is there twice")
        metadata[key] = cursor.value(cursor.number("I", key), key)
    infos = [_tensor_info(cursor) for _ in range(_bounded(cursor, num_tensors, 24, "tensors"))]
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
        raise cursor.fail(f"general.alignment is {alignment!r}")
    start = -(-cursor.at // alignment) * alignment
    return GGUF(metadata=metadata, tensors=_map_tensors(cursor, infos, start, alignment))


def _bounded(cursor: _Cursor, count: int, smallest: int, what: str) -> int:
    if count * smallest > len(cursor.data):
        raise cursor.fail(f"it claims {count} {what}, more than it has bytes for")
    return count


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], str, int]:
    name = cursor.string("a tensor name")
    num_dims = cursor.number("I", name)
    if not 1 <= num_dims <= _MAX_DIMS:
        raise cursor.fail(f"tensor {name!r} has {num_dims} dimensions")
    shape = tuple(cursor.number("Q", name) for _ in range(num_dims))[::-1]
    number = cursor.number("I", name)
    if number not in NAMES:
        raise cursor.fail(f"tensor {name!r} has the unknown type {number}")
    return name, shape, NAMES[number], cursor.number("Q", name)


def _map_tensors(
    cursor: _Cursor, infos: list[tuple[str, tuple[int, ...], str, int]], start: int, alignment: int
) -> dict[str, GGUFTensor]:
    tensors: dict[str, GGUFTensor] = {}
    spans: list[tuple[int, int, str]] = []
    for name, shape, kind, offset in infos:
        block = TYPES[kind]
        if name in tensors:
            raise cursor.fail(f"tensor {name!r} is there twice")
        if shape[-1] % block.size or 0 in shape:
            raise cursor.fail(
                f"tensor {name!r} of shape {shape} does not divide into {kind} blocks"
            )
        if offset % alignment:
            raise cursor.fail(f"tensor {name!r} lies at {offset}, which is not aligned")
        num_bytes = tensor_bytes(shape, kind)
        first = start + offset
        missing = first + num_bytes - len(cursor.data)
        if missing > 0:
            raise UserError(
                f"{cursor.path} is cut short: tensor {name[:_MAX_MESSAGE]!r} ends {missing} bytes "
                "past the end of the file; fetch it again"
            )
        tensors[name] = GGUFTensor(
            name=name,
            shape=shape,
            type=kind,
            data=cursor.data[first : first + num_bytes],
            start=first,
        )
        spans.append((first, first + num_bytes, name))
    spans.sort()
    for (_, end, name), (first, _, other) in itertools.pairwise(spans):
        if first < end:  # a small file could stand for any amount of memory
            raise cursor.fail(f"tensors {name!r} and {other!r} lie over each other")
    return tensors


def dequantize(tensor: GGUFTensor) -> np.ndarray:
    """float32 of `tensor.shape`."""
    block = TYPES[tensor.type]
    raw = np.asarray(tensor.data).reshape(-1, block.num_bytes)
    values = np.empty((len(raw), block.size), dtype=np.float32)
    step = max(1, _DECODED_AT_ONCE // block.size)
    with np.errstate(
        invalid="ignore", over="ignore"
    ):  # a damaged scale: NaN, which loading refuses by name
        for first in range(0, len(raw), step):
            values[first : first + step] = block.decode(raw[first : first + step])
    return values.reshape(tensor.shape)


def tensor_bytes(shape: Sequence[int], kind: str) -> int:
    """How many bytes a tensor of this shape and type has. Its rows must divide into blocks."""
    return math.prod(shape) // TYPES[kind].size * TYPES[kind].num_bytes


def write_gguf(
    path: str | Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, GGUFTensor | LaterTensor],
) -> None:
    """Write a version 3 file, whole or not at all. Same content, same bytes.

    Args:
        metadata: values may be bool, int, float, str, lists of one of these, and bytes, which
            become a list of uint8.
            `general.alignment` is kept to.
        tensors: by name, written in this order; what they hold or make must be exactly the bytes
            that type and shape ask for.
    Raises: ValueError for another number of bytes.
    """
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    sizes = [tensor_bytes(tensor.shape, tensor.type) for tensor in tensors.values()]

    def padding(count: int) -> int:
        return -count % alignment

    with atomic_open(path) as file:
        file.write(_MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(_packed_string(key))
            _write_value(file, value)
        offset = 0
        for tensor, size in zip(tensors.values(), sizes, strict=True):
            dims = tensor.shape[::-1]
            file.write(_packed_string(tensor.name))
            file.write(struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
            file.write(struct.pack("<IQ", TYPES[tensor.type].number, offset))
            offset += size + padding(size)
        file.write(bytes(padding(file.tell())))
        for tensor, size in zip(tensors.values(), sizes, strict=True):
            data = tensor.make() if isinstance(tensor, LaterTensor) else tensor.data
            if data.nbytes != size:
                raise ValueError(
                    f"{tensor.name}: {tensor.type} {tensor.shape} takes {size} bytes, "
                    f"not {data.nbytes}"
                )
            file.write(np.ascontiguousarray(data).data)
            del data  # before the next is made
            file.write(bytes(padding(size)))


def _packed_string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _write_value(file: IO[bytes], value: Any) -> None:
    if isinstance(value, bytes):
        file.write(struct.pack("<IIQ", _ARRAY, _U8, len(value)) + value)
        return
    if not isinstance(value, list | tuple):
        kind = _kind_of([value])
        file.write(struct.pack("<I", kind) + _packed(value, kind))
        return
    # llama.cpp reads sizes as unsigned and lists (token types) as signed, and takes nothing else.
    kind = _kind_of(value, first=_I32)
    file.write(struct.pack("<IIQ", _ARRAY, kind, len(value)))
    file.write(b"".join(_packed(item, kind) for item in value))


def _packed(value: Any, kind: int) -> bytes:
    if kind == _STRING:
        return _packed_string(value)
    return struct.pack("<" + _SCALARS[kind][0], value)


def _kind_of(values: Sequence[Any], first: int = _U32) -> int:
    """The one type that holds all of `values`; integers as `first` where they fit."""
    types = {type(value) for value in values}
    if types == {bool}:
        return _BOOL
    if types == {str}:
        return _STRING
    if types <= {int}:
        low, high = min(values, default=-1), max(values, default=-1)
        for kind in (first, *_RANGES):
            if low in _RANGES[kind] and high in _RANGES[kind]:
                return kind
    if types <= {int, float}:
        return _F32
    names = ", ".join(sorted(kind.__name__ for kind in types))
    raise TypeError(f"GGUF metadata can't hold {names} in one value")
