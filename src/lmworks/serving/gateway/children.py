"""Models that the gateway starts beside itself: a back end with `serve` becomes one with a url."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator

from lmworks.serving.gateway.config import Gateway
from lmworks.serving.servers import free_port, started_server


@contextlib.contextmanager
def started_children(gateway: Gateway) -> Iterator[Gateway]:
    """Start `lmworks serve` for each back end that names a reference, and wait until they answer.

    Raises: UserError with the last words of one that did not start.
    """
    backends = dict(gateway.backends)
    with contextlib.ExitStack() as stack:
        for name, backend in gateway.backends.items():
            if not backend.serve:
                continue
            port = free_port()
            command = [sys.executable, "-m", "lmworks.cli.main", "serve"]
            command += [_named(gateway, name, backend.serve), "--port", str(port)]
            url = f"http://127.0.0.1:{port}/v1"
            stack.enter_context(started_server(command, f"{url}/models", what=f"back end {name}"))
            backends[name] = dataclasses.replace(backend, url=url, serve="")
        yield dataclasses.replace(gateway, backends=backends)


def _named(gateway: Gateway, backend: str, reference: str) -> str:
    """NAME=REFERENCE, with the name that the routes use."""
    names = {r.model for m in gateway.models.values() for r in m.routes if r.backend == backend}
    return f"{sorted(names)[0]}={reference}" if names else reference
