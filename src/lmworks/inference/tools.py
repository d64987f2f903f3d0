"""Tools that a request offers: checked, told to the model, and what it may call.

Definitions and choices have OpenAI's shape. A model's template writes them where it knows tools;
where it knows none, they are told in a system message, and calls and results of earlier turns are
written as texts (`for_template`).

A call by the model is checked against the tools before it is handed on (`ToolUse.problem`): an
unknown name, arguments that are no JSON object, and such as break the tool's schema are told in
the call's `problem`, which makes a good answer to the model.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from lmworks.core.errors import nearest
from lmworks.inference.base import Messages
from lmworks.inference.grammar import MAX_CHARACTERS, Grammar, check_depth
from lmworks.inference.sampling import InvalidParameter

MAX_TOOLS = 128
_PATTERN_TIMEOUT_S = 0.2
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
Choice = Literal["auto", "required"]

_DESCRIPTION = """You can call these functions. Each line describes one:
{tools}
To call one, answer with nothing but its name and its arguments, as JSON between two tags:
<tool_call>
{{"name": "NAME", "arguments": {{"ARGUMENT": "VALUE"}}}}
</tool_call>"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tool:
    """A function that a model may call. `strict`: its arguments are held to the schema."""

    name: str
    description: str
    parameters: dict[str, Any]
    strict: bool = False

    @functools.cached_property
    def _validator(self) -> Any:
        return _validator(self.parameters)

    def problem(self, arguments: Any) -> str:
        """What is wrong with the arguments, in one line; empty for good ones."""
        if not isinstance(arguments, Mapping):
            return "the arguments are no JSON object"
        missing = [name for name in self.parameters.get("required", ()) if name not in arguments]
        if missing:
            return f"the argument {missing[0]!r} is missing"
        if self._validator is None:
            return ""
        try:
            error = next(iter(self._validator.iter_errors(arguments)), None)
        except Exception:  # a schema that the validator can't follow says nothing
            return ""
        if error is None:
            return ""
        where = "".join(f"[{part!r}]" for part in error.absolute_path)
        return f"arguments{where}: {' '.join(error.message.split())}"[:300]


def _validator(schema: Mapping[str, Any]) -> Any:
    """What checks values; None without `jsonschema`, or for what could take for ever.

    The schema is a stranger's: nothing that it refers to is fetched, and its expressions run with
    a time limit.
    """
    try:
        import jsonschema
        from jsonschema_specifications import REGISTRY
    except ImportError:  # then what a schema says is checked as far as one line of ours can
        return None
    if "patternProperties" in json.dumps(schema):  # matched by `re`, in several places
        return None
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    kind = jsonschema.validators.extend(kind, {"pattern": _check_pattern})
    return kind(schema, registry=REGISTRY)


