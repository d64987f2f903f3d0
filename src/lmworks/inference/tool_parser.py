"""A model's text, piece by piece, to plain text and calls of tools.

Text that could still become the mark of a call is held back, as with stop strings; so are blanks
that may stand before one. Once a call's name is read, its arguments are passed on as they come, to
the letter. What begins like a call and is none stays text: nothing that the model wrote is lost.

The same calls come out however the text is cut.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Mapping
from typing import Any

from lmworks.inference.base import ToolCallDelta
from lmworks.inference.tool_formats import ToolFormat
from lmworks.inference.tools import ToolUse

Piece = str | ToolCallDelta
_LETTERS = string.ascii_letters + string.digits
_LONGEST_HEAD = 1000  # characters in which a call's name must stand for its arguments to stream
_HEAD = r'\{\s*"%s"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
_SEPARATORS = re.compile(r"[\s,;\[\]]*")
_LIST_END = re.compile(r"[\s\]]*")
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>")


class ToolCallParser:
    """One answer's text. `push` it in pieces, then `finish`."""

    def __init__(self, use: ToolUse, form: ToolFormat) -> None:
        self._use, self._form = use, form
        self._head = re.compile(_HEAD % form.name)
        self._text = ""  # not yet decided upon
        self._state = self._start if form.bare else self._plain
        self._raw = ""  # of a call that has no name yet: given back if it is none
        self._marked = False  # the calls at hand stand behind a mark
        self._calls_here = 0  # since that mark
        self._object_ends = _Nesting()
        self._object_read = 0
        self._call: _Arguments | None = None
        self.num_calls = 0

    @property
    def complete(self) -> bool:
        """No more is wanted: the one call that may be made was made."""
        return self.num_calls > 0 and not self._use.parallel and self._call is None

    def push(self, text: str) -> list[Piece]:
        """What this text decides."""
        self._text += text
        return self._run(final=False)

    def finish(self) -> list[Piece]:
        """The rest, when no more text comes."""
        pieces = self._run(final=True)
        if self._call is not None:
            pieces += self._end_call("the answer ended in the middle of the arguments")
        return pieces

    def _run(self, *, final: bool) -> list[Piece]:
        pieces: list[Piece] = []
        while not self.complete:
            before = self._state, len(self._text)
            pieces += self._state(final)
            if (self._state, len(self._text)) == before:
                return pieces
        self._text = ""
        return pieces

    # --- states: each takes what it can from `_text` ---

    def _start(self, final: bool) -> list[Piece]:
        """The first sign: an object may be a call without a mark."""
        body = self._text.lstrip()
        if body or final:
            self._state = self._calls if body.startswith(("{", "[")) else self._plain
        return []

    def _plain(self, final: bool) -> list[Piece]:
        begin = self._form.begin
        at = self._text.find(begin)
        if at >= 0:
            before, self._text = self._text[:at].rstrip(), self._text[at + len(begin) :]
            self._raw, self._marked, self._calls_here = begin, True, 0
            states = {"named": self._named, "xml": self._element}
            self._state = states.get(self._form.layout, self._calls)
            return [before] if before else []
        keep = len(self._text) if final else _undecided(self._text, begin)
        safe = self._text[:keep]
        if not final or (self.num_calls and not safe.strip()):
            safe = safe.rstrip()  # blanks before a call are the call's
        self._text = "" if final else self._text[len(safe) :]
        return [safe] if safe else []

    def _calls(self, final: bool) -> list[Piece]:
        """Between objects: marks and signs of lists are passed over, anything else ends it."""
        found = _SEPARATORS.match(self._text)
        assert found is not None
        end, body = self._form.end.strip(), self._text[found.end() :]
        if body.startswith("{"):
            self._raw += self._text[: found.end()]
            self._text, self._state = body, self._object
            self._object_ends, self._object_read = _Nesting(), 0
            return []
        if not self._calls_here:
            waits = not body and not final
            return [] if waits else self._give_up()
        if end and body.startswith(end):
            self._text, self._state = body[len(end) :], self._plain
        elif final or (body and not end.startswith(body)):
            ended = _LIST_END.match(self._text)
            self._text = self._text[ended.end() if ended else 0 :]
            self._state = self._plain
        return []

    def _give_up(self, size: int = 0) -> list[Piece]:
        """What stood there was no call: text it stays, with `size` characters of what follows."""
        text, self._text = self._raw + self._text[:size], self._text[size:]
        self._raw, self._state = "", self._plain
        return [text] if text else []

    def _object(self, final: bool) -> list[Piece]:
        head = self._head.match(self._text[:_LONGEST_HEAD])
        name = _loaded(head[1]) if head else None
        if head and name is not None and self._may_call(name):
            self._text, self._state = self._text[head.end() :], self._streamed
            return self._begin_call(name)
        end = self._object_ends.end(self._text, self._object_read)
        if end >= 0:
            return self._whole(end)
        self._object_read = len(self._text)
        return self._give_up() if final else []

    def _may_call(self, name: str) -> bool:
        """Behind a mark it is a call whatever it names; bare, it must name a tool."""
        return self._marked or self._use.find(name) is not None

    def _whole(self, size: int) -> list[Piece]:
        """An object that did not show its name first: a call if it has a name and arguments."""
        value = _loaded(self._text[:size])
        if isinstance(value, dict) and isinstance(value.get("function"), dict):
            value = value["function"]
        value = value if isinstance(value, dict) else {}
        name = value.get(self._form.name, value.get("name"))
        given = [value[key] for key in ("arguments", "parameters") if key in value]
        if not isinstance(name, str) or not given or not self._may_call(name):
            return self._give_up(size)
        arguments = given[0]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        self._text, self._state = self._text[size:], self._calls
        return [*self._begin_call(name), *self._say_arguments(arguments), *self._end_call()]

    def _streamed(self, final: bool) -> list[Piece]:
        """The arguments as they come."""
        assert self._call is not None
        end = self._call.nesting.end(self._text, 0)
        size = len(self._text) if end < 0 else end
        text, self._text = self._text[:size], self._text[size:]
        pieces = self._say_arguments(text)
        if end >= 0:
            self._state = self._calls if self._form.layout == "named" else self._closing
            pieces += self._end_call()
        return pieces

    def _closing(self, final: bool) -> list[Piece]:
        """The end of the object around the arguments."""
        at = self._text.find("}")
        if at >= 0:
            self._text, self._state = self._text[at + 1 :], self._calls
        return []

    def _named(self, final: bool) -> list[Piece]:
        name_end = self._form.name_end
        at, body = self._text.find(name_end), self._text.find("{")
        if at < 0 or 0 <= body < at:
            return self._give_up() if final or body >= 0 else []
        body = at + len(name_end)
        rest = self._text[body:].lstrip()
        if not rest and not final:
            return []
        if not rest.startswith("{"):
            return self._give_up()
        name, self._text, self._state = self._text[:at].strip(), rest, self._streamed
        return self._begin_call(name)

    def _element(self, final: bool) -> list[Piece]:
        at = self._text.find("</function>")
        if at < 0:
            return self._give_up() if final else []
        size = at + len("</function>")
        found = _FUNCTION.match(self._text[:size])
        if found is None:
            return self._give_up(size)
        name = found[1].strip()
        tool = self._use.find(name)
        properties = (tool.parameters.get("properties") or {}) if tool else {}
        values = {
            key: _value(text, properties.get(key))
            for key, text in _PARAMETER.findall(self._text[:size])
        }
        self._text, self._state = self._text[size:], self._calls
        arguments = json.dumps(values, ensure_ascii=False)
        return [*self._begin_call(name), *self._say_arguments(arguments), *self._end_call()]

    # --- the call at hand ---

    def _begin_call(self, name: str) -> list[Piece]:
        size = self._form.id_characters
        token = "".join(secrets.choice(_LETTERS) for _ in range(size))
        self._call = _Arguments(name)
        self._raw = ""
        self._calls_here += 1
        self.num_calls += 1
        call_id = token if size == 9 else f"call_{token}"
        return [ToolCallDelta(index=self.num_calls - 1, id=call_id, name=name)]

    def _say_arguments(self, text: str) -> list[Piece]:
        assert self._call is not None
        if not text:
            return []
        self._call.text += text
        return [ToolCallDelta(index=self.num_calls - 1, arguments=text)]

    def _end_call(self, problem: str = "") -> list[Piece]:
        assert self._call is not None
        problem = problem or self._use.problem(self._call.name, self._call.text)
        self._call = None
        return [ToolCallDelta(index=self.num_calls - 1, problem=problem)] if problem else []


