"""The form of an answer out of files, as commands are given it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.files import read_json
from lmworks.inference.grammar import MAX_CHARACTERS


def response_format(
    *, json_schema: str | None = None, regex: str | None = None, grammar: str | None = None
) -> dict[str, Any] | None:
    """The setting `response_format` for one of a JSON schema's file, an expression, and a Lark
    grammar's file; None for none of them.

    Raises: UserError for several, or a file that can't be read.
    """
    given = [name for name in (json_schema, regex, grammar) if name is not None]
    if len(given) > 1:
        raise UserError("--json-schema, --regex and --grammar: one form at a time")
    if json_schema is not None:
        schema = read_json(Path(json_schema), "JSON schema")
        return {"type": "json_schema", "json_schema": {"schema": schema, "strict": True}}
    if regex is not None:
        return {"type": "grammar", "grammar": {"syntax": "regex", "definition": regex}}
    if grammar is not None:
        return {"type": "grammar", "grammar": {"syntax": "lark", "definition": _text(grammar)}}
    return None


def _text(file: str) -> str:
    path = Path(file)
    try:
        if path.stat().st_size > 4 * MAX_CHARACTERS:
            raise UserError(f"{path}: a grammar of over {MAX_CHARACTERS} characters")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the grammar can't be read: {error}") from error
