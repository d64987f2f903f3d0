"""reStructuredText: the text with its lightest markup taken off, titled by its first heading.

Roles (:func:`len` becomes `len`), comments and the doubled colon before a block go; headings,
lists and directives stay readable as they are.
"""

from __future__ import annotations

import re
from pathlib import Path

from lmworks.data.readers.base import Read
from lmworks.data.readers.text import decode

# Repeats are bounded: what is read may be made to take a search for ever.
_ROLE = re.compile(r":[a-z][a-z:+-]{0,30}:`[!~]?([^`<]{1,200}?)(?:\s{0,2}<[^`>]{0,300}>)?`")
_LINK = re.compile(r"`([^`<]{1,200}?)\s{0,2}<[^`>]{1,300}>`__?")
_LITERAL = re.compile(r"``([^`\n]+)``")
_COMMENT = re.compile(r"^\.\.(?: (?!\S+::|\[|_|\|)[^\n]*)?\n(?:[ \t]+[^\n]*\n)*", re.MULTILINE)
_COLONS = re.compile(r"^(?![ \t]*\.\. )([^\n]*[^\s:])::[ \t]*$", re.MULTILINE)
_HEADING = re.compile(r"^(\S.*)\n([=*~^\"'#-])\2{2,}[ \t]*$", re.MULTILINE)


def read_rest(path: Path, data: bytes) -> Read:
    """The text without roles and comments. Raises: Unreadable for binary data."""
    text = without_roles(_COMMENT.sub("", decode(data)))
    heading = _HEADING.search(text)
    return Read(title=heading[1] if heading else path.name, text=text)


def without_roles(text: str) -> str:
    """Inline markup as a plain reader would write it."""
    text = _LITERAL.sub(r"`\1`", _LINK.sub(r"\1", _ROLE.sub(r"`\1`", text)))
    return _COLONS.sub(r"\1:", text)
