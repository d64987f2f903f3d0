"""Gateways on loopback ports, and back ends that do as they are told, for tests."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import uvicorn
import yaml

from lmworks.serving.gateway.app import create_gateway_app
from lmworks.serving.gateway.config import Gateway, check_config
from lmworks.serving.gateway.door import Door
from lmworks.serving.gateway.keys import load_pepper
from lmworks.serving.gateway.run import open_ledger, open_office
from lmworks.serving.gateway.store import Store
from lmworks.serving.run import bind

FAKE = Path(__file__).with_name("fake_backend.py")
_TLS = ssl.create_default_context()  # nothing here needs it, and each client would make one
QUESTION = [{"role": "user", "content": "hi"}]


class FakeBackend:
    """A process; see `fake_backend`."""

    def __init__(self, mode: str = "ok", tokens: int = 5, port: int = 0) -> None:
        command = [sys.executable, str(FAKE), "--mode", mode, "--tokens", str(tokens)]
        self.process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.PIPE)
        assert self.process.stdout
        self.port = int(self.process.stdout.readline())
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def mode(self, mode: str) -> None:
        httpx.post(f"http://127.0.0.1:{self.port}/mode", content=mode, verify=_TLS)

    def seen(self) -> dict[str, Any]:
        return httpx.get(f"http://127.0.0.1:{self.port}/asked", verify=_TLS).json()

    def asked(self) -> list[dict[str, Any]]:
        return self.seen()["asked"]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        if self.process.stdout:
            self.process.stdout.close()


class LiveGateway:
    """A gateway in a thread of this process."""

    def __init__(self, config: Gateway, embed: Any = None) -> None:
        self.config = config
        self.pepper = load_pepper("LMWORKS_TEST_SECRET", config.store)
        self._socket = bind("127.0.0.1", 0)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._embed = embed
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        store = Store(self.config.store)
        ledger = open_ledger(self.config, store)
        self.door = Door(self.config, store, ledger, self.pepper, embed=self._embed)
        app = create_gateway_app(self.door)
        settings = uvicorn.Config(app, log_level="warning", lifespan="on", ws="none")
        self._server = uvicorn.Server(settings)
        self._server.run(sockets=[self._socket])
        store.close()

    def __enter__(self) -> LiveGateway:
        self._thread.start()
        while not (self._server and self._server.started):
            assert self._thread.is_alive()
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def key(self, name: str = "alice", **settings: Any) -> str:
        """A new key, made as the command line makes it: beside the running gateway."""
        limits = {n: v for n, v in settings.items() if n not in ("models", "days", "admin")}
        rest = {n: v for n, v in settings.items() if n in ("models", "days", "admin")}
        with open_office(self.config) as office:

            async def make() -> str:
                text, _ = await office.create("test", name=name, limits=limits, **rest)
                await office.close()
                return text

            return asyncio.run(make())

    def client(self, key: str = "", **options: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        options = {"timeout": 30, "verify": _TLS, **options}
        return httpx.Client(base_url=self.url, headers=headers, **options)

    def rows(self, query: str) -> list[dict[str, Any]]:
        store = Store(self.config.store)
        try:
            return store.rows(query)
        finally:
            store.close()


def config_over(
    folder: Path, backends: dict[str, Any], models: dict[str, Any] | None = None, **settings: Any
) -> Gateway:
    """A config for tests: quick, and one model over all back ends unless told otherwise."""
    # Long waits: on a busy machine an honest answer takes a while. Tests of hanging set their own.
    quick = {"health_path": "", "connect_s": 20.0, "first_byte_s": 30.0, "answer_s": 30.0}
    made = {}
    for name, entry in backends.items():
        entry = {"url": entry.url} if isinstance(entry, FakeBackend) else entry
        made[name] = {**quick, **entry}
    routes = [{"backend": name, "model": "fake"} for name in made]
    values = {
        "store": "gateway.db",
        "retries": {"rounds": 1, "base_s": 0.01},
        "backends": made,
        "models": models or {"chat": {"routes": routes, "price": {"input": 1, "output": 2}}},
        **settings,
    }
    path = folder / "gateway.yaml"
    path.write_text(yaml.safe_dump(values))
    os.environ.pop("LMWORKS_TEST_SECRET", None)
    return check_config({**values, "secret_env": "LMWORKS_TEST_SECRET"}, path)


def ask(client: httpx.Client, **settings: Any) -> httpx.Response:
    """A chat completion of the model `chat`."""
    body = {"model": "chat", "messages": QUESTION, **settings}
    return client.post("/v1/chat/completions", json=body)
