"""Whether an answer keeps to the JSON schema that was asked for.

A back end that decodes under a grammar always does; others promise it and sometimes fail. The
schema comes from a client, so it is held to a size, `$ref` reaches nothing outside it, and its
patterns run with a time limit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from lmworks.core.errors import MissingExtra
from lmworks.serving.errors import ApiError

_PATTERN_S = 0.1
_MAX_SCHEMA_BYTES = 100_000


def answer_check(body: Mapping[str, Any]) -> Callable[[Any], None] | None:
    """A function that raises ValueError for an answer that breaks the request's `response_format`.

    Returns: None where no format is asked for.
    Raises: ApiError (400) for a schema that is none; MissingExtra without jsonschema.
    """
    wanted = body.get("response_format")
    if not isinstance(wanted, Mapping):
        return None
    kind = wanted.get("type")
    if kind == "json_object":
        return lambda answer: _check_contents(answer, _is_object)
    if kind != "json_schema":
        return None
    inner = wanted.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if not isinstance(schema, Mapping):
        return None
    if '"patternProperties"' in json.dumps(schema):
        return None  # jsonschema would search for these without a limit of time
    validate = _validator(schema)
    return lambda answer: _check_contents(answer, validate)


def _is_object(value: Any) -> None:
    if not isinstance(value, dict):
        raise ValueError("the answer is JSON, but no object")


def _check_contents(answer: Any, validate: Callable[[Any], None]) -> None:
    for choice in answer.get("choices") or ():
        message = choice.get("message") if isinstance(choice, Mapping) else None
        if not isinstance(message, Mapping) or message.get("tool_calls") or message.get("refusal"):
            continue
        if choice.get("finish_reason") == "length":
            continue  # cut at the client's own limit: another try would be cut too
        try:
            value = json.loads(message.get("content") or "")
        except (ValueError, RecursionError, TypeError):
            raise ValueError("an answer that is no JSON") from None
        validate(value)


def _validator(schema: Mapping[str, Any]) -> Callable[[Any], None]:
    try:
        import jsonschema
        import referencing
        import regex
    except ImportError as error:
        raise MissingExtra("jsonschema", "gateway", "checking answers against a schema") from error
    if len(json.dumps(schema)) > _MAX_SCHEMA_BYTES:
        raise _bad(f"over {_MAX_SCHEMA_BYTES} bytes")

    def pattern(_: Any, wanted: str, instance: Any, __: Any) -> Any:
        if isinstance(instance, str):
            try:
                fits = regex.search(wanted, instance, timeout=_PATTERN_S)
            except (TimeoutError, regex.error):
                return  # what can't be told is not held against the answer
            if not fits:
                yield jsonschema.ValidationError(f"does not match {wanted[:80]!r}")

    base = jsonschema.Draft202012Validator
    kind = jsonschema.validators.extend(base, {"pattern": pattern})
    try:
        base.check_schema(schema)
    except (jsonschema.SchemaError, RecursionError) as error:
        raise _bad(getattr(error, "message", "nested too deeply")) from None
    checker = kind(schema, registry=referencing.Registry())

    def validate(value: Any) -> None:
        try:
            error = next(iter(checker.iter_errors(value)), None)
        except Exception as failure:  # a reference that leads nowhere, or in a circle
            raise _bad(str(failure)[:200]) from None
        if error is not None:
            raise ValueError(
                f"the answer breaks the schema at {error.json_path}: {error.message[:200]}"
            )

    return validate


def _bad(reason: str) -> ApiError:
    message = f"response_format: the schema can't be used: {reason}"
    return ApiError(400, message, param="response_format", code="invalid_schema")
