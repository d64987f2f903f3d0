"""How many tokens a picture takes, by the rule of each family of models.

A rule is pure arithmetic on width and height. Those of open models are what their own processors
compute, and are held to them in the tests. Those of services are what their pages and their bills
said on the date given; they change, and a service's own count goes before these.

Left out: video, audio, and models whose rule is published nowhere.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

from lmworks.core.errors import UserError, unknown_name

Detail = str  # OpenAI's: "low", "high", "auto"
Count = Callable[[int, int, Detail], int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageRule:
    """`count(width, height, detail)` tokens, and what stands around them.

    A template writes one `placeholder` for an image, with `written` tokens around it; the
    placeholder then gives way to the image's tokens and the `around` that the processor adds.
    """

    count: Count
    about: str
    source: str
    checked: str  # year and month
    placeholder: str = ""  # empty: templates write nothing for an image
    around: int = 0
    written: int = 0


def openai_tiles(width: int, height: int, detail: Detail, *, base: int, tile: int) -> int:
    """Fit into 2048 x 2048, then the short side down to 768, then tiles of 512.

    Nothing is enlarged, and sides are rounded, as the bills show (OpenAI developer community,
    topics 1262691 and 1281361).
    """
    if detail == "low":
        return base
    for side, most in ((max, 2048), (min, 768)):
        shrink = most / side(width, height)
        if shrink < 1:
            width, height = max(1, round(width * shrink)), max(1, round(height * shrink))
    return base + tile * math.ceil(width / 512) * math.ceil(height / 512)


def openai_patches(
    width: int, height: int, detail: Detail, *, times: float, most: int = 1536
) -> int:
    """Patches of 32 x 32; where there are too many, the picture shrinks until they fit.

    It shrinks to the area of `most` patches, then a little more, so that one side is whole patches.
    """
    across, down = math.ceil(width / 32), math.ceil(height / 32)
    if across * down > most:
        shrink = math.sqrt(most * 32 * 32 / (width * height))
        wide, high = width * shrink / 32, height * shrink / 32
        shrink = min(max(1, math.floor(wide)) / wide, max(1, math.floor(high)) / high)
        # Rounded, since one of the sides is meant to be whole.
        across, down = math.ceil(round(wide * shrink, 6)), math.ceil(round(high * shrink, 6))
    return math.ceil(round(min(most, across * down) * times, 6))


def claude(width: int, height: int, detail: Detail, *, edge: int = 1568, most: int = 1600) -> int:
    """Area / 750, after shrinking to the longest edge and the most tokens allowed."""
    shrink = min(1.0, edge / max(width, height), math.sqrt(most * 750 / (width * height)))
    return max(1, math.ceil(math.floor(width * shrink) * math.floor(height * shrink) / 750))


def gemini_tiles(width: int, height: int, detail: Detail) -> int:
    """258 up to 384 x 384; beyond, as many for each tile of the short side / 1.5 (256 to 768)."""
    if width <= 384 and height <= 384:
        return 258
    tile = min(768, max(256, math.floor(min(width, height) / 1.5)))
    return 258 * math.ceil(width / tile) * math.ceil(height / tile)


def gemini_levels(width: int, height: int, detail: Detail) -> int:
    """By `media_resolution` alone; `low` here, else the default, which is high."""
    return 280 if detail == "low" else 1120


def smart_resize(width: int, height: int, *, factor: int, least: int, most: int) -> tuple[int, int]:
    """The nearest multiples of `factor` with between `least` and `most` pixels in all.

    Raises: UserError for a picture over 200 times as long as wide, which the models refuse.
    """
    if max(width, height) > 200 * min(width, height):
        raise UserError(f"an image of {width}x{height}: over 200 times as long as wide")
    wide, high = round(width / factor) * factor, round(height / factor) * factor
    if wide * high > most:
        shrink = math.sqrt(width * height / most)
        wide, high = (
            max(factor, math.floor(side / shrink / factor) * factor) for side in (width, height)
        )
    elif wide * high < least:
        grow = math.sqrt(least / (width * height))
        wide, high = (math.ceil(side * grow / factor) * factor for side in (width, height))
    return wide, high


def merged_patches(
    width: int, height: int, detail: Detail, *, factor: int, least: int, most: int
) -> int:
    """One token for each `factor` x `factor` pixels after `smart_resize`."""
    wide, high = smart_resize(width, height, factor=factor, least=least, most=most)
    return wide // factor * (high // factor)


def fixed(width: int, height: int, detail: Detail, *, tokens: int) -> int:
    """The same for every picture."""
    return tokens


_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))  # height, width


def anyres(width: int, height: int, detail: Detail) -> int:
    """The whole at 336, and the best grid of 336s less its padding, with an end for each row."""
    tall, wide = _best_grid(width, height)
    rows, columns = tall // 14, wide // 14
    if width / height > columns / rows:
        rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
    return rows * columns + rows + 576


def _best_grid(width: int, height: int) -> tuple[int, int]:
    """The grid that keeps the most pixels, then the one that wastes the fewest."""

    def worth(grid: tuple[int, int]) -> tuple[int, int]:
        scale = min(grid[1] / width, grid[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - grid[0] * grid[1]

    return max(_PINPOINTS, key=worth)


def row_patches(width: int, height: int, detail: Detail, *, patch: int, edge: int) -> int:
    """One token a patch and one at the end of each row, after shrinking to the longest edge."""
    ratio = max(width / edge, height / edge)
    if ratio > 1:
        width, height = max(1, round(width / ratio)), max(1, round(height / ratio))
    return (math.ceil(width / patch) + 1) * math.ceil(height / patch)


def phi3(width: int, height: int, detail: Detail, *, crops: int) -> int:
    """144 for each crop of 336 and for the whole, 12 more a row of crops, and one between."""
    long, short = max(width, height), min(width, height)
    ratio, scale = long / short, 1
    while scale * math.ceil(scale / ratio) <= crops:
        scale += 1
    across = scale - 1
    down = math.ceil(int(across * 336 / ratio) / 336)
    rows = down if width >= height else across
    return (down * across + 1) * 144 + 1 + (rows + 1) * 12


def _tiles(base: int, tile: int, about: str) -> ImageRule:
    return ImageRule(
        count=functools.partial(openai_tiles, base=base, tile=tile),
        about=about,
        source="OpenAI, Images and vision, Calculating costs (tiles)",
        checked="2026-11",
    )


def _patches(times: float, about: str) -> ImageRule:
    return ImageRule(
        count=functools.partial(openai_patches, times=times),
        about=about,
        source="OpenAI, Images and vision, Calculating costs (patches); factors as billed, "
        "OpenAI developer community, topics 1377015 and 1344040",
        checked="2026-11",
    )


def _qwen(factor: int, least: int, most: int, about: str) -> ImageRule:
    return ImageRule(
        count=functools.partial(merged_patches, factor=factor, least=least, most=most),
        about=about,
        source="transformers 5.24, qwen2_vl/image_processing_qwen2_vl.py: smart_resize",
        checked="2026-11",
        placeholder="<|image_pad|>",
        written=2,
    )


def _mistral(patch: int, edge: int, about: str) -> ImageRule:
    return ImageRule(
        count=functools.partial(row_patches, patch=patch, edge=edge),
        about=about,
        source="mistral-common 1.13, tokens/tokenizers/image.py",
        checked="2026-11",
        placeholder="[IMG]",
    )


IMAGE_RULES: dict[str, ImageRule] = {
    "openai-tiles": _tiles(85, 170, "GPT-4o, GPT-4.1, GPT-4.5, GPT-4 Turbo"),
    "openai-tiles-gpt-4o-mini": _tiles(2833, 5667, "GPT-4o mini"),
    "openai-tiles-gpt-5": _tiles(70, 140, "GPT-5, GPT-5 chat"),
    "openai-tiles-o1": _tiles(75, 150, "o1, o1-pro, o3"),
    "openai-tiles-computer-use": _tiles(65, 129, "computer-use-preview"),
    "openai-patches-gpt-4.1-mini": _patches(1.62, "GPT-4.1 mini"),
    "openai-patches-gpt-4.1-nano": _patches(2.46, "GPT-4.1 nano"),
    "openai-patches-o4-mini": _patches(1.72, "o4-mini"),
    "openai-patches-gpt-5-mini": _patches(1.2, "GPT-5 mini; OpenAI's page says 1.62"),
    "openai-patches-gpt-5-nano": _patches(1.5, "GPT-5 nano; OpenAI's page says 2.46"),
    "claude": ImageRule(
        count=claude,
        about="Claude 3 to 4.6",
        source="Anthropic, Vision, Evaluate image size",
        checked="2026-11",
    ),
    "claude-high-resolution": ImageRule(
        count=functools.partial(claude, edge=2576, most=5000),
        about="Claude Opus 4.7: up to 2576 pixels, 3.75 megapixels",
        source="Anthropic, Vision, Evaluate image size",
        checked="2026-11",
    ),
    "gemini": ImageRule(
        count=gemini_tiles,
        about="Gemini 1.5 to 2.5",
        source="Google, Gemini API, Understand and count tokens; Vertex AI, Image understanding",
        checked="2026-11",
    ),
    "gemini-3": ImageRule(
        count=gemini_levels,
        about="Gemini 3, by media_resolution",
        source="Google, Gemini API, Media resolution, Token counts",
        checked="2026-11",
    ),
    "qwen2-vl": _qwen(28, 56 * 56, 28 * 28 * 16384, "Qwen2-VL, Qwen2.5-VL as published"),
    "qwen2-vl-1280": _qwen(28, 56 * 56, 28 * 28 * 1280, "the same with transformers' own limit"),
    "qwen3-vl": _qwen(32, 256 * 256, 4096 * 4096, "Qwen3-VL as published"),
    "llava-1.5": ImageRule(
        count=functools.partial(fixed, tokens=576),
        about="LLaVA-1.5: 24 x 24 patches",
        source="transformers 5.24, llava/processing_llava.py",
        checked="2026-11",
        placeholder="<image>",
    ),
    "llava-next": ImageRule(
        count=anyres,
        about="LLaVA-NeXT (1.6): anyres at 336",
        source="transformers 5.24, llava_next/processing_llava_next.py",
        checked="2026-11",
        placeholder="<image>",
    ),
    "gemma-3": ImageRule(
        count=functools.partial(fixed, tokens=256),
        about="Gemma 3 without pan-and-scan; begin, end and two line breaks around",
        source="transformers 5.24, gemma3/processing_gemma3.py",
        checked="2026-11",
        placeholder="<start_of_image>",
        around=4,
    ),
    "pixtral": _mistral(16, 1024, "Pixtral 12B and Large"),
    "mistral-small-3.1": _mistral(28, 1540, "Mistral Small 3.1 and 3.2, Medium 3"),
    "phi-3-vision": ImageRule(
        count=functools.partial(phi3, crops=16),
        about="Phi-3-vision, 16 crops",
        source="microsoft/Phi-3-vision-128k-instruct, image_processing_phi3_v.py",
        checked="2026-11",
        placeholder="<|image|>",
    ),
    "phi-3.5-vision": ImageRule(
        count=functools.partial(phi3, crops=4),
        about="Phi-3.5-vision, 4 crops",
        source="microsoft/Phi-3.5-vision-instruct, image_processing_phi3_v.py",
        checked="2026-11",
        placeholder="<|image|>",
    ),
}


def image_rule(name: str) -> ImageRule:
    """The rule by its name. Raises: UserError with the nearest one."""
    if name not in IMAGE_RULES:
        raise unknown_name("image rule", name, IMAGE_RULES)
    return IMAGE_RULES[name]
