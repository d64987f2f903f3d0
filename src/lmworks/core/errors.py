"""The one error type that a person reads, and the nearest-name hint that most of them need.

Everything that a user can cause (bad input, missing file, full disk, wrong name) is raised as
`UserError`: one line that says what is wrong, where, and what to do. The command line prints
that line and exits with `exit_code`; a traceback is shown only with `--debug`. A bug of ours is
any other exception.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend. `str(error)` is one line: what, where, what to do."""

    exit_code = 2


class MissingExtra(UserError):
    """An optional package is not installed; the message names the `pip install` that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f'{purpose} needs the package {package}: pip install "lmworks[{extra}]"')


class Preempted(UserError):
    """The system asked the process to end; what was done is saved, and a new start goes on."""

    exit_code = 75  # EX_TEMPFAIL: what schedulers are told to start again


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None when nothing is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that no table holds: nearest match first, then all known names."""
    names = sorted(known)
    close = nearest(name, names)
    hint = f"did you mean {close!r}? " if close else ""
    return UserError(f"unknown {kind} {name!r}: {hint}known: {', '.join(names)}")
