"""Whether this process is one of several that work together, and how they agree.

A launcher (torchrun, Slurm, Kubernetes) says it through RANK and WORLD_SIZE. What carries the words
between processes is `training.distributed`; it is loaded when they are asked to meet.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from lmworks.core.errors import UserError
from lmworks.core.tables import load_target

_EXCHANGE = "lmworks.training.distributed.groups:exchange"
_WATCH = "lmworks.training.distributed.health:watching"
_following = False


class Leave(Exception):
    """The work of a process that is not the main one has ended: the rest is the main one's."""


def rank() -> int:
    """The number of this process; the main one is 0."""
    return _number("RANK", 0) if several() else 0


def several() -> bool:
    """Whether a launcher started more processes than this one."""
    return _number("WORLD_SIZE", 1) > 1 and "RANK" in os.environ


def count() -> int:
    """How many processes work together; 1 without a launcher."""
    return _number("WORLD_SIZE", 1) if several() else 1


def is_main() -> bool:
    """Whether this process writes files and speaks."""
    return rank() == 0


def processes_here() -> int:
    """How many of them share this machine."""
    return max(1, _number("LOCAL_WORLD_SIZE", 1)) if several() else 1


def exchange(value: Any) -> list[Any]:
    """Everybody's value, by rank; every process has to call this."""
    if not several():
        return [value]
    ask: Callable[[Any], list[Any]] = load_target(_EXCHANGE)
    return ask(value)


@contextlib.contextmanager
def watching(what_to_do: str) -> Iterator[None]:
    """Name a process that dies meanwhile, in the others, in one line.

    Args:
        what_to_do: the end of that line.
    Raises: UserError in place of what the network says of it.
    """
    if not several():
        yield
        return
    with load_target(_WATCH)(what_to_do):
        yield


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The main process goes through the block before the others do."""
    if not is_main():
        exchange(None)
    yield
    if is_main():
        exchange(None)


def same_everywhere(facts: dict[str, str]) -> None:
    """Raises: UserError, in all processes, naming the one whose facts are not the main one's."""
    everybody = exchange(facts)
    for number, theirs in enumerate(everybody):
        for name, value in everybody[0].items():
            if theirs.get(name) != value:
                raise UserError(
                    f"process {number} of {len(everybody)} has another {name} than process 0 "
                    f"({_short(theirs.get(name))}, not {_short(value)}): give all processes the "
                    "same files, settings and version"
                )


@contextlib.contextmanager
def announcing() -> Iterator[Callable[[str], None]]:
    """In the main process: what is yielded tells the others, once; an error is told as well."""
    told = False

    def tell(word: str) -> None:
        nonlocal told
        if not told:
            told = True
            exchange(word)

    try:
        yield tell
    except BaseException as error:
        tell(f"error: {error}")
        raise


@contextlib.contextmanager
def following() -> Iterator[None]:
    """In the others: the block ends when its training has."""
    global _following
    _following = True
    try:
        yield
    except Leave:
        pass
    finally:
        _following = False


def leave_if_following() -> None:
    """Raises: Leave in a process that is not the main one, inside of `following`."""
    if _following and not is_main():
        raise Leave


def _short(value: str | None) -> str:
    return "none" if value is None else value[:12]


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else default
