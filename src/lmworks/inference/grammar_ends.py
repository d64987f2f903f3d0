"""Whether a JSON schema has a value that ends.

A schema may demand itself: a node whose required `next` is a node. No finite value meets that, and
a model that is held to it writes until its limit. The schemas that can end are a least fixed
point, found by rounds: one that needs nothing can, then those that need only such, until a round
adds none. What else may contradict itself is left to the grammar's compiler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

_SCALARS = frozenset({"string", "number", "integer", "boolean", "null"})
_MOST_ROUNDS = 50  # references that lead on for longer, against both orders, are let pass


def can_end(root: Mapping[str, Any]) -> bool:
    """Whether some finite value could meet the schema. Unknown keywords are passed over."""
    schemas = _mappings(root)
    ending: set[int] = set()
    for _ in range(_MOST_ROUNDS):
        before = len(ending)
        for schema in schemas:
            if id(schema) not in ending and _ends(schema, root, ending):
                ending.add(id(schema))
        if id(root) in ending:
            return True
        if len(ending) == before:
            return False
        schemas.reverse()  # chains of references run either way
    return True


def _mappings(root: Any) -> list[Mapping[str, Any]]:
    """Every mapping inside, the innermost first: schemas, and others that do no harm."""
    found, waiting = [], [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Mapping):
            found.append(value)
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
    return found[::-1]


def _ends(schema: Any, root: Mapping[str, Any], ending: set[int]) -> bool:
    def ends(inner: Any) -> bool:
        return not isinstance(inner, Mapping) or id(inner) in ending

    if "$ref" in schema and not ends(_target(schema["$ref"], root)):
        return False
    if not all(map(ends, _list(schema.get("allOf")))):
        return False
    for name in ("anyOf", "oneOf"):
        choices = _list(schema.get(name))
        if choices and not any(map(ends, choices)):
            return False
    if "enum" in schema or "const" in schema:
        return True
    kinds = schema.get("type", ())
    kinds = {kinds} if isinstance(kinds, str) else set(map(str, _list(kinds)))
    if not kinds or kinds & _SCALARS:
        demands = not kinds and ("required" in schema or "minItems" in schema)
        if not demands or "properties" not in schema:
            return True
    return ("array" in kinds and _array_ends(schema, ends)) or (
        ("object" in kinds or not kinds) and _object_ends(schema, ends)
    )


def _array_ends(schema: Mapping[str, Any], ends: Any) -> bool:
    least = schema.get("minItems", 0)
    first = _list(schema.get("prefixItems"))
    rest = schema.get("items", True)
    if not isinstance(least, int | float) or least <= 0:
        return True
    needed = first[: int(min(least, len(first)))]
    return all(map(ends, needed)) and (least <= len(first) or ends(rest))


def _object_ends(schema: Mapping[str, Any], ends: Any) -> bool:
    properties = schema.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    return all(ends(properties.get(name)) for name in map(str, _list(schema.get("required"))))


def _target(reference: Any, root: Mapping[str, Any]) -> Any:
    """What a local reference points to, or None."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found: Any = root
    for part in unquote(reference[1:]).split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping):
            found = found.get(name)
        elif isinstance(found, Sequence) and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        else:
            return None
    return found


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
