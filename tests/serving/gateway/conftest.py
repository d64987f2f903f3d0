"""Fixtures: back ends, gateways and a Redis that live as long as a test."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.serving.gateway.live import FakeBackend, LiveGateway, config_over

from lmworks.serving.servers import free_port


@pytest.fixture
def fake() -> Iterator[Callable[..., FakeBackend]]:
    """Starts a back end; all are ended after the test."""
    started: list[FakeBackend] = []

    def start(**options: Any) -> FakeBackend:
        started.append(FakeBackend(**options))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Callable[..., LiveGateway]]:
    """Starts a gateway over back ends, named a, b, c; all are ended after the test."""
    started: list[LiveGateway] = []

    def start(*backends: Any, embed: Any = None, **settings: Any) -> LiveGateway:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        named = dict(zip("abc", backends))
        live = LiveGateway(config_over(folder, named, **settings), embed)
        live.__enter__()
        started.append(live)
        return live

    yield start
    for live in started:
        live.__exit__()


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A Redis of its own, on a free port."""
    pytest.importorskip("redis")
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server on this machine")
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir"]
    process = subprocess.Popen([*command, str(tmp_path)], stdout=subprocess.DEVNULL)
    import redis

    client = redis.Redis(port=port)
    for _ in range(200):
        try:
            client.ping()
            break
        except redis.ConnectionError:
            time.sleep(0.02)
    client.close()
    yield f"redis://127.0.0.1:{port}/0"
    process.kill()
    process.wait()