class _Arguments:
    def __init__(self, name: str) -> None:
        self.name, self.text, self.nesting = name, "", _Nesting()


class _Nesting:
    """Finds where a JSON object that comes in pieces ends."""

    _SIGNS = re.compile(r'[{}\[\]"\\]')

    def __init__(self) -> None:
        self._depth, self._in_string, self._escaped = 0, False, False

    def end(self, text: str, start: int) -> int:
        """Read on from `start`; the index behind the closing sign, or -1."""
        at = start
        while at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            found = self._SIGNS.search(text, at)
            if found is None:
                return -1
            sign, at = found[0], found.end()
            if self._in_string:
                self._in_string = sign != '"'
                self._escaped = sign == "\\"
            elif sign == '"':
                self._in_string = True
            elif sign in "{[":
                self._depth += 1
            elif sign in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return at
        return -1


def _undecided(text: str, mark: str) -> int:
    """Where the longest end of the text begins that could become the mark; else its length."""
    for at in range(max(0, len(text) - len(mark) + 1), len(text)):
        if mark.startswith(text[at:]):
            return at
    return len(text)


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _value(text: str, schema: Any) -> Any:
    """An element's text: as it is where the schema says text, else as JSON where it is some."""
    if isinstance(schema, Mapping) and schema.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
