"""Text and bytes as kernels take them: an address, a size, and what keeps the memory alive.

CPython keeps the UTF-8 of a string that was asked for it once, and the text of an ASCII string is
its own UTF-8; both are handed on without a copy.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Buffer(NamedTuple):
    """`size` bytes at `address`, which live as long as `owner`."""

    address: int
    size: int
    owner: Any

    def tobytes(self) -> bytes:
        """A copy."""
        return ctypes.string_at(self.address, self.size)


def _as_utf8() -> Any:
    try:
        function = ctypes.pythonapi.PyUnicode_AsUTF8AndSize
    except AttributeError:  # not CPython
        return None
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.py_object, ctypes.POINTER(ctypes.c_ssize_t)]
    return function


_AS_UTF8 = _as_utf8()


def utf8(text: str) -> Buffer:
    """The UTF-8 of a text. Raises: UnicodeEncodeError for lone surrogates."""
    if _AS_UTF8 is None:
        return of_bytes(text.encode())
    if text.isascii():
        return Buffer(_AS_UTF8(text, None), len(text), text)
    size = ctypes.c_ssize_t()
    address = _AS_UTF8(text, size)
    return Buffer(address, size.value, text)


def of_bytes(data: bytes) -> Buffer:
    """The bytes of `data` where they lie."""
    array = np.frombuffer(data or b"\0", dtype=np.uint8)
    return Buffer(array.ctypes.data, len(data), array)


def flat(texts: Sequence[bytes]) -> tuple[Any, Any]:
    """Texts one behind the other as uint8 [bytes + 8], and int64 [texts], where each ends."""
    data = np.frombuffer(b"".join(texts) + bytes(8), dtype=np.uint8)
    sizes = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    return data, np.cumsum(sizes)
