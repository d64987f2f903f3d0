"""Width and height of a picture out of the first bytes of its file, without decoding it.

PNG, JPEG, GIF and WebP. At most `_MOST_BYTES` are looked at, so neither a bomb nor a file without
end costs anything. What a file claims is taken at its word only within `_MOST_PIXELS` a side.

Sources: PNG (W3C, second edition, section 11.2.2), ITU-T T.81 (JPEG) annex B, GIF89a section 18,
WebP (RFC 9649, section 2).
"""

from __future__ import annotations

import base64
import binascii
import re
import struct

from lmworks.core.errors import UserError

Size = tuple[int, int]  # width, height in pixels
_MOST_BYTES = 1 << 20  # EXIF and colour profiles can stand before a JPEG's size
_MOST_PIXELS = 1 << 17
_PNG, _RIFF = b"\x89PNG\r\n\x1a\n", b"RIFF"
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset([0x01, *range(0xD0, 0xD8)])


def image_size(data: bytes) -> Size:
    """(width, height) in pixels. Raises: UserError for another kind of file, or a damaged one."""
    data = data[:_MOST_BYTES]
    try:
        size = _size(data)
    except (struct.error, IndexError) as error:
        raise UserError("the image ends before its size") from error
    return _checked(size)


def _size(data: bytes) -> Size:
    if data.startswith(_PNG):
        if data[12:16] != b"IHDR":
            raise UserError("the PNG does not begin with its header")
        return _pair(">II", data, 16)
    if data.startswith(b"\xff\xd8"):
        return _jpeg(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _pair("<HH", data, 6)
    if data.startswith(_RIFF) and data[8:12] == b"WEBP":
        return _webp(data)
    raise UserError("not a PNG, JPEG, GIF or WebP image")


def _pair(form: str, data: bytes, at: int) -> Size:
    first, second = struct.unpack_from(form, data, at)
    return int(first), int(second)


def _jpeg(data: bytes) -> Size:
    at = 2
    while True:
        if data[at] != 0xFF:
            raise UserError("the JPEG is damaged before its size")
        marker = data[at + 1]
        if marker == 0xFF:  # a byte that fills up
            at += 1
        elif marker in _WITHOUT_LENGTH:
            at += 2
        elif marker in _START_OF_FRAME:
            height, width = _pair(">HH", data, at + 5)
            return width, height
        else:
            length = struct.unpack_from(">H", data, at + 2)[0]
            if length < 2:
                raise UserError("the JPEG is damaged before its size")
            at += 2 + length


def _webp(data: bytes) -> Size:
    kind = data[12:16]
    if kind == b"VP8X":
        low, high, *rest = struct.unpack_from("<HBHB", data, 24)
        return (high << 16 | low) + 1, (rest[1] << 16 | rest[0]) + 1
    if kind == b"VP8 ":
        width, height = _pair("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise UserError("the WebP is of an unknown kind")


def _checked(size: Size) -> Size:
    width, height = size
    if not (0 < width <= _MOST_PIXELS and 0 < height <= _MOST_PIXELS):
        raise UserError(f"an image of {width}x{height} pixels: from 1 to {_MOST_PIXELS} a side")
    return size


def data_url_size(url: str) -> Size:
    """(width, height) of a `data:image/...;base64,` URL. Raises: UserError as `image_size`."""
    head, comma, _ = url[:200].partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise UserError("a data URL is written data:image/png;base64,...")
    start = len(head) + 1
    encoded = url[start : start + _MOST_BYTES // 3 * 4]
    try:
        data = base64.b64decode(encoded[: len(encoded) // 4 * 4], validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError("the data URL is not valid base64") from error
    return image_size(data)


def parse_size(text: str) -> Size:
    """`1024x768` as (1024, 768). Raises: UserError for anything else."""
    match = re.fullmatch(r"(\d{1,6})[x×](\d{1,6})", text.strip())
    if not match:
        raise UserError(f"{text!r}: write an image's size as WIDTHxHEIGHT, for example 1024x768")
    return _checked((int(match[1]), int(match[2])))
