"""The prompt library: system prompts and templates with fields, one's own and a few to begin with.

A field is `{{name}}`, or `{{name|what stands there unless said otherwise}}`. What is filled in is
put in as it is and never looked through for fields again. Left out: conditions and loops; a prompt
is text.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from lmworks.core.errors import UserError, unknown_name
from lmworks.core.files import read_json
from lmworks.serving.conversations.database import Database

Kind = Literal["system", "template"]
_FIELD = re.compile(r"\{\{\s*([^{}|\n]{1,40}?)\s*(?:\|([^{}]*))?\}\}")
_MAX_CHARACTERS = 100_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt; `built_in` ones can be copied, not changed."""

    id: str
    name: str
    kind: Kind
    text: str
    built_in: bool = False

    @property
    def fields(self) -> dict[str, str]:
        """The fields in their order, each with what stands there unless said otherwise."""
        found: dict[str, str] = {}
        for name, default in _FIELD.findall(self.text):
            found[name] = found.get(name) or default
        return found

    def filled(self, values: Mapping[str, str]) -> str:
        """The text with its fields filled in.

        Raises: UserError for a field that it has not, or one without a value.
        """
        fields = self.fields
        for name in values:
            if name not in fields:
                raise unknown_name(f"field of {self.name!r}", name, fields)
        missing = [name for name, default in fields.items() if not (values.get(name) or default)]
        if missing:
            raise UserError(f"{self.name!r} needs {missing[0]}: give {missing[0]}=...")
        return _FIELD.sub(lambda found: values.get(found[1]) or fields[found[1]], self.text)


@functools.cache
def built_in_prompts() -> tuple[Prompt, ...]:
    """Those that come with lmworks."""
    entries = read_json(Path(__file__).with_name("prompts.json"))
    return tuple(
        Prompt(id=f"built-in-{index}", built_in=True, **entry)
        for index, entry in enumerate(entries)
    )


class Prompts:
    """The prompts of a store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> list[Prompt]:
        """One's own by name, then the built-in ones."""
        rows = self._database.rows("SELECT * FROM prompts ORDER BY name COLLATE NOCASE")
        own = [
            Prompt(id=row["id"], name=row["name"], kind=row["kind"], text=row["text"])
            for row in rows
        ]
        taken = {prompt.name for prompt in own}
        return own + [prompt for prompt in built_in_prompts() if prompt.name not in taken]

    def get(self, name: str) -> Prompt:
        """By name or id. Raises: UserError with the nearest name."""
        known = self.all()
        for prompt in known:
            if name in (prompt.id, prompt.name):
                return prompt
        folded = [prompt for prompt in known if prompt.name.casefold() == name.casefold()]
        if folded:
            return folded[0]
        raise unknown_name("prompt", name, [prompt.name for prompt in known])

    def save(self, name: str, kind: str, text: str, prompt_id: str = "") -> Prompt:
        """Add a prompt, or change the one with this id or name.

        Raises: UserError for an empty or overlong name or text, or an unknown kind.
        """
        name = " ".join(name.split())
        if not 1 <= len(name) <= 100:
            raise UserError("a prompt needs a name of 1 to 100 characters")
        if kind not in get_args(Kind):
            raise unknown_name("kind of prompt", kind, get_args(Kind))
        if not len(text.strip()) >= 1 or len(text) > _MAX_CHARACTERS:
            raise UserError(f"a prompt needs a text of 1 to {_MAX_CHARACTERS:,} characters")
        with self._database.change() as connection:
            connection.execute("DELETE FROM prompts WHERE id = ? OR name = ?", (prompt_id, name))
            kept_id = prompt_id if prompt_id and not prompt_id.startswith("built-in") else ""
            row = (kept_id or secrets.token_hex(8), name, kind, text, time.time())
            connection.execute("INSERT INTO prompts VALUES (?, ?, ?, ?, ?)", row)
        return self.get(row[0])

    def delete(self, prompt_id: str) -> None:
        """Delete one of one's own. Raises: UserError for others."""
        prompt = self.get(prompt_id)
        if prompt.built_in:
            raise UserError(f"{prompt.name!r} comes with lmworks and stays; save your own instead")
        with self._database.change() as connection:
            connection.execute("DELETE FROM prompts WHERE id = ?", (prompt.id,))