def _check_pattern(_: Any, pattern: Any, text: Any, schema: Any) -> Iterator[Exception]:
    import jsonschema
    import regex

    if isinstance(text, str) and not regex.search(pattern, text, timeout=_PATTERN_TIMEOUT_S):
        yield jsonschema.ValidationError(f"{text!r} does not match {pattern!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToolUse:
    """The tools of a request, and whether one must be called.

    Attributes:
        choice: "auto": as the model likes; "required": at least one; or the name of the one.
        parallel: several calls in one answer.
    """

    tools: tuple[Tool, ...]
    choice: str = "auto"
    parallel: bool = True
    definitions: tuple[Mapping[str, Any], ...] = ()  # as the template is told

    @classmethod
    def of(
        cls, tools: Any, tool_choice: Any = None, parallel_tool_calls: Any = None
    ) -> ToolUse | None:
        """From OpenAI's settings; None where no tool may be called.

        Raises: InvalidParameter naming the setting and the tool at fault.
        """
        found = _tools(tools)
        choice = _choice(tool_choice, [tool.name for tool in found])
        if parallel_tool_calls not in (None, True, False):
            raise InvalidParameter("parallel_tool_calls", "must be true or false")
        if choice == "none" or not found:
            return None
        return cls(
            tools=tuple(found),
            choice=choice,
            parallel=parallel_tool_calls is not False and choice in ("auto", "required"),
            definitions=tuple(tools),
        )

    @property
    def forced(self) -> bool:
        """An answer without a call is none."""
        return self.choice != "auto"

    @property
    def callable(self) -> tuple[Tool, ...]:
        """The tools that may be called."""
        named = tuple(tool for tool in self.tools if tool.name == self.choice)
        return named or self.tools

    def find(self, name: str) -> Tool | None:
        """The tool of that name."""
        return next((tool for tool in self.tools if tool.name == name), None)

    def unknown(self, name: str) -> str:
        """What is told to who calls a tool that there is not."""
        names = [tool.name for tool in self.tools]
        close = nearest(name, names)
        hint = f"did you mean {close!r}? " if close else ""
        return f"there is no tool {name!r}: {hint}known: {', '.join(names)}"[:300]

    def problem(self, name: str, arguments: str) -> str:
        """What is wrong with a call, in one line; empty for a good one."""
        tool = self.find(name)
        if tool is None:
            return self.unknown(name)
        try:
            value = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            return f"the arguments are no JSON: {error}"[:300]
        return tool.problem(value)


def _tools(value: Any) -> list[Tool]:
    if value is None:
        return []
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise InvalidParameter("tools", "must be a list of functions")
    if len(value) > MAX_TOOLS:
        raise InvalidParameter("tools", f"{len(value)} are given, at most {MAX_TOOLS} can be")
    check_depth(value, "tools")
    found: list[Tool] = []
    for index, entry in enumerate(value):
        tool = _tool(f"[{index}]", entry)
        if any(tool.name == other.name for other in found):
            raise InvalidParameter("tools", f"[{index}]: a second {tool.name!r}")
        found.append(tool)
    if len(json.dumps([tool.parameters for tool in found])) > MAX_CHARACTERS:
        raise InvalidParameter("tools", f"schemas of over {MAX_CHARACTERS} characters in all")
    return found


def _tool(where: str, entry: Any) -> Tool:
    if not isinstance(entry, Mapping) or entry.get("type") != "function":
        raise InvalidParameter("tools", f"{where}: only tools of the type 'function' can be called")
    function = entry.get("function")
    if not isinstance(function, Mapping):
        raise InvalidParameter("tools", f"{where}: needs a function, an object")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        message = f"{where}: a name has 1 to 64 letters, digits and _ - . and is not {name!r}"
        raise InvalidParameter("tools", message[:300])
    parameters = function.get("parameters")
    parameters = {"type": "object", "properties": {}} if parameters is None else parameters
    if not isinstance(parameters, Mapping):
        raise InvalidParameter("tools", f"{where} {name}: parameters must be a JSON schema")
    if parameters.get("type", "object") != "object":
        raise InvalidParameter("tools", f"{where} {name}: parameters must describe an object")
    Grammar.json_schema({"type": "object", **parameters}, strict=False, param="tools")  # bounds
    description = function.get("description")
    if not isinstance(description, str | None):
        raise InvalidParameter("tools", f"{where} {name}: description must be a text")
    return Tool(
        name=name,
        description=description or "",
        parameters={"type": "object", **parameters},
        strict=bool(function.get("strict")),
    )


def _choice(value: Any, names: Sequence[str]) -> str:
    if value is None or value == "auto":
        return "auto"
    if value == "none":
        return "none"
    if value == "required":
        if not names:
            raise InvalidParameter("tool_choice", "'required' needs tools to choose from")
        return "required"
    function = value.get("function") if isinstance(value, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        known = (
            '\'auto\', \'none\', \'required\', or {"type": "function", "function": {"name": ...}}'
        )
        raise InvalidParameter("tool_choice", f"must be {known}")
    if name not in names:
        close = nearest(name, names)
        hint = f"did you mean {close!r}? " if close else ""
        message = f"there is no tool {name[:64]!r}: {hint}known: {', '.join(names) or 'none'}"
        raise InvalidParameter("tool_choice", message)
    return name


def for_template(
    messages: Messages, use: ToolUse | None, *, knows_tools: bool
) -> list[dict[str, Any]]:
    """Messages as a template takes them.

    Arguments of earlier calls become objects, which templates write as JSON (as a text they would
    be quoted twice). For a template that knows no tools, the tools are told in the system message,
    and calls and results become texts.
    """
    if knows_tools:
        return [_with_objects(message) for message in messages]
    plain = [_as_text(message) for message in messages]
    if use is None:
        return plain
    told = _DESCRIPTION.format(tools="\n".join(json.dumps(d["function"]) for d in use.definitions))
    if plain and plain[0].get("role") == "system":
        plain[0] = {**plain[0], "content": f"{plain[0].get('content') or ''}\n\n{told}"}
        return plain
    return [{"role": "system", "content": told}, *plain]


def _with_objects(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        return dict(message)
    return {**message, "tool_calls": [_with_object(call) for call in calls]}


def _with_object(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    if message.get("role") == "tool":
        text = f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"
        return {"role": "user", "content": text}
    calls = message.get("tool_calls")
    if not isinstance(calls, Sequence) or isinstance(calls, str) or not calls:
        return dict(message)
    texts = [str(message["content"])] if message.get("content") else []
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            name = json.dumps(function.get("name"))
            written = f'{{"name": {name}, "arguments": {function.get("arguments") or "{}"}}}'
            texts.append(f"<tool_call>\n{written}\n</tool_call>")
    return {"role": message.get("role"), "content": "\n".join(texts)}
