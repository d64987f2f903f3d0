"""Texts to learn tokens from, read piece by piece, each with the place where reading can go on.

A `.jsonl` file gives its `text` fields, a `.parquet` file its `text` column, any other file its
lines, some megabytes at a time. What a file holds is never in memory at once.

A folder is a corpus made by `lmworks data build`, or text by language: each sub-folder is one,
and so is each file that lies beside no sub-folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmworks.core.errors import MissingExtra, UserError

Placed = tuple[str, int]  # a text, and where its file goes on

_PART = 1 << 23  # bytes of a text file read at once
_LONGEST_PART = 1 << 24  # bytes of one line that are given as one text
# A line break that no white space touches stands alone under every pattern.
_ONE_LINE, _LINE = re.compile(rb"(?<=\S)\n(?=\S)"), re.compile(rb"\n(?=\S)")
_MOST_LANGUAGES = 64  # files of one folder that are taken for languages


def read_texts(path: Path) -> Iterator[str]:
    """Texts of a .jsonl or .parquet file, or of a text file in parts that begin where a line does.

    Raises: UserError naming the file and the line or byte at fault.
    """
    return (text for text, _ in placed_texts(path))


def placed_texts(path: Path, start: int = 0) -> Iterator[Placed]:
    """As `read_texts`, each text with the place behind it; begins at such a place."""
    if not path.is_file():
        raise UserError(f"{path} is missing: give a corpus made by `lmworks data build`, or a file")
    readers = {".jsonl": _json_lines, ".parquet": _parquet}
    try:
        yield from readers.get(path.suffix.lower(), _parts)(path, start)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from error


def _json_lines(path: Path, start: int) -> Iterator[Placed]:
    number, at = 0, 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            before, at = at, at + len(line)
            if at > start:
                yield _text_of(_decoded(line, path, before), f"{path}, line {number}"), at


def _text_of(line: str, where: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{where}: no JSON object with 'text'") from error
    if not isinstance(text, str):
        raise UserError(f"{where}: 'text' is no string")
    return text


def _parts(path: Path, start: int) -> Iterator[Placed]:
    """A text file in parts of some megabytes that begin where a line does, never with a space.

    Where a part ends depends on where it begins, and on nothing before.
    """
    kept, at = b"", start
    with open(path, "rb") as file:
        file.seek(start)
        while True:
            size = end = 0
            while not end:
                size += _PART
                kept += file.read(max(0, size - len(kept)))
                if len(kept) < size:
                    break
                end = _end_of_part(kept[:size])
            if not end:
                break
            yield _decoded(kept[:end], path, at), at + end
            kept, at = kept[end:], at + end
    if kept:
        yield _decoded(kept, path, at), at + len(kept)


def _end_of_part(data: bytes) -> int:
    """Where a part may end; 0: not yet. A line without end is parted at a space, or anywhere."""
    for line in (_ONE_LINE, _LINE):
        place = line.search(data, max(0, len(data) - _PART // 8)) or line.search(data)
        if place:
            return place.end()
    if len(data) < _LONGEST_PART:
        return 0
    space = data.rfind(b" ", len(data) // 2, len(data) - 1)
    if space > 0:
        return space
    end = len(data)
    while end > len(data) - 4 and data[end - 1] & 0xC0 == 0x80:
        end -= 1
    return end - 1


def _decoded(data: bytes, path: Path, at: int) -> str:
    """Text with line breaks as `\\n`. Raises: UserError naming the byte that is no UTF-8."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {at + error.start})") from error
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _parquet(path: Path, start: int) -> Iterator[Placed]:
    """The column `text`; places are rows."""
    table = _open_parquet(path)
    row = 0
    for group in range(table.num_row_groups):
        size = table.metadata.row_group(group).num_rows
        if row + size <= start:
            row += size
            continue
        for batch in table.iter_batches(256, row_groups=[group], columns=["text"]):
            for value in batch.column(0).to_pylist():
                row += 1
                if not isinstance(value, str):
                    raise UserError(f"{path}, row {row}: 'text' is no string")
                if row > start:
                    yield value, row


def _open_parquet(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "parquet", f"reading Parquet files ({path.name})") from error
    try:
        table = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a Parquet file that can be read") from error
    names = table.schema_arrow.names
    if "text" not in names:
        raise UserError(f"{path} has no column 'text'; it has: {', '.join(names)[:200]}")
    return table


def find_languages(path: Path) -> dict[str, list[Path]]:
    """The files of each language; one without a name where there is but one.

    Raises: UserError when there is nothing to read.
    """
    if path.is_file() or not path.exists():
        return {"": [path]}
    if (path / "train.jsonl").is_file():
        return {"": [path / "train.jsonl"]}
    files = sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path))
    if not files:
        raise UserError(f"{path} holds no files: give a corpus, a file, or a folder of text files")
    names = {file: _language(file, path) for file in files}
    flat = [file for file in files if file.parent == path]
    if len(flat) > _MOST_LANGUAGES:  # many texts of one language
        names |= dict.fromkeys(flat, "")
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(names[file], []).append(file)
    return {"": files} if len(found) == 1 else dict(sorted(found.items()))


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _language(file: Path, folder: Path) -> str:
    inner = file.relative_to(folder).parts
    return inner[0] if len(inner) > 1 else file.stem
