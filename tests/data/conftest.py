"""Documents and files for the data room's tests, made here and read by the real readers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from lmworks.data.documents import Document

SENTENCES = (
    "The {0} is a small animal that lives in the {1} and eats what it finds there.",
    "In the {1} the {0} builds a nest of dry grass before the first snow falls.",
    "People of the {1} tell that a {0} once led a lost child home through the night.",
)
ANIMALS = (
    *("otter", "heron", "badger", "lynx", "marten", "vole"),
    *("stoat", "crane", "plover", "dormouse", "hare", "shrew"),
)
PLACES = ["marsh", "forest", "valley", "meadow", "canyon", "delta"]


def prose(animal: str, place: str) -> str:
    """A few true-looking paragraphs, different for each pair."""
    return "\n\n".join(sentence.format(animal, place) for sentence in SENTENCES) + "\n"


@pytest.fixture
def prose_folder(tmp_path: Path) -> Path:
    """72 short text files, each different."""
    folder = tmp_path / "notes"
    folder.mkdir()
    for animal in ANIMALS:
        for place in PLACES:
            (folder / f"{animal}-{place}.txt").write_text(prose(animal, place), encoding="utf-8")
    return folder


@pytest.fixture
def make_document():
    """`make_document("text", source="a.txt")`: a document whose group and id follow its source."""

    def make(text: str, *, source: str = "a.txt", title: str = "", group: str = "") -> Document:
        return Document(
            id=source, group=group or source, source=source, title=title or source, text=text
        )

    return make


@pytest.fixture(scope="session")
def pdf():
    """`pdf([["a line", "another"]], title="...")`: the bytes of a PDF file."""
    return write_pdf


def write_pdf(pages: Sequence[Sequence[str]], *, title: str = "", encrypted: bool = False) -> bytes:
    """A PDF 1.4 file with lines of Helvetica on each page.

    `encrypted` adds a standard handler whose password nobody knows.
    """
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, lines in enumerate(pages):
        shown = " ".join(f"({line}) Tj 0 -16 Td" for line in lines)
        stream = f"BT /F1 12 Tf 50 750 Td {shown} ET"
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] "
            f"/Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * number} 0 R >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    objects.append(f"<< /Title ({title}) >>")
    body, offsets = "%PDF-1.4\n", []
    for number, text in enumerate(objects, start=1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{text}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    locked = (
        f"/Encrypt << /Filter /Standard /V 1 /R 2 /O <{'41' * 32}> /U <{'42' * 32}> /P -4 >> "
        f"/ID [<{'43' * 16}> <{'43' * 16}>] "
    )
    trailer = (
        f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}trailer\n"
        f"<< /Size {len(objects) + 1} /Root 1 0 R /Info {len(objects)} 0 R "
        f"{locked if encrypted else ''}>>\nstartxref\n{len(body)}\n%%EOF\n"
    )
    return (body + trailer).encode("latin-1")
