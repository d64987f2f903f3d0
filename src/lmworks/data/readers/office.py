"""Office files: Word, PowerPoint, Excel (.docx, .pptx, .xlsx) and OpenDocument (.odt, .odp, .ods).

They are zips of XML, of which the text is taken: paragraphs, headings, rows of tables, slides and
sheets. Nothing is run, linked files are not followed, entities are refused, and a part that is
larger than anybody writes is too. Left out: pictures, comments, formulas (their values are taken),
the old binary kinds.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from lmworks.data.readers.base import Read, Unreadable

_MAX_PART_BYTES = 64 << 20
_MAX_PARTS = 2000


def read_office(path: Path, data: bytes) -> Read:
    """The text. Raises: Unreadable for what is no such file, locked, too large or empty."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = _Parts(archive)
            text = "\n\n".join(_texts(parts))
            title = _title(parts)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise Unreadable("broken", "not a whole Office file") from error
    except RuntimeError as error:  # zipfile's word for a password
        raise Unreadable("locked", "needs a password") from error
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    if not text:
        raise Unreadable("no_text", "holds no text")
    return Read(title=title or path.name, text=text + "\n")


class _Parts:
    """The XML files in the zip, within limits."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.names = archive.namelist()
        if len(self.names) > _MAX_PARTS:
            raise Unreadable("too_large", f"{len(self.names)} parts")

    def read(self, name: str) -> ElementTree.Element | None:
        if name not in self.names:
            return None
        with self._archive.open(name) as part:
            data = part.read(_MAX_PART_BYTES + 1)  # what the zip says of its size may be a lie
        if len(data) > _MAX_PART_BYTES:
            raise Unreadable("too_large", f"{name} is over {_MAX_PART_BYTES >> 20} MB")
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
            raise Unreadable("unsafe", f"{name} declares entities")
        try:
            return ElementTree.fromstring(data)
        except (ElementTree.ParseError, ValueError) as error:
            raise Unreadable("broken", f"{name} is no XML: {error}") from error

    def numbered(self, pattern: str) -> Iterator[ElementTree.Element]:
        found = [(int(m[1]), n) for n in self.names if (m := re.fullmatch(pattern, n))]
        for _, name in sorted(found):
            part = self.read(name)
            if part is not None:
                yield part


def _texts(parts: _Parts) -> Iterator[str]:
    document = parts.read("word/document.xml")
    if document is not None:
        yield from _blocks(document)
    for number, slide in enumerate(parts.numbered(r"ppt/slides/slide(\d{1,6})\.xml"), 1):
        yield f"## Slide {number}\n\n" + "\n\n".join(_blocks(slide))
    if "xl/workbook.xml" in parts.names:
        yield from _sheets(parts)
    content = parts.read("content.xml")
    if content is not None:
        yield from _blocks(content)


def _tag(node: ElementTree.Element) -> str:
    return node.tag.rpartition("}")[2] if isinstance(node.tag, str) else ""


def _blocks(root: ElementTree.Element) -> Iterator[str]:
    """Paragraphs and rows of tables, in order. No recursion: the file says how deep it is."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        tag = _tag(node)
        if tag in ("tr", "table-row"):
            cells = [" ".join(_line(cell).split()) for cell in node if _tag(cell) in _CELLS]
            if any(cells):
                yield "| " + " | ".join(cells) + " |"
        elif tag in ("p", "h"):
            line = _line(node).strip()
            if line:
                yield _heading(node) + line
        else:
            waiting += reversed(node)


_CELLS = {"tc", "table-cell"}


def _heading(paragraph: ElementTree.Element) -> str:
    if _tag(paragraph) == "h":
        levels = [v for k, v in paragraph.attrib.items() if k.endswith("}outline-level")]
        return "#" * min(6, int(levels[0]) if levels and levels[0].isdecimal() else 1) + " "
    for node in paragraph:
        for style in node if _tag(node) == "pPr" else ():
            value = next((v for k, v in style.attrib.items() if k.endswith("}val")), "")
            if _tag(style) == "pStyle" and (m := re.fullmatch(r"(?:Heading|Title)\s*(\d?)", value)):
                return "#" * min(6, int(m[1] or 1)) + " "
    return ""


def _line(node: ElementTree.Element) -> str:
    """The text of one paragraph or cell."""
    pieces: list[str] = []
    open_document = _tag(node) in ("h", "table-cell") or "opendocument" in node.tag
    for inner in node.iter():
        tag = _tag(inner)
        if tag == "t" or (open_document and inner.text):
            pieces.append(inner.text or "")
        if tag in ("tab", "br", "line-break", "s"):
            pieces.append({"tab": "\t", "s": " "}.get(tag, "\n"))
        if tag == "p" and inner is not node:
            pieces.append(" ")
        if open_document and inner is not node and inner.tail:
            pieces.append(inner.tail)
    return "".join(pieces)


def _sheets(parts: _Parts) -> Iterator[str]:
    strings = parts.read("xl/sharedStrings.xml")
    shared = [_line(item) for item in strings] if strings is not None else []
    sheets = parts.numbered(r"xl/worksheets/sheet(\d{1,6})\.xml")
    for number, sheet in enumerate(sheets, 1):
        rows = []
        for row in sheet.iter():
            if _tag(row) == "row":
                cells = [_cell(cell, shared) for cell in row if _tag(cell) == "c"]
                if any(cells):
                    rows.append("| " + " | ".join(cells) + " |")
        if rows:
            yield f"## Sheet {number}\n\n" + "\n".join(rows)


def _cell(cell: ElementTree.Element, shared: list[str]) -> str:
    kind = cell.attrib.get("t", "n")
    value = next((child.text or "" for child in cell if _tag(child) == "v"), "")
    if kind == "s" and value.isdecimal() and int(value) < len(shared):
        value = shared[int(value)]
    elif kind == "inlineStr":
        value = _line(cell)
    return " ".join(value.split())


def _title(parts: _Parts) -> str:
    for name in ("docProps/core.xml", "meta.xml"):
        part = parts.read(name)
        for node in part.iter() if part is not None else ():
            if _tag(node) == "title" and node.text:
                return " ".join(node.text.split())
    return ""
