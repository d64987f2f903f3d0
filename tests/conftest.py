"""Rules for all tests: no network beyond this machine, one torch thread, weights only where had.

A test marked `weights` may use the network, since SmolLM2 comes out of a published package on the
first run; where it can't be had, those tests are skipped with the reason. A test marked `browser`
is skipped where there is no Chromium. A refused connection looks like a machine without a network.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in children
# Nobody's own conversations are touched, and what children keep goes with the run.
_data = tempfile.TemporaryDirectory(prefix="lmworks-tests-")
os.environ["LMWORKS_DATA"] = _data.name

_connect, _connect_ex = socket.socket.connect, socket.socket.connect_ex
_getaddrinfo = socket.getaddrinfo
_network = False


@pytest.fixture(autouse=True)
def nobody_watches() -> None:
    """Commands set how progress is shown for the whole process: each test begins unwatched."""
    from lmworks.core import progress

    progress.set_mode("auto")


def _is_local(host: Any) -> bool:
    """Loopback, a wildcard (what a server binds to), or no host at all."""
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(str(name).partition("%")[0])
    except ValueError:
        return str(name).endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _check(sock: socket.socket, address: Any) -> None:
    internet = sock.family in (socket.AF_INET, socket.AF_INET6)
    if internet and not _network and not _is_local(address[0]):
        raise ConnectionRefusedError(f"tests have no network: {address[0]} (mark it `weights`?)")


def _guarded_connect(self: socket.socket, address: Any) -> None:
    _check(self, address)
    _connect(self, address)


def _guarded_connect_ex(self: socket.socket, address: Any) -> int:
    _check(self, address)
    return _connect_ex(self, address)


def _guarded_getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
    if not _network and not _is_local(host):
        raise socket.gaierror(socket.EAI_NONAME, f"tests have no network: {host}")
    return _getaddrinfo(host, *args, **options)


def pytest_configure() -> None:
    socket.socket.connect = _guarded_connect  # type: ignore[method-assign]
    socket.socket.connect_ex = _guarded_connect_ex  # type: ignore[method-assign]
    socket.getaddrinfo = _guarded_getaddrinfo


def pytest_unconfigure() -> None:
    _data.cleanup()
    socket.socket.connect = _connect  # type: ignore[method-assign]
    socket.socket.connect_ex = _connect_ex  # type: ignore[method-assign]
    socket.getaddrinfo = _getaddrinfo


@functools.cache
def _weights_missing() -> str:
    """Why SmolLM2 can't be had, or nothing."""
    global _network
    from lmworks.core.errors import UserError
    from lmworks.core.references import resolve

    before, _network = _network, True
    try:
        resolve("smollm2-135m")
    except UserError as error:
        return str(error)
    finally:
        _network = before
    return ""


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fetch the weights before the first test, so that no test's time limit counts the download."""
    wanted = any(item.get_closest_marker("weights") for item in session.items)
    if wanted and not session.config.option.collectonly:
        _weights_missing()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    global _network
    _network = item.get_closest_marker("weights") is not None
    if _network and (reason := _weights_missing()):
        pytest.skip(reason)
    browsers = ("chromium", "google-chrome")
    if item.get_closest_marker("browser") and not any(shutil.which(name) for name in browsers):
        pytest.skip("no chromium or google-chrome on this machine")
    if "torch" in sys.modules:  # a stage may have set more threads
        sys.modules["torch"].set_num_threads(1)


def pytest_runtest_teardown() -> None:
    global _network
    _network = False


class LiveApp:
    """An application on a free loopback port, in a thread of its own."""

    def __init__(self, app: Any) -> None:
        import uvicorn

        from lmworks.serving.run import bind

        self.app = app
        self._socket = bind("127.0.0.1", 0)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            self.app, log_level="warning", lifespan="off", ws="websockets-sansio"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    def __enter__(self) -> LiveApp:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


@pytest.fixture(scope="session")
def live_app() -> type[LiveApp]:
    return LiveApp


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; pages of each test get a context of their own."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    sync_api = pytest.importorskip("playwright.sync_api")
    arguments = ["--no-sandbox", "--disable-gpu", "--no-first-run"]
    arguments.append("--disable-background-networking")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that may load nothing but from loopback, and must raise and violate nothing."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(10_000)
    problems: list[str] = []

    def heard(message: Any) -> None:
        if "Security" in message.text:
            problems.append(message.text)

    def asked(request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:http://127.0.0.1:")):
            problems.append(request.url)

    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", heard)
    page.on("request", asked)
    yield page
    context.close()
    assert problems == []
