"""A folder, walked in sorted order: every file becomes a document or a reason why not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lmworks.core.errors import UserError
from lmworks.core.progress import track
from lmworks.data.documents import Document, Dropped, stable_id
from lmworks.data.readers.base import Unreadable, reader_for

_SKIPPED_FOLDERS = {"node_modules", "__pycache__", "venv", "site-packages"}
_MAX_FILE_BYTES = 64 * 2**20


def read_folder(folder: Path) -> Iterator[Document | Dropped]:
    """Documents of all files below `folder` (or of one file), dropped files with their reason.

    Hidden folders, virtual environments and caches are passed over in silence; links to folders
    are not followed. Raises: UserError for a folder that may not be read.
    """
    paths = list(_walk(folder))
    root = folder if folder.is_dir() else folder.parent
    with track("reading files", total=len(paths)) as bar:
        for path in paths:
            yield _read(path, path.relative_to(root).as_posix())
            bar.advance()


def _walk(folder: Path) -> Iterator[Path]:
    if folder.is_file():
        yield folder
        return

    def refuse(error: OSError) -> None:
        if Path(error.filename or "") == folder:
            raise UserError(f"no permission to read {folder}") from error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in _SKIPPED_FOLDERS
            and not (Path(parent) / name / "pyvenv.cfg").exists()
        )
        yield from (Path(parent) / name for name in sorted(files) if not name.startswith("."))


def _read(path: Path, name: str) -> Document | Dropped:
    number = stable_id(name)
    try:
        read = reader_for(path)
        if read is None:
            raise Unreadable("kind of file", f"{path.suffix or path.name} files hold no text")
        if not path.is_file():
            raise Unreadable("unreadable", "not a regular file")
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise Unreadable("too large", f"{path.stat().st_size / 2**20:.0f} MiB")
        found = read(path, path.read_bytes())
    except Unreadable as error:
        return Dropped(
            id=number, source=name, title=path.name, rule=error.rule, evidence=str(error)
        )
    except OSError as error:
        reason = error.strerror or type(error).__name__
        return Dropped(id=number, source=name, title=path.name, rule="unreadable", evidence=reason)
    return Document(id=number, group=name, source=name, title=found.title, text=found.text)
