"""Tokens as text that can be shown: nothing invisible, nothing that turns the text around it."""

from __future__ import annotations

# What a browser would not draw, or what would turn the text around it.
_PICTURES = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: chr(0x2421)}
_PICTURES |= {ord("\n"): "⏎", ord("\t"): "⇥ "}
_HIDDEN = (0xAD, 0x61C, 0x200B, 0x200E, 0x200F, 0xFEFF, *range(0x202A, 0x202F))
_HIDDEN += (*range(0x2028, 0x202A), *range(0x2060, 0x206A), *range(0x80, 0xA0))
_VISIBLE = _PICTURES | dict.fromkeys(_HIDDEN, "▯")


def visible(text: str) -> str:
    """A text with pictures for what can't be seen."""
    return text.translate(_VISIBLE)


def readable(data: bytes) -> str:
    """A token's bytes as text; as hex where they are no whole characters."""
    try:
        return visible(data.decode())
    except UnicodeDecodeError:
        return data.hex(" ")
