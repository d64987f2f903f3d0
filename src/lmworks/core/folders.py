"""Where lmworks keeps what it downloads: `$LMWORKS_CACHE`, else `$XDG_CACHE_HOME/lmworks`,
else `~/.cache/lmworks`. Results go where the user says; nothing else is written anywhere."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder for downloads; it is made when something is put there."""
    if own := os.environ.get("LMWORKS_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lmworks"
