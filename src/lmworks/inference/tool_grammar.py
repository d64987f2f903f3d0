"""The grammar under which a model must call a tool, in the words of its template's family.

A forced answer is nothing but calls: the marks, the name and the punctuation are fixed, and the
arguments are held to the tool's schema. Where the model may choose, and a tool is `strict`, text
is free until the mark that begins a call; from there on the same rules hold.

A mark that is a special token of the vocabulary must be that token; its text would be none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from lmworks.inference.grammar import Grammar, schema_text
from lmworks.inference.sampling import InvalidParameter
from lmworks.inference.tool_formats import ToolFormat
from lmworks.inference.tools import Tool, ToolUse

MOST_CALLS = 16  # in one answer that must call
_ELEMENT_END = "\n</parameter>\n"


def tool_grammar(
    use: ToolUse,
    form: ToolFormat,
    special_tokens: dict[str, int],
    answer: Grammar | None = None,
) -> Grammar | None:
    """The grammar that the request needs; None where the model is free.

    Args:
        special_tokens: of the model's tokenizer, by text.
        answer: what an answer without calls must look like.
    Raises: InvalidParameter where the two can't be asked for together.
    """
    strict = any(tool.strict for tool in use.tools)
    if answer is not None and answer.kind != "json_schema":
        raise InvalidParameter(answer.param, "beside tools, only a JSON schema can be asked for")
    if not use.forced and not strict and answer is None:
        return None
    marks = _Marks(special_tokens)
    rules: list[str] = []
    tools = use.callable
    names = []
    for number, tool in enumerate(tools):
        held = use.forced or tool.strict or answer is not None
        if form.layout == "xml":
            rules += _elements(tool, number)
        else:
            rules.append(f"arguments_{number}: {_arguments(tool, held)}")
            rules.append(f"call_{number}: {_call(tool, number, form, marks)}")
        names.append(f"call_{number}")
    rules.append(f"call: {' | '.join(names)}")
    more = f"{{0,{MOST_CALLS - 1}}}" if use.parallel else "{0}"
    between, begin = marks.text(form.between), marks.text(form.begin + form.lead)
    end = marks.text(form.trail + form.end)
    if form.layout == "list":
        inner = f'"[" call ({between} call){more} "]"' if use.parallel else '"[" call "]"'
        calls = f"{begin} {inner} {end}"
    elif form.layout == "object" and form.bare and not form.end:  # the answer is the object
        calls = "call" + (f" ({between} call){more}" if use.parallel else "")
    else:
        one = f"{begin} call {end}"
        calls = one + (f" ({between} {one}){more}" if use.parallel else "")
    if use.forced:
        rules.insert(0, f"start: {calls}")
    elif answer is not None:
        rules = [f"start: calls | answer\ncalls: {calls}\nanswer: %json {answer.text}", *rules]
    else:
        rules = [*_free_then(form, calls, marks), *rules]
    return Grammar.lark("\n".join(rules), param="tools")


def _free_then(form: ToolFormat, calls: str, marks: _Marks) -> list[str]:
    """Rules for text, then perhaps calls, then perhaps text."""
    begin = marks.text(form.begin + form.lead)
    rest = calls.removeprefix(begin).strip()
    if calls.startswith("call"):  # an answer that begins with the object itself
        return ["start: OTHER | calls", "OTHER: /([^{](.|\\n)*)?/", f"calls: {calls}"]
    first, *_ = marks.parts(form.begin)
    if isinstance(first, int):
        return ["start: (TEXT calls)* TEXT", "TEXT: /(.|\\n)*/", f"calls: {calls}"]
    lead = marks.text(form.lead)
    return [
        "start: (opening rest)* TEXT",
        f"opening[lazy]: TEXT {json.dumps(form.begin)}",
        "TEXT: /(.|\\n)*/",
        f"rest: {lead} {rest}",
    ]


def _arguments(tool: Tool, held: bool) -> str:
    schema: dict[str, Any] = tool.parameters if held else {"type": "object"}
    if held and "additionalProperties" not in schema:
        schema = {**schema, "additionalProperties": False}
    return "%json " + schema_text(schema, strict=tool.strict)


def _call(tool: Tool, number: int, form: ToolFormat, marks: _Marks) -> str:
    arguments = f"arguments_{number}"
    if form.layout == "named":
        return f"{marks.text(tool.name + form.name_end)} {arguments}"
    head = f"{{{json.dumps(form.name)}: {json.dumps(tool.name)}, {json.dumps(form.arguments)}: "
    return f'{json.dumps(head)} {arguments} "}}"'


def _elements(tool: Tool, number: int) -> list[str]:
    """Rules for a call whose arguments are elements: texts as they are, other values as JSON."""
    schema = tool.parameters
    properties = schema.get("properties") or {}
    rules, parts = [], []
    for place, (name, inner) in enumerate(properties.items()):
        value = f"value_{number}_{place}"
        inner = inner if isinstance(inner, Mapping) else {}
        opening = json.dumps(f"<parameter={name}>\n")
        if inner.get("type") == "string":
            rules.append(_element_text(value, inner))
        else:
            shared: dict[str, Any] = {
                key: schema[key] for key in ("$defs", "definitions") if key in schema
            }
            rules.append(f"{value}: json_{value} {json.dumps(_ELEMENT_END)}")
            rules.append(f"json_{value}: %json " + schema_text({**inner, **shared}, strict=False))
        part = f"{opening} {value}"
        parts.append(part if name in schema.get("required", ()) else f"({part})?")
    head = json.dumps(f"<function={tool.name}>\n")
    return [f'call_{number}: {head} {" ".join(parts)} "</function>"', *rules]


def _element_text(rule: str, schema: Mapping[str, Any]) -> str:
    """The rule for a text: one of those that there are, or any that is no longer than allowed."""
    choices = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if choices:
        texts = (json.dumps(f"{text}{_ELEMENT_END}", ensure_ascii=False) for text in choices)
        return f"{rule}: {' | '.join(texts)}"
    most = schema.get("maxLength")
    times = f"{{0,{most}}}" if isinstance(most, int) and 0 <= most <= 10_000 else "*"
    return f"{rule}[lazy]: /(.|\\n){times}\\n<\\/parameter>\\n/"  # the end, as an expression


class _Marks:
    """Texts as Lark writes them, special tokens by id."""

    def __init__(self, special_tokens: dict[str, int]) -> None:
        self._ids = special_tokens
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def parts(self, text: str) -> list[str | int]:
        """Plain texts, and ids where a special token stands."""
        found: list[str | int] = []
        at = 0
        for match in self._pattern.finditer(text):
            found += [text[at : match.start()], self._ids[match[0]]]
            at = match.end()
        return [part for part in [*found, text[at:]] if part != ""]

    def text(self, text: str) -> str:
        """The rule's words for a text; empty for an empty one."""
        return " ".join(
            f"<[{part}]>" if isinstance(part, int) else json.dumps(part, ensure_ascii=False)
            for part in self.parts(text)
        )
