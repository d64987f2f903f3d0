"""A gateway on a port until Ctrl-C or SIGTERM; and its parts opened for the command line.

Told to end, it takes no new connections, lets what runs come to its end within `drain_s`, settles
it, and goes. A second signal ends it at once.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from types import FrameType

from lmworks.core.errors import UserError
from lmworks.core.files import writing
from lmworks.serving.gateway.config import Gateway
from lmworks.serving.gateway.door import Door
from lmworks.serving.gateway.keys import load_pepper
from lmworks.serving.gateway.ledger import Ledger, LocalLedger
from lmworks.serving.gateway.office import Office
from lmworks.serving.gateway.store import Store


def open_ledger(gateway: Gateway, store: Store) -> Ledger:
    """In Redis where the config names one, else in the store."""
    if gateway.settings.redis:
        from lmworks.serving.gateway.redis_ledger import RedisLedger

        return RedisLedger(gateway.settings.redis, store)
    return LocalLedger(store)


@contextlib.contextmanager
def open_office(gateway: Gateway) -> Iterator[Office]:
    """Keys, usage and logs, for commands; a running gateway sees what they change."""
    pepper = load_pepper(gateway.settings.secret_env, gateway.store)
    store = Store(gateway.store)
    try:
        yield Office(gateway, store, open_ledger(gateway, store), pepper)
    finally:
        store.close()


def serve_gateway(gateway: Gateway, host: str = "", port: int | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        host, port: instead of the config's.
    Raises: UserError for a port in use, a store that another gateway uses, a model that can't be
        started.
    """
    from lmworks.serving.gateway.app import create_gateway_app
    from lmworks.serving.gateway.children import started_children
    from lmworks.serving.run import bind, page_url

    settings = gateway.settings
    host = host or settings.host
    listener = bind(host, settings.port if port is None else port)
    with contextlib.ExitStack() as stack:
        stack.callback(listener.close)
        if not settings.redis:
            stack.enter_context(_alone(gateway))
        pepper = load_pepper(settings.secret_env, gateway.store)
        store = Store(gateway.store)
        stack.callback(store.close)
        store.keep_log_small()
        gateway = stack.enter_context(started_children(gateway))
        embed = None
        if settings.cache.semantic:
            from lmworks.serving.gateway.semantic_cache import load_question_encoder

            encoder = load_question_encoder(settings.cache.embedder)
            stack.callback(encoder.close)
            embed = encoder.encode
        door = Door(gateway, store, open_ledger(gateway, store), pepper, embed=embed)
        url = page_url(host, listener.getsockname()[1])
        lines = [
            f"OpenAI API  {url}/v1",
            f"models      {', '.join(gateway.models)}",
            f"back ends   {', '.join(gateway.backends)}",
            f"keys        lmworks gateway keys create NAME --config {gateway.path}",
            "Ctrl-C ends it.",
        ]
        _run(create_gateway_app(door), door, listener, lines)


def _run(app: object, door: Door, listener: socket.socket, lines: list[str]) -> None:
    import uvicorn

    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_level="warning",
        access_log=False,
        lifespan="on",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=max(1, round(door.gateway.settings.drain_s)),
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print("\n".join(f"  {line}" for line in lines), flush=True)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            self.force_exit = self.should_exit
            self.should_exit = door.draining = True

    Server(config).run(sockets=[listener])


@contextlib.contextmanager
def _alone(gateway: Gateway) -> Iterator[None]:
    """Hold a lock beside the store: its counters are in the memory of one process."""
    path = gateway.store.with_suffix(".lock")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            import fcntl
        except ImportError:  # Windows has no flock; two gateways there are not kept apart
            pass
        else:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another gateway uses {gateway.store}: set redis in {gateway.path}, so that "
                    "several share their counters, or give this one another store"
                ) from None
        yield
    finally:
        os.close(handle)
