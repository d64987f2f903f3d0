"""An application on a port of this machine until told to end; `serve`: the one over models."""

from __future__ import annotations

import asyncio
import errno
import functools
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from importlib.util import find_spec
from types import FrameType
from typing import TYPE_CHECKING, Any

from lmworks.core.errors import UserError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from lmworks.inference.base import ChatModel
    from lmworks.serving.catalogue import Models

DEFAULT_PORT = 8000
DRAIN_S = 20.0
WEBSOCKET_BYTES = 8 << 20  # of one message
_SHUTDOWN_S = 3  # open streams are ended at once; this is for what does not listen


def serve(
    models: Models | Mapping[str, ChatModel],
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    open_page: bool = False,
    drain_s: float = DRAIN_S,
    **options: Any,
) -> None:
    """Serve `models` until Ctrl-C or SIGTERM, then close them.

    Ctrl-C ends running answers at once. SIGTERM, which is how supervisors end a process, lets them
    finish, and refuses new ones meanwhile; a second signal ends these too.

    Args:
        host: an address of this machine. On a loopback one, requests that other sites send
            through a browser are refused; on any other, whoever reaches the port may use it.
        port: 0 takes a free one.
        open_page: open the chat page in the browser.
        drain_s: how long running answers may take after a SIGTERM.
        options: of `create_app`.
    Raises: UserError when the port is in use or can't be had.
    """
    from lmworks.serving.app import create_app
    from lmworks.serving.catalogue import as_models
    from lmworks.serving.guard import LOOPBACK_HOSTS

    listener = bind(host, port)
    models = as_models(models)
    is_loopback = host in LOOPBACK_HOSTS
    allowed_hosts = LOOPBACK_HOSTS if is_loopback else None
    app = create_app(models, allowed_hosts=allowed_hosts, **options)
    service = app.state.service
    url = page_url(host, listener.getsockname()[1])
    lines = [
        f"chat page   {url}",
        f"OpenAI API  {url}/v1",
        f"models      {', '.join(models.names())}",
        f"chats       {service.conversations.database.path or 'in memory, until the end'}",
    ]
    if not is_loopback:
        lines.append(
            "Anyone who reaches this port can use it and read the chats: there is no password."
        )
    try:
        run_app(
            app,
            listener,
            lines,
            url if open_page else "",
            service.cancel_all,
            functools.partial(service.drain, drain_s),
        )
    finally:
        service.close()


def run_app(
    app: ASGIApp,
    listener: socket.socket,
    lines: Sequence[str],
    open_url: str = "",
    on_shutdown: Callable[[], None] = lambda: None,
    drain: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> None:
    """Run `app` on a bound socket until Ctrl-C (or SIGTERM), then close the socket.

    Args:
        lines: what to print once it answers.
        open_url: what to open in the browser then, if anything.
        on_shutdown: called on the loop before open connections are waited for.
        drain: awaited after a SIGTERM, while requests are still answered.
    """
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="websockets-sansio" if find_spec("websockets") else "none",
        ws_max_size=WEBSOCKET_BYTES,
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )

    class Server(uvicorn.Server):
        _draining: Any = None

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            self._loop = asyncio.get_running_loop()
            await super().startup(sockets)
            print("\n".join(f"  {line}" for line in [*lines, "Ctrl-C ends it."]), flush=True)
            if open_url:
                threading.Thread(target=_open, args=(open_url,), daemon=True).start()

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            # Not the parent's way, which raises the signal anew when all is over: Ctrl-C is how a
            # server ends well.
            if drain is not None and sig == signal.SIGTERM and not self._draining:
                self._draining = asyncio.run_coroutine_threadsafe(self._drain(), self._loop)
            else:
                self.force_exit = self.should_exit
                self.should_exit = True

        async def _drain(self) -> None:
            assert drain is not None
            await drain()
            self.should_exit = True

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            on_shutdown()
            await super().shutdown(sockets)

    try:
        Server(config).run(sockets=[listener])
    finally:
        listener.close()


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address. Raises: UserError saying why it can't be, and what to do."""
    if not 0 <= port <= 65535:
        raise UserError(f"port {port} does not exist: choose one from 1 to 65535 with --port")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # The protocol is named since asyncio turns Nagle's algorithm off only where it is: without,
        # the second write of an answer waits up to 40 ms for the client's delayed acknowledgement.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        if not hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # elsewhere it would share a port in use
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except (socket.gaierror, UnicodeError) as error:
        raise UserError(f"{host!r} is no address of this machine: try --host 127.0.0.1") from error
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _bind_error(host, port, error) from error
    return listener


def _bind_error(host: str, port: int, error: OSError) -> UserError:
    if error.errno == errno.EADDRINUSE:
        return UserError(f"port {port} is in use: choose another with --port, or --port 0 for any")
    if error.errno in (errno.EACCES, errno.EPERM):
        return UserError(f"no permission to use port {port}: choose one above 1023 with --port")
    if error.errno == errno.EADDRNOTAVAIL:
        return UserError(f"{host!r} is no address of this machine: try --host 127.0.0.1")
    return UserError(f"{host} port {port} can't be used: {error.strerror or error}")


def page_url(host: str, port: int) -> str:
    """Where a browser on this machine finds the page."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"


def _open(url: str) -> None:
    import webbrowser

    webbrowser.open(url)
