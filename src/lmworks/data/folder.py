"""A folder, walked in sorted order: every file becomes a document or a reason why not.

Hidden files and folders, dependencies, virtual environments, caches and folders that lmworks made
are passed over in silence: nobody means them. Links to folders are not followed (they may go round
in circles), links to files are. A file that vanishes or may not be read is dropped with that
reason; the rest goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from lmworks.core.config import option
from lmworks.core.errors import UserError
from lmworks.core.files import hash_file
from lmworks.core.progress import track
from lmworks.data.documents import Document, Dropped, stable_id
from lmworks.data.readers.base import Read, Unreadable, reader_for
from lmworks.data.readers.text import looks_binary

_SKIPPED_FOLDERS = {"node_modules", "__pycache__", "venv", "site-packages"}
_SKIPPED_IF_HOLDING = ("pyvenv.cfg", "lmworks.json")  # virtual environments; our own artifacts
_MAX_TITLE_CHARACTERS = 200
_HEAD_BYTES = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """Which files of a folder are read."""

    max_file_megabytes: float = option(64.0, help="larger files are dropped")
    group_by: str = option(
        "", help="regular expression; files whose names match it alike are held out together"
    )


def read_folder(folder: Path, config: FolderConfig) -> Iterator[Document | Dropped]:
    """Documents of all files below `folder` (or of one file), dropped files with their reason.

    Raises: UserError for a folder that may not be read, or something that is neither.
    """
    try:
        re.compile(config.group_by)
    except re.error as error:
        raise UserError(f"files.group_by = {config.group_by!r}: {error}") from error
    paths = list(_walk(folder))
    root = folder if folder.is_dir() else folder.parent
    with track("reading files", total=len(paths)) as bar:
        for path in paths:
            yield _read(path, path.relative_to(root).as_posix(), config)
            bar.advance()


def hash_folder(folder: Path) -> str:
    """SHA-256 over names and contents of the files that `read_folder` would open.

    Other files count with their names only, so that a folder of films costs nothing.
    """
    digest = hashlib.sha256()
    for path in _walk(folder):
        name = path.relative_to(folder) if path != folder else path.name
        digest.update(os.fsencode(f"{name}\0{_content(path)}\n"))
    return digest.hexdigest()


def _content(path: Path) -> str:
    try:
        return hash_file(path) if path.is_file() and reader_for(path) else ""
    except OSError as error:
        return f"unreadable: {error.errno}"


def _walk(folder: Path) -> Iterator[Path]:
    if folder.is_file():
        yield folder
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is neither a folder nor a file that can be read")
    locked: list[Path] = []
    for parent, folders, files in os.walk(
        folder, onerror=lambda e: locked.append(Path(e.filename))
    ):
        here = Path(parent)
        folders[:] = sorted(name for name in folders if not _skipped(here / name))
        yield from (here / name for name in sorted(files) if not name.startswith("."))
    if folder in locked:
        raise UserError(f"no permission to read {folder}")
    yield from sorted(locked)


def _skipped(folder: Path) -> bool:
    name = folder.name
    if name.startswith(".") or name in _SKIPPED_FOLDERS or name.endswith(".partial"):
        return True
    try:
        return any((folder / mark).exists() for mark in _SKIPPED_IF_HOLDING)
    except OSError:  # may not be entered: the walk will say so
        return False


def _read(path: Path, name: str, config: FolderConfig) -> Document | Dropped:
    number = stable_id(name)
    shown = os.fsencode(name).decode("utf-8", "replace")  # names may be any bytes
    title = shown.rpartition("/")[2]
    try:
        found = _opened(path, config)
    except Unreadable as error:
        return Dropped(id=number, source=shown, title=title, rule=error.rule, evidence=str(error))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return Dropped(id=number, source=shown, title=title, rule="unreadable", evidence=reason)
    title = " ".join(found.title.split())[:_MAX_TITLE_CHARACTERS] or title
    return Document(
        id=number, group=_group(shown, config), source=shown, title=title, text=found.text
    )


def _group(name: str, config: FolderConfig) -> str:
    """What the expression finds in a name, its first group if it has one; else the name."""
    found = re.search(config.group_by, name) if config.group_by else None
    if found is None:
        return name
    return found[found.re.groups and 1] or name


def _opened(path: Path, config: FolderConfig) -> Read:
    if not path.is_file():
        if path.is_dir():
            raise Unreadable("unreadable", "no permission to look into this folder")
        gone = not os.path.lexists(path)
        raise Unreadable("unreadable", "vanished" if gone else "a broken link or no regular file")
    read = reader_for(path)
    if read is None:
        with open(path, "rb") as file:
            binary = looks_binary(file.read(_HEAD_BYTES))
        if binary:
            raise Unreadable("binary", f"{path.suffix} file, not text")
        raise Unreadable("unknown_kind", f"{path.suffix} files are not read")
    size = path.stat().st_size / 1e6
    if size > config.max_file_megabytes:
        raise Unreadable(
            "too_large", f"{size:.0f} MB; files.max_file_megabytes = {config.max_file_megabytes:g}"
        )
    return read(path, path.read_bytes())
