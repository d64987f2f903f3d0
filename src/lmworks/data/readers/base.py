"""The seam: a reader turns a file into a title and text, or says why it can't.

`READERS` maps a file's ending to a lazy target, so a kind of file costs nothing until one comes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from lmworks.core.tables import load_target

_TEXT = "lmworks.data.readers.text:read_text"
_REST = "lmworks.data.readers.rest:read_rest"
_SOURCE = "lmworks.data.readers.source:read_source"
_MARKDOWN = "lmworks.data.readers.markdown:read_markdown"
_HTML = "lmworks.data.readers.html:read_html"
_PDF = "lmworks.data.readers.pdf:read_pdf"
_PO = "lmworks.data.readers.po:read_po"
_OFFICE = "lmworks.data.readers.office:read_office"
_JSON = "lmworks.data.readers.json_texts:read_json"

# Endings of program text. What is judged as code, and read by `readers/source.py`.
_SOURCE_ENDINGS = (
    ".bash .bat .c .cc .clj .cmake .cpp .cs .css .cu .cxx .dart .el .erl .ex .exs .f90 .fs .go "
    ".gradle .groovy .h .hpp .hs .java .jl .js .jsx .kt .lisp .lua .m .ml .mm .nim .php .pl .pm "
    ".proto .ps1 .pxd .py .pyi .pyx .r .rb .rs .scala .scm .sh .sql .swift .tcl .ts .tsx .vim "
    ".vue .zig"
)
SOURCE_ENDINGS = frozenset(_SOURCE_ENDINGS.split())

READERS: dict[str, str] = {
    **dict.fromkeys((".txt", ".text", ".org", ".tex", ".adoc", ".log", ""), _TEXT),
    **dict.fromkeys((".rst", ".rest"), _REST),
    **dict.fromkeys(sorted(SOURCE_ENDINGS), _SOURCE),
    **dict.fromkeys((".md", ".markdown", ".mdown", ".mdx", ".rmd", ".qmd"), _MARKDOWN),
    **dict.fromkeys((".html", ".htm", ".xhtml"), _HTML),
    ".pdf": _PDF,
    **dict.fromkeys((".docx", ".pptx", ".xlsx", ".odt", ".odp", ".ods"), _OFFICE),
    ".po": _PO,
    ".json": _JSON,
    ".license": _MARKDOWN,  # a licence's text under front matter, as ScanCode keeps them
}


class Unreadable(Exception):
    """A file that gives no text; `str(error)` is the evidence, `rule` its short name."""

    def __init__(self, rule: str, evidence: str) -> None:
        super().__init__(evidence)
        self.rule = rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Read:
    """What a reader found."""

    title: str
    text: str


Reader = Callable[[Path, bytes], Read]


def reader_for(path: Path) -> Reader | None:
    """The reader of this kind of file, or None for a kind that is not known."""
    target = READERS.get(path.suffix.lower())
    if target is None:
        return None
    reader: Reader = load_target(target)
    return reader


def is_code(source: str) -> bool:
    """Whether a document's source is a file of program text."""
    return Path(source).suffix.lower() in SOURCE_ENDINGS
