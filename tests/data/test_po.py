"""Catalogues of translations: read as Babel reads them; hostile ones are told by their line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.data.corpus import CorpusConfig, build_corpus
from lmworks.data.folder import FolderConfig, read_folder
from lmworks.data.parallel import ParallelConfig, build_parallel, read_parallel
from lmworks.data.readers.base import Unreadable
from lmworks.data.readers.json_texts import read_json
from lmworks.data.readers.po import parse_po, read_po

PO = r"""# A comment
msgid ""
msgstr "Content-Type: text/plain; charset=utf-8\n"

#. extracted
#: file.py:3
msgctxt "code,name:A00"
msgid "Cholera"
msgstr "Cholerainfektion"

msgid ""
"two "
"lines\n"
msgstr ""
"zwei \"Zeilen\"\n"
"\tund \\ mehr"

#, fuzzy
msgid "doubtful"
msgstr "zweifelhaft"

msgid "untranslated"
msgstr ""
msgid "without a gap"
msgstr "ohne Lücke"

#, python-format
msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d Datei"
msgstr[1] "%d Dateien"

#~ msgid "old"
#~ msgstr "alt"
"""


def pairs(text: str) -> list[tuple[str, str, str]]:
    return [(e.context, e.source, e.translation) for e in parse_po(text)]


def test_entries() -> None:
    assert pairs(PO) == [
        ("code,name:A00", "Cholera", "Cholerainfektion"),
        ("", "two lines\n", 'zwei "Zeilen"\n\tund \\ mehr'),
        ("", "without a gap", "ohne Lücke"),
        ("", "%d file", "%d Datei"),
        ("", "%d files", "%d Dateien"),
    ]
    assert pairs(PO.replace("\n", "\r\n")) == pairs(PO)


def theirs(text: str) -> list[tuple[str, str, str]]:
    from babel.messages.pofile import read_po as babel

    found = []
    for message in babel(io.BytesIO(text.encode())):
        if not message.id or message.fuzzy:
            continue
        sources = message.id if isinstance(message.id, tuple) else (message.id,)
        texts = message.string if isinstance(message.string, tuple) else (message.string,)
        found += [
            (message.context or "", sources[min(i, len(sources) - 1)], text)
            for i, text in enumerate(texts)
            if text
        ]
    return found


def test_entries_are_those_of_babel() -> None:
    assert pairs(PO) == theirs(PO)


@given(st.dictionaries(st.text(st.sampled_from('ab"\\\n\té '), min_size=1), st.text("ab\\\"\n#'")))
def test_what_babel_writes_is_read(entries: dict[str, str]) -> None:
    from babel.messages.catalog import Catalog
    from babel.messages.pofile import write_po

    catalog: Any = Catalog(locale="de")
    for source, translation in entries.items():
        catalog.add(source, translation)
    file = io.BytesIO()
    write_po(file, catalog, width=0)
    expected = [("", source, text) for source, text in entries.items() if text]
    assert sorted(pairs(file.getvalue().decode())) == sorted(expected)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('msgid "a"\nmsgstr "b', 2),
        ("hello", 1),
        ('"a"', 1),
        ('msgid "a"\n\nmsgstr b\n', 3),
        ("msgid " * 10_000, 1),
        ('msgid "a"\nmsgstr[9999] "b"', 2),
    ],
)
def test_lines_that_are_no_po(text: str, line: int) -> None:
    with pytest.raises(Unreadable, match=f"^line {line} is no line of a PO file"):
        pairs(text)


def test_as_a_document() -> None:
    read = read_po(Path("de.po"), PO.encode())
    assert read.text.startswith("Cholera\nCholerainfektion\n\ntwo lines\n")
    with pytest.raises(Unreadable, match="no entry is translated"):
        read_po(Path("de.po"), b'msgid "a"\nmsgstr ""\n')
    with pytest.raises(Unreadable):
        read_po(Path("de.po"), b"\0\1\2")


def catalogue(texts: dict[str, str]) -> str:
    return "".join(
        f'msgctxt "name:{number // 10:02}"\nmsgid "{source}"\nmsgstr "{text}"\n\n'
        for number, (source, text) in enumerate(texts.items())
    )


@pytest.fixture
def catalogues(tmp_path: Path) -> Path:
    folder = tmp_path / "locale"
    folder.mkdir()
    numbers = range(200)
    (folder / "de.po").write_text(catalogue({f"the text {n}": f"der Text {n}" for n in numbers}))
    (folder / "fr.po").write_text(
        catalogue({f"the text {n}": f"le texte {n}" if n % 3 else "" for n in numbers})
    )
    return folder


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_files_agree_line_by_line(catalogues: Path, tmp_path: Path) -> None:
    config = ParallelConfig(source=str(catalogues), group_by=r"name:(\d\d)")
    made = build_parallel(config, tmp_path / "out").path
    held = {}
    for side in ("train", "heldout"):
        texts = {name: lines(made / side / f"{name}.txt") for name in ("en", "de", "fr")}
        held[side] = {line.rpartition(" ")[2] for line in texts["en"]}
        for english, german, french in zip(*texts.values(), strict=True):
            number = english.rpartition(" ")[2]
            assert (german, french) == (f"der Text {number}", f"le texte {number}")
    groups = {side: {int(number) // 10 for number in numbers} for side, numbers in held.items()}
    assert not groups["train"] & groups["heldout"] and len(groups["heldout"]) >= 2
    assert sum(map(len, held.values())) == 200 * 2 // 3
    named = json.loads((made / "heldout_groups.json").read_text())
    assert len(named) == len(held["heldout"]) and {int(g) for g in named} == groups["heldout"]
    again = build_parallel(config, tmp_path / "again").path
    assert lines(again / "heldout/de.txt") == lines(made / "heldout/de.txt")


def test_a_language_can_be_made_scarce(catalogues: Path, tmp_path: Path) -> None:
    sizes = {}
    for share in (0.2, 0.5, 1.0):
        config = ParallelConfig(source=str(catalogues / "de.po"), train_share={"de": share})
        made = build_parallel(config, tmp_path / str(share)).path
        german, english = (lines(made / "train" / f"{name}.txt") for name in ("de", "en"))
        sizes[share] = (set(german), len(english), lines(made / "heldout" / "de.txt"))
    assert sizes[0.2][0] < sizes[0.5][0] < sizes[1.0][0] and sizes[0.2][1:] == sizes[1.0][1:]
    assert len(sizes[1.0][0]) == sizes[1.0][1] and 15 < len(sizes[0.2][0]) < 55


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"languages": ["it"]}, "has no it.po"),
        ({"group_by": "("}, "group_by = "),
        ({"heldout_share": 1.0}, "a share between"),
        ({"train_share": {"de": 0.0}}, "train_share.de = 0.0: a share above 0"),
        ({"train_share": {"ed": 0.5}}, "unknown language in train_share 'ed': did you mean"),
    ],
)
def test_bad_settings(
    catalogues: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build_parallel(ParallelConfig(source=str(catalogues), **changes), tmp_path / "out")


def test_catalogues_that_can_not_be_used(catalogues: Path, tmp_path: Path) -> None:
    def read(path: Path) -> list[Any]:
        return list(read_parallel(path, ParallelConfig(source=str(path))))

    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no \.po file"):
        read(tmp_path / "empty")
    (catalogues / "es.po").write_text('msgid "other"\nmsgstr "otro"\n')
    with pytest.raises(UserError, match="no entry is translated into de, es, fr"):
        read(catalogues)
    (catalogues / "es.po").write_text("broken")
    with pytest.raises(UserError, match=r"es\.po: line 1 is no line"):
        read(catalogues)
    (catalogues / "sub").mkdir()
    (catalogues / "sub" / "de.po").write_text("")
    with pytest.raises(UserError, match=r"several de\.po"):
        read(catalogues)


def test_texts_of_json() -> None:
    long = "a text of " + "many words " * 9
    value = {"title": "short", "b": [{"x": long + "1"}, long + "2", 3, None], "c": long + "3"}
    text = read_json(Path("x.json"), json.dumps(value).encode()).text
    assert [line[-1] for line in text.split("\n\n")] == ["1", "2", "\n"] and text.endswith("3\n")
    for data in (b"{", b"[" * 100_000, b'{"a": "b"}', b"9" * 5000):
        with pytest.raises(Unreadable):
            read_json(Path("x.json"), data)


def test_files_of_one_group_stay_together(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for family in "abcdefghijklmnopqrstuvwxyz":
        for number in range(4):
            words = " ".join(f"{family}{number}{n} word{n * n}" for n in range(60))
            text = f"---\nkey: x\n---\nText {number} of {family}: {words}\n"
            (folder / f"{family}-{number}.LICENSE").write_text(text)
    files = FolderConfig(group_by="^[a-z]")
    documents = list(read_folder(folder, files))
    assert {document.group for document in documents} == set("abcdefghijklmnopqrstuvwxyz")  # type: ignore[union-attr]
    assert all(document.text.startswith("Text ") for document in documents)  # type: ignore[union-attr]
    made = build_corpus(CorpusConfig(folder=str(folder), files=files), tmp_path / "out").path
    sides = [
        {json.loads(row)["group"] for row in lines(made / f"{side}.jsonl")}
        for side in ("train", "heldout")
    ]
    assert sides[1] and not sides[0] & sides[1]
    with pytest.raises(UserError, match=r"files\.group_by = '\('"):
        list(read_folder(folder, FolderConfig(group_by="(")))
