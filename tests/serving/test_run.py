"""A server as its own process: it says where it is, and ends when told to."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from lmworks.core.errors import UserError
from lmworks.inference.chat import ScriptedChat
from lmworks.serving.run import bind, page_url, serve

SCRIPT = """
from lmworks.inference.chat import ScriptedChat
from lmworks.serving.run import serve
serve({{"slow": ScriptedChat(["word " * {words}], delay_s=0.05)}}, port=0, drain_s={drain_s})
print("ended well")
"""
CHAT = "/v1/chat/completions"
BODY = {"model": "slow", "messages": [{"role": "user", "content": "x"}], "stream": True}


def start(words, drain_s):
    """The process, and where it answers."""
    script = SCRIPT.format(words=words, drain_s=drain_s)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(5)]
    url = lines[0].split()[-1]
    assert url.startswith("http://127.0.0.1:")
    return process, url


def test_sigterm_lets_running_answers_finish():
    process, url = start(words=30, drain_s=20)
    try:
        with httpx.Client() as other, httpx.stream("POST", url + CHAT, json=BODY) as response:
            assert other.get(url + "/ready").json()["status"] == "ready"
            events = response.iter_lines()
            next(events)
            os.kill(process.pid, signal.SIGTERM)
            deadline = time.monotonic() + 5
            while (ready := other.get(url + "/ready")).status_code != 503:
                assert time.monotonic() < deadline
            assert ready.json() == {"status": "draining", "answers": 1, "queue": 0}
            assert other.get(url + "/health").status_code == 200
            refused = other.post(url + CHAT, json=BODY)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json()["error"]["code"] == "shutting_down"
            rest = [line for line in events if line]
        assert rest[-1] == "data: [DONE]"
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
    assert (process.returncode, out.strip(), err) == (0, "ended well", "")


@pytest.mark.parametrize(("how", "drain_s"), [(signal.SIGINT, 20), (signal.SIGTERM, 0.2)])
def test_a_signal_ends_it_quickly_with_an_open_stream(how, drain_s):
    process, url = start(words=1000, drain_s=drain_s)
    try:
        with httpx.stream("POST", url + CHAT, json=BODY) as response:
            events = response.iter_lines()
            for _ in range(8):
                next(events)
            started = time.monotonic()
            os.kill(process.pid, how)
            rest = [line.removeprefix("data: ") for line in events if line]
        assert json.loads(rest[-1])["error"]["code"] == "shutting_down"
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
    assert time.monotonic() - started < 2.5
    assert (process.returncode, out.strip(), err) == (0, "ended well", "")


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is in use.*--port"):
            serve({"s": ScriptedChat(["x"])}, port=port)


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", 70000, "port 70000 does not exist"),
        ("127.0.0.1", -1, "port -1 does not exist"),
        ("no.such.host.invalid", 0, "no address of this machine"),
        ("203.0.113.7", 0, "no address of this machine"),
        ("a" * 80, 0, "no address of this machine"),
    ],
)
def test_a_bad_address_is_told(host, port, message):
    with pytest.raises(UserError, match=message):
        bind(host, port)


def test_the_url_is_one_that_a_browser_can_open():
    assert page_url("0.0.0.0", 1) == "http://127.0.0.1:1"
    assert page_url("::", 1) == "http://[::1]:1"
    assert page_url("::1", 1) == "http://[::1]:1"
    assert page_url("localhost", 1) == "http://localhost:1"


def test_answers_are_not_held_back_by_nagle():
    """asyncio sets TCP_NODELAY on what a listener accepts only if its protocol is named."""
    listener = bind("127.0.0.1", 0)
    assert listener.proto == socket.IPPROTO_TCP
    listener.close()
