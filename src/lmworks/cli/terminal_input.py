"""Reading what a person types: lines that go on, longer messages, and what was typed before."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import click

from lmworks.core.folders import data_folder

_QUOTES = '"""'
_KEPT_LINES = 1000


class TerminalInput:
    """Messages, one at a time.

    Args:
        is_terminal: whether somebody types; a pipe is read line by line.
        keep: whether lines are kept for the next time.
    """

    def __init__(self, is_terminal: bool, *, keep: bool = True) -> None:
        self._is_terminal = is_terminal
        self._readline = _readline() if is_terminal else None
        self._history = data_folder() / "chat_history" if keep else None
        if self._readline is not None and self._history is not None:
            with contextlib.suppress(OSError):
                self._readline.read_history_file(self._history)

    def message(self, prefilled: str = "") -> str | None:
        """What was typed, or None at the end of the input. Ctrl-C begins anew."""
        while True:
            try:
                return self._message(prefilled)
            except KeyboardInterrupt:
                click.echo("\n(Ctrl-D leaves)", err=True)
                prefilled = ""

    def _message(self, prefilled: str) -> str | None:
        line = self._line("> ", prefilled)
        if line is None:
            return None
        lines: list[str] = []
        if line.strip().startswith(_QUOTES):
            line = line.strip().removeprefix(_QUOTES)
            while not line.rstrip().endswith(_QUOTES):
                lines.append(line)
                following = self._line(". ")
                if following is None:
                    break
                line = following
            lines.append(line.rstrip().removesuffix(_QUOTES))
        else:
            while line.endswith("\\"):
                lines.append(line[:-1])
                following = self._line(". ")
                if following is None:
                    line = ""
                    break
                line = following
            lines.append(line)
        self._keep()
        return "\n".join(lines).strip()

    def _line(self, prompt: str, prefilled: str = "") -> str | None:
        if not self._is_terminal:
            line = sys.stdin.readline()
            return line.rstrip("\n") if line else None
        if prefilled and self._readline is not None:
            self._readline.set_startup_hook(lambda: self._readline.insert_text(prefilled))
        try:
            return input(prompt)
        except EOFError:
            click.echo()
            return None
        finally:
            if self._readline is not None:
                self._readline.set_startup_hook(None)

    def _keep(self) -> None:
        if self._readline is None or self._history is None:
            return
        with contextlib.suppress(OSError):
            self._history.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._readline.set_history_length(_KEPT_LINES)
            self._readline.write_history_file(self._history)
            self._history.chmod(0o600)


def _readline() -> Any:
    try:
        import readline
    except ImportError:  # Windows has none; its console edits lines itself
        return None
    return readline
