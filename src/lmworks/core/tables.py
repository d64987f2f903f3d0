"""Seams as literal tables with lazy targets: `{"name": "package.module:attribute"}`.

A table is an ordinary dict in the package that owns the seam, so names can be listed in help
texts and pages without importing what they stand for. Packages of other people add entries
through the entry-point group `lmworks.<seam>`, which is looked at only when a name is unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from lmworks.core.errors import unknown_name


def load_target(target: str) -> Any:
    """Import `package.module:attribute` and return the attribute."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def look_up(table: Mapping[str, str], name: str, *, seam: str) -> Any:
    """The object that `name` stands for in `table`.

    Args:
        seam: what the table holds, in the singular ("architecture", "objective"): used for the
            error and for the entry-point group `lmworks.<seam>`.
    Raises: UserError with the nearest known name.
    """
    if name in table:
        return load_target(table[name])
    for entry in entry_points(group=f"lmworks.{seam}"):
        if entry.name == name:
            return entry.load()
    raise unknown_name(seam, name, table)
