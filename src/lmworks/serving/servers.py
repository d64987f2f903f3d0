"""Servers of others, or our own, started as processes beside this one and ended with it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence

from lmworks.core.errors import UserError
from lmworks.core.progress import say

START_S = 600.0  # a large model is read from a disk first
_GRACE_S = 10.0
_ASK_EVERY_S = 0.2
_SHOWN_LINES = 3


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started_server(
    command: Sequence[str],
    url: str,
    *,
    what: str,
    environment: Mapping[str, str] | None = None,
    wait_s: float = START_S,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server, wait until `url` answers with success, and end it at the end of the block.

    Args:
        what: how errors call it.
    Raises: UserError when it can't be started, ends before it answers, or does not in time; with
        the last lines that it wrote.
    """
    with tempfile.TemporaryFile() as said:
        try:
            # A group of its own: Ctrl-C in a terminal would reach it before requests are over.
            process = subprocess.Popen(
                command,
                stdout=said,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, **(environment or {})},
            )
        except OSError as error:
            raise UserError(f"{what}: {command[0]} can't be started: {error.strerror}") from error
        try:
            say(f"  starting {what}: {' '.join(command[:4])} ...")
            deadline_s = time.monotonic() + wait_s
            while not _answers(url):
                if process.poll() is not None:
                    said.seek(0)
                    last = said.read()[-4000:].decode(errors="replace").strip().splitlines()
                    told = " | ".join(last[-_SHOWN_LINES:]) or "nothing"
                    raise UserError(f"{what} ended with {process.returncode}; it said: {told}")
                if time.monotonic() > deadline_s:
                    raise UserError(f"{what} does not answer at {url} after {wait_s:g} s")
                time.sleep(_ASK_EVERY_S)
            threading.Thread(target=_watch, args=(process, what), daemon=True).start()
            yield process
        finally:
            _end(process)


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False


def _watch(process: subprocess.Popen[bytes], what: str) -> None:
    if process.wait() not in (0, -signal.SIGTERM):
        say(f"  {what} has ended with status {process.returncode}")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
