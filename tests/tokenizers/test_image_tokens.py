"""Pictures: sizes out of headers, hostile ones too; tokens as the models' own code has them."""

from __future__ import annotations

import ast
import base64
import importlib.util
import math
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.tokenizers.image_size import data_url_size, image_size, parse_size
from lmworks.tokenizers.image_tokens import IMAGE_RULES, image_rule

SIZES = [
    tuple(draw.choice([draw.randrange(1, 60), draw.randrange(1, 9000)]) for _ in "wh")
    for draw in [random.Random(3)]
    for _ in range(3000)
]


def theirs(path: str, *names: str) -> dict[str, Any]:
    """Functions out of transformers' source; importing their modules would need torchvision."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.submodule_search_locations
    tree = ast.parse((Path(spec.submodule_search_locations[0]) / path).read_text(encoding="utf-8"))
    found: dict[str, Any] = {"math": math}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            exec(compile(ast.Module([node], []), path, "exec"), found)
    return found


@pytest.mark.parametrize(
    ("name", "factor", "least", "most"),
    [
        ("qwen2-vl", 28, 3136, 12_845_056),
        ("qwen2-vl-1280", 28, 3136, 1_003_520),
        ("qwen3-vl", 32, 65_536, 16_777_216),
    ],
)
def test_qwen_is_what_smart_resize_gives(name: str, factor: int, least: int, most: int) -> None:
    resize = theirs("models/qwen2_vl/image_processing_qwen2_vl.py", "smart_resize")["smart_resize"]
    count = image_rule(name).count
    for width, height in SIZES:
        try:
            high, wide = resize(height, width, factor, least, most)
        except ValueError:
            with pytest.raises(UserError, match="200 times"):
                count(width, height, "auto")
            continue
        assert count(width, height, "auto") == high * wide // factor**2


def test_llava_next_is_what_its_processor_gives() -> None:
    names = ("_get_number_of_features", "_get_unpadded_features")
    found = theirs("models/llava_next/processing_llava_next.py", *names)
    found |= {
        "select_best_resolution": theirs("image_processing_utils.py", "select_best_resolution")[
            "select_best_resolution"
        ]
    }
    features = theirs("models/llava_next/processing_llava_next.py", names[0])[names[0]]
    features.__globals__.update(found)
    grid = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    processor = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=grid),
        patch_size=14,
        num_additional_image_tokens=1,
    )
    processor._get_unpadded_features = lambda *sizes: found[names[1]](processor, *sizes)
    for width, height in SIZES:
        expected = features(processor, height, width, 336, 336) - 1  # the class token goes
        assert image_rule("llava-next").count(width, height, "auto") == expected


@pytest.mark.parametrize(
    ("name", "size", "detail", "tokens"),
    [
        # OpenAI's own examples, and what was billed (developer community, topics 1281361, 1377015)
        ("openai-tiles", (1024, 1024), "high", 765),
        ("openai-tiles", (2048, 4096), "high", 1105),
        ("openai-tiles", (4096, 8192), "low", 85),
        ("openai-tiles", (2049, 513), "auto", 1445),
        ("openai-tiles", (2050, 513), "auto", 765),
        ("openai-tiles", (128, 64), "high", 255),
        ("openai-tiles-gpt-4o-mini", (128, 64), "high", 8500),
        ("openai-patches-gpt-4.1-mini", (1800, 2400), "auto", 2353),
        ("openai-patches-gpt-5-mini", (256, 256), "auto", 77),
        ("openai-patches-gpt-5-mini", (1280, 720), "auto", 1104),
        ("openai-patches-gpt-5-mini", (768, 1024), "auto", 922),
        # Anthropic's and Google's pages
        ("claude", (200, 200), "auto", 54),
        ("claude", (1000, 1000), "auto", 1334),
        ("claude", (1092, 1092), "auto", 1590),
        ("gemini", (384, 384), "auto", 258),
        ("gemini", (960, 540), "auto", 6 * 258),
        ("gemini-3", (10, 10), "low", 280),
        ("gemini-3", (4000, 4000), "auto", 1120),
        # mistral-common 1.13's encoder; the processor of Phi-3-vision
        ("pixtral", (1024, 1024), "auto", 64 * 65),
        ("pixtral", (2048, 1000), "auto", 65 * 32),
        ("mistral-small-3.1", (1540, 1540), "auto", 55 * 56),
        ("phi-3-vision", (1344, 1344), "auto", 2509),
        ("phi-3-vision", (600, 1800), "auto", (12 + 1) * 144 + 1 + 7 * 12),
        ("llava-1.5", (9, 9000), "auto", 576),
        ("gemma-3", (9, 9000), "auto", 256),
    ],
)
def test_published_examples(name: str, size: tuple[int, int], detail: str, tokens: int) -> None:
    assert image_rule(name).count(*size, detail) == tokens


@given(st.integers(1, 1 << 17), st.integers(1, 1 << 17), st.sampled_from(sorted(IMAGE_RULES)))
def test_every_size_has_a_bounded_count(width: int, height: int, name: str) -> None:
    try:
        tokens = image_rule(name).count(width, height, "auto")
    except UserError:
        assert name.startswith("qwen") and max(width, height) > 200 * min(width, height)
        return
    bound = 30_000 if not name.startswith("gemini") else math.inf
    assert 0 < tokens <= bound or name == "openai-tiles-gpt-4o-mini"


def test_an_unknown_rule_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'qwen2-vl'"):
        image_rule("qwen2vl")


def png(width: int, height: int) -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def jpeg(width: int, height: int, before: bytes = b"\xff\xe1\x00\x06abcd") -> bytes:
    frame = struct.pack(">HBHHB", 17, 8, height, width, 3)
    return b"\xff\xd8" + before + b"\xff\xff\xc2" + frame + bytes(9)


def webp(kind: bytes, body: bytes) -> bytes:
    return b"RIFF\0\0\0\0WEBP" + kind + struct.pack("<I", len(body)) + body


def vp8(width: int, height: int) -> bytes:
    return webp(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height))


def vp8l(width: int, height: int) -> bytes:
    return webp(b"VP8L", b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14))


def vp8x(width: int, height: int) -> bytes:
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return webp(b"VP8X", bytes(4) + sides)


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height)


MAKERS: list[Callable[[int, int], bytes]] = [png, jpeg, gif, vp8, vp8l, vp8x]


@pytest.mark.parametrize("make", MAKERS)
def test_sizes_are_read_from_headers(make: Callable[[int, int], bytes]) -> None:
    for size in ((1, 1), (640, 7), (16383, 12000)):
        data = make(*size)
        assert image_size(data) == size
        assert image_size(data + bytes(100)) == size
        url = "data:image/any;base64," + base64.b64encode(data + bytes(7)).decode()
        assert data_url_size(url) == size
        for end in range(len(data) - 12):
            with pytest.raises(UserError):
                image_size(data[:end])


@given(st.binary(max_size=200), st.sampled_from(MAKERS))
def test_garbage_is_refused_in_one_line(garbage: bytes, make: Callable[[int, int], bytes]) -> None:
    for data in (garbage, make(3, 4)[:8] + garbage):
        try:
            width, height = image_size(data)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert 0 < width <= 1 << 17 and 0 < height <= 1 << 17


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"BM\0\0", "not a PNG, JPEG, GIF or WebP"),
        (b"", "not a PNG"),
        (png(0, 5), "an image of 0x5"),
        (png(1 << 30, 5), "from 1 to 131072"),
        (jpeg(4, 4, b"\xff\xe1\x00\x00"), "damaged"),
        (jpeg(4, 4, b"garbage"), "damaged"),
        (b"\xff\xd8" + b"\xff\xe1\xff\xff" + bytes(70_000) * 20, "damaged|ends before"),
        (b"\xff\xd8" + b"\xff" * 5_000_000, "ends before its size"),
        (webp(b"ALPH", b""), "unknown kind"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "does not begin with its header"),
    ],
)
def test_hostile_files(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        image_size(data)


@pytest.mark.parametrize("url", ["data:,x", "data:image/png;base64,@@@@", "data:image/png;base64"])
def test_hostile_urls(url: str) -> None:
    with pytest.raises(UserError):
        data_url_size(url)


@pytest.mark.parametrize("text", ["", "10", "0x4", "9x99999999", "axb", "-3x4"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(UserError):
        parse_size(text)
    assert parse_size(" 1024x768 ") == (1024, 768)
