"""PDF files through pypdfium2: the text layer, page by page.

Left out: scans (no text layer; they are dropped with that reason) and layout.
"""

from __future__ import annotations

import re
from pathlib import Path

from lmworks.core.errors import MissingExtra
from lmworks.data.readers.base import Read, Unreadable

_MAX_PAGES = 5000


def read_pdf(path: Path, data: bytes) -> Read:
    """All pages' text. Raises: Unreadable for a locked, broken or text-less file; MissingExtra."""
    try:
        import pypdfium2
    except ImportError as error:
        raise MissingExtra("pypdfium2", "data", f"reading PDF files ({path.name})") from error
    try:
        pdf = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        locked = "password" in str(error).lower()
        rule, evidence = ("locked", "needs a password") if locked else ("broken", "not a whole PDF")
        raise Unreadable(rule, evidence) from error
    try:
        title = str(pdf.get_metadata_dict().get("Title") or "").strip()
        pages = []
        for number in range(min(len(pdf), _MAX_PAGES)):
            page = pdf[number]
            text_page = page.get_textpage()
            pages.append(text_page.get_text_bounded())
            text_page.close()
            page.close()
    except pypdfium2.PdfiumError as error:
        raise Unreadable("broken", f"page {len(pages) + 1} can't be read") from error
    finally:
        pdf.close()
    # pdfium marks a hyphen at the end of a line with U+FFFE or U+0002: the word goes on below.
    text = re.sub(r"\r\n?", "\n", "\n\n".join(pages))
    text = re.sub(r"[\ufffe\x02]\n?", "", text).replace("\0", "")
    if not text.strip():
        raise Unreadable("no_text_layer", f"{len(pages)} pages without a letter, probably scanned")
    return Read(title=title or path.name, text=re.sub(r"[ \t]+\n", "\n", text))
