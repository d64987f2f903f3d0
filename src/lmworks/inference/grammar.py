"""What an answer must look like: a JSON schema, any JSON object, a regular expression, a grammar.

A `Grammar` is a description and knows no tokens; `grammar_tokens.GrammarCompiler` makes of it what
masks a model's logits. It is made from OpenAI's `response_format`; grammars that are no schemas
have the shape that OpenAI's custom tools give them:

    {"type": "json_schema", "json_schema": {"name": "city", "schema": {...}, "strict": true}}
    {"type": "json_object"}
    {"type": "grammar", "grammar": {"syntax": "regex" or "lark", "definition": "..."}}

Schemas come from strangers. Size and nesting are bounded before anything is built, and a schema
that no finite value meets is refused: `llguidance` tells contradictions, and what is demanded of
itself without end (a required property whose schema is the whole schema again) is told here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

from lmworks.inference.grammar_ends import can_end
from lmworks.inference.sampling import InvalidParameter

MAX_CHARACTERS = 200_000
MAX_DEPTH = 100
# Between two signs of JSON; without a bound, a small model may write blanks till the limit.
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,32}"
_PARAM = "response_format"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grammar:
    """A form of answers.

    Attributes:
        kind: "json_schema", "regex" or "lark".
        text: the schema as JSON, the expression, or the grammar.
        param: the setting that it came from, to which faults are told.
    """

    kind: Literal["json_schema", "regex", "lark"]
    text: str
    param: str = _PARAM

    def __post_init__(self) -> None:
        if len(self.text) > MAX_CHARACTERS:
            message = f"a grammar of {len(self.text)} characters; at most {MAX_CHARACTERS} can be"
            raise InvalidParameter(self.param, message)

    @classmethod
    def json_schema(cls, schema: Any, *, strict: bool = True, param: str = _PARAM) -> Grammar:
        """Values that meet a JSON schema.

        Args:
            schema: the schema, a mapping or a boolean.
            strict: refuse a keyword that can't be enforced, instead of passing over it.
        Raises: InvalidParameter for what is no schema, or can't be met by any finite value.
        """
        if isinstance(schema, bool):
            schema = {} if schema else {"enum": []}
        if not isinstance(schema, Mapping):
            raise InvalidParameter(param, f"a JSON schema is an object, not {_shown(schema)}")
        check_depth(schema, param)
        if not can_end(schema):
            raise InvalidParameter(param, "no finite value meets this schema: it demands itself")
        return cls(kind="json_schema", text=schema_text(schema, strict=strict), param=param)

    @classmethod
    def json_object(cls, *, param: str = _PARAM) -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"}, param=param)

    @classmethod
    def regex(cls, expression: Any, *, param: str = _PARAM) -> Grammar:
        """Texts that an expression (of the Rust crate `regex`) matches as a whole."""
        text = _text(expression, param)
        if (len(text) - len(text.rstrip("\\"))) % 2:  # it would quote what is put behind it
            raise InvalidParameter(param, "an expression can't end with a single backslash")
        return cls(kind="regex", text=text, param=param)

    @classmethod
    def lark(cls, grammar: Any, *, param: str = _PARAM) -> Grammar:
        """Texts of a context-free grammar in Lark's notation; it begins with the rule `start`."""
        return cls(kind="lark", text=_text(grammar, param), param=param)

    @classmethod
    def of_response_format(cls, value: Any) -> Grammar | None:
        """From OpenAI's setting; None for plain text. Raises: InvalidParameter."""
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise InvalidParameter(_PARAM, f"must be an object with a type, not {_shown(value)}")
        match value.get("type"):
            case "text":
                return None
            case "json_object":
                return cls.json_object()
            case "json_schema":
                return cls._of_json_schema(value.get("json_schema"))
            case "grammar":
                return cls._of_grammar(value.get("grammar"))
        known = "text, json_object, json_schema, grammar"
        raise InvalidParameter(_PARAM, f"unknown type {_shown(value.get('type'))}: known: {known}")

    @classmethod
    def _of_json_schema(cls, value: Any) -> Grammar:
        if not isinstance(value, Mapping) or "schema" not in value:
            raise InvalidParameter(_PARAM, "json_schema must be an object with a schema")
        return cls.json_schema(value["schema"], strict=bool(value.get("strict")))

    @classmethod
    def _of_grammar(cls, value: Any) -> Grammar:
        syntax = value.get("syntax") if isinstance(value, Mapping) else None
        if syntax == "regex":
            return cls.regex(value.get("definition"))
        if syntax == "lark":
            return cls.lark(value.get("definition"))
        raise InvalidParameter(
            _PARAM, "grammar must have a syntax, lark or regex, and a definition"
        )


def schema_text(schema: Mapping[str, Any], *, strict: bool = True) -> str:
    """The schema as JSON, with what `llguidance` is told about blanks and unknown keywords."""
    options = {
        "whitespace_pattern": _WHITESPACE,
        "lenient": not strict,
        "coerce_one_of": not strict,
    }
    return json.dumps({**schema, "x-guidance": options}, ensure_ascii=False)


def check_depth(value: Any, param: str) -> None:
    """Raises: InvalidParameter for what is nested more than MAX_DEPTH levels deep."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise InvalidParameter(param, f"nested more than {MAX_DEPTH} levels deep")
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, Mapping) else outer)
            if isinstance(inner, Mapping | list | tuple)
        ]


def _text(value: Any, param: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidParameter(param, f"a grammar is a text, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
