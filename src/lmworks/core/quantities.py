"""Sizes and times as people write them: `4GB`, `800 MB`, `5m`, `1h30m`."""

from __future__ import annotations

import re

from lmworks.core.errors import UserError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_bytes(text: str, what: str) -> int:
    """`8GB`, `800 MB`, `4GiB` or a number of bytes.

    Args:
        what: what an error calls it, such as `--memory`.
    Raises: UserError for what is no size above zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), flags=re.IGNORECASE)
    if match is None:
        raise UserError(f"{what} {text!r}: write it as 8GB or 800MB")
    units = _BINARY if match[3] else _UNITS
    size = int(float(match[1]) * units[match[2].upper()])
    if size < 1:
        raise UserError(f"{what} {text!r}: a size above zero is needed, such as 8GB")
    return size


def parse_seconds(text: str, what: str) -> float:
    """`90`, `30s`, `5m`, `1h30m`: seconds. Raises: UserError for what is no time."""
    whole = text.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", whole):
        return float(whole)
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", whole)
    if not parts or "".join(number + unit for number, unit in parts) != whole.replace(" ", ""):
        raise UserError(f"{what} {text!r}: write it as 30s, 5m or 1h")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def shown_bytes(size: int) -> str:
    """A size for people: `1.25 GB`."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if unit != "B" else f"{size} B"
        size /= 1000  # type: ignore[assignment]
    return f"{size:.3g} GB"
