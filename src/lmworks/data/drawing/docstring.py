"""Docstrings under their signatures, as `python_docs` writes them and source files hold them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from lmworks.data.documents import Document
from lmworks.data.drawing.base import Pair, clean, first_sentences, paragraphs, phrase

_DOES = ("What does {} do?", "What is {} for?", "Explain {}.", "Tell me what {} does.")
_TAKES = ("What arguments does {} take?", "How is {} called?", "What is the signature of {}?")
_CLASS = ("What is the class {}?", "What is {} for?", "Describe the class {}.")
_MODULE = ("What is the module {} for?", "What does the module {} provide?")

_SIGNATURE = re.compile(r"([A-Za-z_][\w.]*)\((.*)\)\Z", re.DOTALL)
_CLASS_LINE = re.compile(r"class ([A-Za-z_][\w.]*)\Z")
_SOURCE = re.compile(
    r'^[ \t]*(?:async )?(def|class) +(\w+)[^\n]*(?:\n[^\n]*?)?:\s*\n\s*(?:r|R)?"""(.+?)"""',
    re.MULTILINE | re.DOTALL,
)
_MAX_SIGNATURE = 160


def draw(document: Document) -> Iterator[Pair]:
    """What a function, class or module does, and how it is called."""
    if document.source.endswith(".py") and '"""' in document.text:
        yield from _from_source(document)
        return
    blocks = paragraphs(document.text)
    if len(blocks) > 1 and blocks[0].strip() == document.title and document.source.endswith(".py"):
        yield from _about(_MODULE, document.title, blocks[1])
    for head, body in itertools.pairwise(blocks):
        head = head.strip()
        if found := _SIGNATURE.match(head):
            yield from _function(_full_name(found[1], document), found[2], body)
        elif found := _CLASS_LINE.match(head):
            yield from _about(_CLASS, found[1], body)


def _full_name(name: str, document: Document) -> str:
    """`Class.method` under the module that its document's title names."""
    module, _, last = document.title.rpartition(".")
    is_method = name != document.title and name.startswith(last + ".")
    return f"{module}.{name}" if is_method else name


def _function(name: str, arguments: str, body: str) -> Iterator[Pair]:
    yield from _about(_DOES, name, body)
    arguments = re.sub(r"^(?:self|cls)(?:, |$)", "", arguments)
    if arguments and len(arguments) < _MAX_SIGNATURE:
        yield Pair(question=phrase(_TAKES, name), answer=f"{name}({arguments})")


def _about(forms: tuple[str, ...], name: str, body: str) -> Iterator[Pair]:
    if answer := first_sentences(_ended(body)):
        yield Pair(question=phrase(forms, name), answer=answer)


def _ended(body: str) -> str:
    """A docstring's first line often lacks its full stop."""
    text = clean(body)
    return text if text.endswith((".", "!", "?", ":")) else text + "."


def _from_source(document: Document) -> Iterator[Pair]:
    for kind, name, about in _SOURCE.findall(document.text):
        first = paragraphs(about)
        if first and not name.startswith("_"):
            yield from _about(_CLASS if kind == "class" else _DOES, name, first[0])
