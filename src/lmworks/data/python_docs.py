"""The documentation that comes with the Python that runs this: real text that is always there.

The language reference's topics (`pydoc_data`), and the docstrings of the standard library, read
out of its sources by parsing them; nothing is imported or run. One document for each module, and
for each of its functions and classes, with the signatures as written.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from lmworks.core.errors import UserError
from lmworks.core.progress import track
from lmworks.data.documents import Document, stable_id

_SKIPPED = {
    *("test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "ensurepip"),
    *("turtledemo", "__pycache__"),
}
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def read_python_docs() -> Iterator[Document]:
    """Topics first, then modules in the order of their names.

    Raises: UserError when this Python comes without the sources of its library.
    """
    library = Path(sysconfig.get_path("stdlib"))
    paths = [
        path
        for path in sorted(library.rglob("*.py"))
        if not _SKIPPED & set(path.relative_to(library).parts)
    ]
    if not paths:
        raise UserError(
            f"this Python has no library sources at {library}: name a folder of documents instead"
        )
    yield from _topics()
    with track("reading docstrings", total=len(paths)) as bar:
        for path in paths:
            yield from _module(path, path.relative_to(library))
            bar.advance()


def _topics() -> Iterator[Document]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions ship it apart
        return
    for name, text in sorted(topics.items()):
        yield _document("topic-" + name, "pydoc_data/topics.py", name, text)


def _document(group: str, source: str, title: str, text: str) -> Document:
    number = stable_id(source, title)
    return Document(id=number, group=group, source=source, title=title, text=text.strip() + "\n")


def _module(path: Path, relative: Path) -> Iterator[Document]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return  # templates and the like: no documentation is lost
    parts = [part for part in relative.with_suffix("").parts if part != "__init__"]
    name, group, source = (
        ".".join(parts),
        relative.parts[0].removesuffix(".py"),
        relative.as_posix(),
    )
    if about := ast.get_docstring(tree):
        yield _document(group, source, name, f"{name}\n\n{about}")
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            text = _class_text(node, name)
        elif isinstance(node, _Function):
            text = _function_text(node, f"{name}.{node.name}")
        else:
            continue
        if text:
            yield _document(group, source, f"{name}.{node.name}", text)


def _function_text(node: _Function, name: str) -> str:
    about = ast.get_docstring(node)
    return f"{name}({ast.unparse(node.args)})\n\n{about}" if about else ""


def _class_text(node: ast.ClassDef, module: str) -> str:
    about = ast.get_docstring(node)
    pieces = [f"class {module}.{node.name}\n\n{about}"] if about else []
    for inner in node.body:
        if isinstance(inner, _Function):
            pieces.append(_function_text(inner, f"{node.name}.{inner.name}"))
    return "\n\n".join(piece for piece in pieces if piece)
