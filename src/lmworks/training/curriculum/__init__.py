"""In which order, at which lengths and in which parts text is learnt.

In: a corpus as windows, and a `pretrain` config. Out: the windows of each step. The names below
load when they are asked for: the settings (`config`) are read by command lines without NumPy.
"""

from __future__ import annotations

from typing import Any

_EXPORTS = {
    "MixtureConfig": "config",
    "PacingConfig": "config",
    "Windows": "base",
    "with_curriculum": "base",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lmworks.core.tables import load_target

    return load_target(f"{__name__}.{_EXPORTS[name]}:{name}")
