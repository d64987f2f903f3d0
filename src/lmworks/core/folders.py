"""Where lmworks keeps things of its own; results go where the user says.

| what | where |
|---|---|
| downloads | `$LMWORKS_CACHE`, else `$XDG_CACHE_HOME/lmworks`, else `~/.cache/lmworks` |
| conversations | `$LMWORKS_DATA`, else `$XDG_DATA_HOME/lmworks`, else `~/.local/share/lmworks` |
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder for downloads; it is made when something is put there."""
    return _folder("LMWORKS_CACHE", "XDG_CACHE_HOME", ".cache")


def data_folder() -> Path:
    """The folder for what can't be had again; it is made when something is put there."""
    return _folder("LMWORKS_DATA", "XDG_DATA_HOME", ".local/share")


def _folder(own: str, shared: str, below_home: str) -> Path:
    if given := os.environ.get(own):
        return Path(given).expanduser()
    base = os.environ.get(shared)
    return (Path(base) if base else Path.home() / below_home) / "lmworks"
