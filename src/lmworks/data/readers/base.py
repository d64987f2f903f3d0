"""The seam: a reader turns a file into documents' text, or says why it can't.

`READERS` maps a file's ending to a lazy target, so a kind of file costs nothing until one comes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from lmworks.core.tables import load_target

_TEXT = "lmworks.data.readers.text:read_text"
_MARKDOWN = "lmworks.data.readers.markdown:read_markdown"
_HTML = "lmworks.data.readers.html:read_html"
_PDF = "lmworks.data.readers.pdf:read_pdf"

_SOURCE_ENDINGS = (
    ".c .cc .clj .cpp .cs .css .dart .el .ex .exs .f90 .go .h .hpp .hs .java .jl .js .jsx .kt "
    ".lisp .lua .m .ml .php .pl .pm .py .pyi .r .rb .rs .scala .sh .sql .swift .tcl .ts .tsx "
    ".vim .zig"
)

READERS: dict[str, str] = {
    **dict.fromkeys((".txt", ".text", ".rst", ".org", ".tex", ".adoc", ".log", ""), _TEXT),
    **dict.fromkeys(_SOURCE_ENDINGS.split(), _TEXT),
    **dict.fromkeys((".md", ".markdown", ".mdx"), _MARKDOWN),
    **dict.fromkeys((".html", ".htm", ".xhtml"), _HTML),
    ".pdf": _PDF,
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
    """The reader of this kind of file, or None for kinds that hold no text."""
    target = READERS.get(path.suffix.lower())
    if target is None:
        return None
    reader: Reader = load_target(target)
    return reader
