"""Variants of a model by a word: a ggml type, a size, and how to round.

`Q4_K`, `Q4_K:gptq`, `80MB`, `4.5bpw:solve`: what `compress quantize` makes with `--type`,
`--target-size` or `--target-bpw`, and `--method` behind the colon.
"""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError, unknown_name


def settings_of(word: str) -> dict[str, Any]:
    """Settings of `compression.quantize.QuantizeConfig` that a word stands for.

    Raises: UserError for a type, size or method that is none, with the nearest.
    """
    from lmworks.compression.methods.base import method
    from lmworks.compression.quantize import QuantizeConfig
    from lmworks.core.quantities import parse_bytes

    what, colon, name = word.partition(":")
    if colon:
        method(name)
    settings: dict[str, Any] = {"method": name} if colon else {}
    known = typing.get_args(typing.get_type_hints(QuantizeConfig)["type"])
    if what in known:
        return {"type": what, **settings}
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)bpw", what):
        return {"target_bpw": float(match[1]), **settings}
    if re.fullmatch(r"[\d.]+\s*[KMGkmg]i?B", what):
        parse_bytes(what, "the size of a variant")
        return {"target_size": what, **settings}
    raise unknown_name("type", what, known)


def type_of(word: str) -> str:
    """The ggml type that a word names alone. Raises: UserError for another word."""
    settings = settings_of(word)
    if settings.keys() != {"type"}:
        raise UserError(f"{word!r}: name a type alone, such as Q5_K")
    return str(settings["type"])


def folder_of(word: str) -> str:
    """A name for a folder: `Q4_K-gptq`."""
    return re.sub(r"[^\w.]+", "-", word)


def make_variant(source: Path, word: str, folder: Path, *, calibration: str = "") -> Path:
    """The variant in a folder of its own below `folder`; one that is there is taken.

    Args:
        calibration: reference to text that methods look at; "": their own.
    """
    from lmworks.compression.quantize import QuantizeConfig, quantize

    settings = settings_of(word)
    if calibration and settings.get("method") != "rtn" and settings.keys() != {"type"}:
        settings["calibration"] = calibration
    return quantize(QuantizeConfig(model=str(source), **settings), folder / folder_of(word)).path
