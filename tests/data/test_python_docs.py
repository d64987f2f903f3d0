"""The documentation of the Python that runs the tests, and of a library made here."""

from __future__ import annotations

import sys

import pytest

from lmworks.core.errors import UserError
from lmworks.data.documents import Document, Dropped
from lmworks.data.filters.base import drop_poor
from lmworks.data.filters.config import QualityConfig
from lmworks.data.python_docs import read_python_docs

MODULE = '''"""About the module, see :func:`f`."""
import nowhere_to_be_found
raise SystemExit("a module that is run ends the test")

def f(x, /, y: int = 1, *args, z=None, **kwargs) -> int:
    """Do the first thing."""

async def g():
    """Do the second thing."""

def silent(): ...

class C:
    """A class of things."""
    def method(self, a=[1, 2]):
        """Use the class."""
    def silent(self): ...

try:
    import fast
except ImportError:
    def slow():
        """Do it slowly."""
if True:
    def f(x):
        """Do it anew."""
'''


@pytest.fixture
def library(tmp_path):
    (tmp_path / "pack" / "test").mkdir(parents=True)
    (tmp_path / "pack" / "__init__.py").write_text('"""A package."""')
    (tmp_path / "pack" / "sub.py").write_text(MODULE)
    (tmp_path / "pack" / "test" / "check.py").write_text('"""A test."""')
    (tmp_path / "broken.py").write_text("def (:")
    (tmp_path / "old.py").write_bytes(b'"""caf\xe9"""')
    (tmp_path / "escapes.py").write_text('"""Bad escapes."""\nx = "\\d"\n')
    (tmp_path / "config-3-linux").mkdir()
    (tmp_path / "config-3-linux" / "x.py").write_text('"""No module."""')
    return tmp_path


def of(library) -> dict[str, Document]:
    rows = list(read_python_docs(library))
    assert len({row.id for row in rows}) == len(rows)
    return {row.title: row for row in rows if row.group in ("pack", "escapes", "old", "broken")}


def test_docstrings_are_read_with_signatures_and_nothing_is_run(library):
    pages = of(library)
    assert list(pages) == [
        *("escapes", "pack", "pack.sub", "pack.sub.f", "pack.sub.g", "pack.sub.C", "pack.sub.slow")
    ]
    assert pages["pack.sub"].text == "pack.sub\n\nAbout the module, see `f`.\n"
    assert pages["pack.sub.C"].text == (
        "class pack.sub.C\n\nA class of things.\n\nC.method(self, a=[1, 2])\n\nUse the class.\n"
    )
    assert pages["pack.sub.slow"].text == "pack.sub.slow()\n\nDo it slowly.\n"
    assert {page.group for page in pages.values()} == {"escapes", "pack"}
    assert "nowhere_to_be_found" not in sys.modules


def test_two_functions_of_one_name_are_two_documents(library):
    texts = [row.text for row in read_python_docs(library) if row.title == "pack.sub.f"]
    assert texts == [
        "pack.sub.f(x, /, y: int=1, *args, z=None, **kwargs)\n\nDo the first thing.\n",
        "pack.sub.f(x)\n\nDo it anew.\n",
    ]


def test_a_python_without_sources_says_so(tmp_path):
    with pytest.raises(UserError, match="has no library sources"):
        list(read_python_docs(tmp_path))


@pytest.fixture(scope="module")
def docs() -> list[Document]:
    return list(read_python_docs())


def test_this_pythons_documentation_is_large_and_every_id_is_its_own(docs):
    assert 2e6 < sum(row.num_bytes for row in docs) < 20e6
    assert len({row.id for row in docs}) == len(docs)
    assert len({row.group for row in docs}) > 100


def test_well_known_pages_read_as_they_should(docs):
    pages = {row.title: row for row in docs}
    assert pages["textwrap.wrap"].text.startswith("textwrap.wrap(text, width=70, **kwargs)\n\nWrap")
    assert pages["len"].text.startswith("len(obj, /)\n\nReturn the number of items")
    assert "str.upper()\n\nReturn a copy" in pages["str"].text
    assert pages["with"].group == "topic-with"
    assert "builtins" not in {row.source.partition(":")[0] for row in docs}


def test_the_filters_leave_it_but_for_scraps(docs):
    dropped = [r for r in drop_poor(docs, QualityConfig()) if isinstance(r, Dropped)]
    assert {row.rule for row in dropped} <= {"too_short"}
    assert len(dropped) < 0.05 * len(docs)


def test_reading_twice_gives_the_same(docs):
    assert list(read_python_docs()) == docs
