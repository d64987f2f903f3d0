"""Writing that never leaves half a file, reading JSON with errors a person understands, hashing.

Every write goes to a temporary name in the same folder, is flushed to the disk and then renamed,
so that a crash, Ctrl-C or a full disk leaves the former file as it was.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from lmworks.core.errors import UserError

_CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def atomic_open(path: str | Path, mode: str = "wb", **kwargs: Any) -> Iterator[IO[Any]]:
    """Open a temporary neighbour of `path` for writing; it takes the name when the block ends well.

    Raises: UserError when the disk is full or the folder can't be written; the old file stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, mode, **kwargs) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            fsync_folder(path.parent)
    finally:
        _discard(temporary)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all. Same value, same bytes."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def atomic_save(path: str | Path, save: Callable[[Path], None]) -> None:
    """For libraries that insist on a path: `save` writes a temporary one, which is then renamed."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            save(temporary)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            fsync_folder(path.parent)
    finally:
        _discard(temporary)


def _discard(temporary: Path) -> None:
    """Remove what is left, without hiding the error that the block ended with."""
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the errors that a disk gives into one line each."""
    try:
        yield
    except OSError as error:
        # torch and safetensors wrap the errno away and leave only its text.
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or "No space left" in str(error):
            raise UserError(disk_full_message(path)) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(
                f"no permission to write {path}: choose another folder with --out"
            ) from error
        if error.errno == errno.EISDIR:
            raise UserError(f"cannot write {path}: it is a folder, not a file") from error
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"cannot write {path}: the name is too long") from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise UserError(
                f"cannot write {path}: a part of this path is a file, not a folder"
            ) from error
        raise
    except Exception as error:
        if "No space left" in str(error):
            raise UserError(disk_full_message(path)) from error
        raise


def disk_full_message(path: Path) -> str:
    """The line for a full disk: where, how much is free, and that nothing was lost."""
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return (
        f"the disk is full while writing {path} ({free / 2**20:.0f} MiB free): "
        "make room and run the same command again; what was saved before is kept"
    )


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_json(path: str | Path, what: str = "file") -> Any:
    """Parse a JSON file. Raises: UserError naming the file, line and column of the fault."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{what} not found: {path}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path} is not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{what} {path} is not valid JSON: {error.msg} at line {error.lineno}, "
            f"column {error.colno}"
        ) from error
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{what} {path} is not valid JSON: {error}") from error
    except OSError as error:
        raise UserError(f"{what} {path} can't be read: {error.strerror}") from error
    except RecursionError as error:
        raise UserError(f"{what} {path} is nested too deeply to be read") from error


class JsonLine(NamedTuple):
    """A line of a JSON-lines file: `where` is "FILE, line N", for errors; `number` begins at 1."""

    where: str
    number: int
    value: Any


def read_json_lines(
    path: str | Path,
    *,
    errors: str = "strict",
    max_bytes: int | None = None,
    fault: str = ": not valid JSON",
) -> Iterator[JsonLine]:
    """The values of a JSON-lines file in UTF-8, one by one; blank lines are passed over.

    Args:
        errors: what becomes of bytes that are no UTF-8, as in `bytes.decode`.
        max_bytes: of a line; a longer one is refused before it is read.
        fault: what an error says behind the place.
    Raises: UserError naming file and line; OSError as `open`.
    """
    limit = -1 if max_bytes is None else max_bytes + 1
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(limit), b""), start=1):
            where = f"{path}, line {number}"
            if max_bytes is not None and len(line) > max_bytes:
                raise UserError(f"{where}: over {max_bytes >> 20} MB")
            try:
                text = line.decode("utf-8-sig", errors)
                if not text.strip():
                    continue
                value = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}{fault}: {_reason(error)}") from error
            yield JsonLine(where, number, value)


def _reason(error: Exception) -> str:
    """Why a text is no JSON, in words that hold nothing of the text."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 text (byte {error.start} of the line)"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def hash_folder(folder: str | Path, skip: tuple[str, ...] = ()) -> str:
    """SHA-256 over relative names and contents of all files below `folder`, in sorted order.

    Hidden files are passed over, and so are the names in `skip`.
    """
    folder = Path(folder)
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        relative = path.relative_to(folder)
        if path.name in skip or any(part.startswith(".") for part in relative.parts):
            continue
        digest.update(f"{relative.as_posix()}\0{hash_file(path)}\n".encode())
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON: equal values, equal hash."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
