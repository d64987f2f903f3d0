"""Docstrings: what a function, class or module does, and how a function is called.

Two shapes are read: the documents that `python_docs` writes, and Python source files (parsed, never
run). Names with a leading underscore are passed over: nobody asks for them.
"""

from __future__ import annotations

import ast
import itertools
import re
import warnings
from collections.abc import Iterator

from lmworks.data.documents import Document
from lmworks.data.drawing.base import Pair, before_list, clean, first_sentences, paragraphs, phrase
from lmworks.data.python_docs import SOURCE

_DOES = ("What does {} do?", "What is {} for?", "Explain {}.", "Tell me what {} does.")
_TAKES = ("What arguments does {} take?", "How is {} called?", "What is the signature of {}?")
_CLASS = ("What is the class {}?", "What is {} for?", "Describe the class {}.")
_MODULE = ("What is the module {} for?", "What does the module {} provide?")

_SELF = re.compile(r"^(?:self|cls)(?:, /)?(?:, |$)")
_MAX_SIGNATURE_CHARACTERS = 120
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def draw(document: Document) -> Iterator[Pair]:
    """Pairs of a documentation page of Python, or of a Python source file; else none."""
    if document.source.startswith(SOURCE):
        yield from _from_page(document)
    elif document.source.endswith((".py", ".pyi")):
        yield from _from_source(document)


def _from_page(document: Document) -> Iterator[Pair]:
    """A page opens with its title (module), `class title` or a signature; methods follow."""
    last = document.title.rpartition(".")[2]
    blocks = [block.strip() for block in paragraphs(document.text)]
    for number, (head, body) in enumerate(itertools.pairwise(blocks)):
        if number == 0 and head == document.title:
            yield from _about(_MODULE, document.title, body)
        elif number == 0 and head == f"class {document.title}":
            yield from _about(_CLASS, document.title, body)
        elif number == 0 and head.startswith(document.title + "("):
            yield from _function(document.title, head.removeprefix(document.title), body)
        elif method := re.match(rf"{re.escape(last)}\.(\w+)(?=\(.*\)\Z)", head, re.DOTALL):
            name = f"{document.title}.{method[1]}"
            yield from _function(name, head[method.end() :], body)


def _function(name: str, signature: str, body: str) -> Iterator[Pair]:
    yield from _about(_DOES, name, body)
    arguments = _SELF.sub("", " ".join(signature[1:-1].split()))
    if arguments and len(arguments) <= _MAX_SIGNATURE_CHARACTERS and _is_public(name):
        yield Pair(question=phrase(_TAKES, name), answer=f"{name}({arguments})")


def _about(forms: tuple[str, ...], name: str, body: str) -> Iterator[Pair]:
    if _is_public(name) and (answer := first_sentences(_ended(body))):
        yield Pair(question=phrase(forms, name), answer=answer)


def _is_public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def _ended(body: str) -> str:
    """A docstring's first line often lacks its full stop."""
    text = clean(before_list(body))
    return text if text.endswith((".", "!", "?", ":", ",")) or not text else text + "."


def _from_source(document: Document) -> Iterator[Pair]:
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(document.text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return  # another Python's syntax, or a piece of a file
    module = document.source.rpartition("/")[2].removesuffix("i").removesuffix(".py")
    if (about := ast.get_docstring(tree)) and module != "__init__":
        yield from _about(_MODULE, module, paragraphs(about)[0])
    for node in tree.body:
        yield from _definition(node, node.name) if isinstance(node, _Defined) else ()


_Defined = ast.ClassDef | _Function


def _definition(node: ast.ClassDef | _Function, name: str) -> Iterator[Pair]:
    blocks = paragraphs(ast.get_docstring(node) or "")
    if isinstance(node, ast.ClassDef):
        yield from _about(_CLASS, name, blocks[0]) if blocks else ()
        for inner in node.body:
            if isinstance(inner, _Function):
                yield from _definition(inner, f"{name}.{inner.name}")
    elif blocks:
        yield from _function(name, f"({ast.unparse(node.args)})", blocks[0])
