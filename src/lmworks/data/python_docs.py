"""The documentation that comes with the Python that runs this: real text that is always there.

- The language reference's topics (`pydoc_data`, a module of strings).
- The docstrings of the standard library, read out of its sources by parsing them; nothing is
  imported or run. One document for each module, and one for each of its functions and classes,
  with the signatures as written.
- The docstrings of the built-in functions and types, which are in memory already.

Together 2.4 MB on Python 3.11. Left out: comments, tests, and modules written in C, whose
docstrings can be had only by importing them.
"""

from __future__ import annotations

import ast
import builtins
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.progress import track
from lmworks.data.documents import Document, stable_id
from lmworks.data.readers.rest import without_roles

SOURCE = "pydoc:"  # what `Document.source` starts with
TOPICS = "pydoc:topics/"
_SKIPPED = {
    *("test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "ensurepip"),
    *("turtledemo", "__pycache__", "__phello__", "__hello__.py"),
}
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def read_python_docs(library: Path | None = None) -> Iterator[Document]:
    """Topics first, then the built-ins, then modules in the order of their names.

    Args:
        library: where the sources lie; by default where this Python's are.
    Raises: UserError when there are no sources.
    """
    library = library or Path(sysconfig.get_path("stdlib"))
    paths = [
        path
        for path in sorted(library.rglob("*.py"))
        if not _SKIPPED & set(path.relative_to(library).parts)
        and path.relative_to(library).parts[0].removesuffix(".py").isidentifier()
    ]
    if not paths:
        raise UserError(
            f"this Python has no library sources at {library}: name a folder of documents instead"
        )
    yield from _topics()
    yield from _builtins()
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
        yield _document(f"topic-{name}", TOPICS + name, name, text)


def _builtins() -> Iterator[Document]:
    for name, value in sorted(vars(builtins).items()):
        if name.startswith("_") or not _is_native(value) or not value.__doc__:
            continue
        if isinstance(value, type):
            heads = [f"class {name}\n\n{value.__doc__}"]
            heads += [_native_text(f"{name}.{m}", f) for m, f in sorted(vars(value).items())]
            text = "\n\n".join(head for head in heads if head)
        else:
            text = _native_text(name, value)
        if text:
            yield _document("builtins", SOURCE + "builtins", name, text)


def _is_native(value: Any) -> bool:
    """A built-in function or type, not what a shell or `site` put beside them."""
    return getattr(value, "__module__", None) == "builtins" and isinstance(value, type | type(len))


def _native_text(name: str, value: Any) -> str:
    signature = getattr(value, "__text_signature__", None)
    about = getattr(value, "__doc__", None)
    if not signature or not isinstance(about, str) or name.rpartition(".")[2].startswith("_"):
        return ""
    signature = re.sub(r"\$\w+(?:, /(?=,|\)))?(?:, )?", "", signature)
    return f"{name}{signature}\n\n{about}"


def _document(group: str, source: str, title: str, text: str, nth: int = 1) -> Document:
    parts = (source, title) if nth == 1 else (source, title, str(nth))
    return Document(
        id=stable_id(*parts),
        group=group,
        source=source,
        title=title,
        text=without_roles(text).strip() + "\n",
    )


def _module(path: Path, relative: Path) -> Iterator[Document]:
    try:
        with warnings.catch_warnings(action="ignore"):  # old escapes in other people's strings
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError):
        return  # templates and the like: no documentation is lost
    parts = [part for part in relative.with_suffix("").parts if part != "__init__"]
    name, source, seen = ".".join(parts), SOURCE + ".".join(parts), Counter[str]()
    if about := ast.get_docstring(tree):
        yield _document(parts[0], source, name, f"{name}\n\n{about}")
    for node in _definitions(tree.body):
        title = f"{name}.{node.name}"
        is_class = isinstance(node, ast.ClassDef)
        text = _class_text(node, name) if is_class else _function_text(node, title)
        if text:
            seen[title] += 1
            yield _document(parts[0], source, title, text, nth=seen[title])


def _definitions(body: Sequence[ast.stmt]) -> Iterator[Any]:
    """Functions and classes of a module, also those under `if` and `try`."""
    for node in body:
        if isinstance(node, ast.ClassDef | _Function):
            yield node
        elif isinstance(node, ast.If | ast.Try):
            yield from _definitions(node.body)
            yield from _definitions(node.orelse)
            for handler in getattr(node, "handlers", []):
                yield from _definitions(handler.body)


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
