"""Chat over a WebSocket: several answers at a time, cancelled by name, and strangers refused."""

from __future__ import annotations

import json
import time

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from lmworks.inference.chat import ScriptedChat
from lmworks.serving.guard import LOOPBACK_HOSTS

REQUEST = {"model": "s", "messages": [{"role": "user", "content": "x"}]}
CANCEL = {"type": "cancel"}


@pytest.fixture(scope="module")
def server(live_server):
    models = {
        "s": ScriptedChat(["one two three"]),
        "slow": ScriptedChat(["w " * 500], delay_s=0.02),
    }
    with live_server(models, allowed_hosts=LOOPBACK_HOSTS) as server:
        yield server


@pytest.fixture
def socket(server):
    with connect(f"ws://127.0.0.1:{server.port}/v1/stream") as socket:
        yield socket


def send(socket, **message):
    socket.send(json.dumps(message))


def receive(socket):
    return json.loads(socket.recv(timeout=10))


def until_end(socket, names):
    """Texts and last messages by id."""
    texts, ends = dict.fromkeys(names, ""), {}
    while len(ends) < len(names):
        message = receive(socket)
        if message["type"] == "event":
            choice = message["data"]["choices"][0]
            texts[message["id"]] += choice["delta"].get("content") or ""
        else:
            ends[message["id"]] = message
    return texts, ends


def test_several_answers_at_a_time(socket):
    for name in "abc":
        send(socket, type="request", id=name, request=REQUEST)
    texts, ends = until_end(socket, "abc")
    assert set(texts.values()) == {"one two three"}
    assert {end["type"] for end in ends.values()} == {"done"}
    send(socket, type="request", id="a", request=REQUEST)  # an id is free again
    assert until_end(socket, "a")[1]["a"]["type"] == "done"


def test_ping_and_cancel_in_the_middle(socket, server):
    send(socket, type="request", id="a", request=REQUEST | {"model": "slow"})
    receive(socket)
    send(socket, type="ping", id=7)
    while (message := receive(socket))["type"] == "event":
        pass
    assert message == {"type": "pong", "id": 7}
    send(socket, type="cancel", id="a")
    assert until_end(socket, "a")[1]["a"]["type"] == "cancelled"
    assert not server.app.state.service._running


def test_a_cancel_that_comes_with_its_request_is_told_too(socket):
    for _ in range(2):  # the id is free again
        with socket.protocol_mutex:
            for message in ({"type": "request", "request": REQUEST | {"model": "slow"}}, CANCEL):
                socket.protocol.send_text(json.dumps({"id": "a"} | message).encode())
            socket.send_data()  # both in one packet
        assert until_end(socket, "a")[1]["a"]["type"] == "cancelled"


def test_a_lost_connection_ends_its_answers(server):
    with connect(f"ws://127.0.0.1:{server.port}/v1/stream") as socket:
        for name in "ab":
            send(socket, type="request", id=name, request=REQUEST | {"model": "slow"})
        receive(socket)
        assert server.app.state.service.num_running
    deadline = time.monotonic() + 5
    while server.app.state.service.num_running:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("not json", "not JSON"),
        ("[1]", "JSON object"),
        ("[" * 100_000, "not JSON"),
        ('{"type": "dance"}', "type: must be"),
        ('{"type": "request"}', "id: must be"),
        ('{"type": "request", "id": ""}', "id: must be"),
        ('{"type": "request", "id": "a"}', "must be a JSON object"),
        ('{"type": "request", "id": "a", "request": {"model": "s"}}', "messages"),
        ('{"type": "cancel", "id": "nobody"}', "no answer called"),
    ],
)
def test_bad_messages_are_told_and_survived(socket, message, says):
    socket.send(message)
    answer = receive(socket)
    assert answer["type"] == "error" and says in answer["error"]["message"]
    send(socket, type="ping")
    assert receive(socket) == {"type": "pong"}


def test_a_wrong_model_is_an_error_of_its_answer(socket):
    send(socket, type="request", id="a", request=REQUEST | {"model": "t"})
    answer = receive(socket)
    assert (answer["id"], answer["error"]["code"]) == ("a", "model_not_found")


def test_pages_of_other_sites_are_refused(server):
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://127.0.0.1:{server.port}/v1/stream", origin="https://evil.example")
    with connect(f"ws://127.0.0.1:{server.port}/v1/stream", origin=server.url) as socket:
        send(socket, type="ping")
        assert receive(socket)["type"] == "pong"


def test_too_large_a_message_is_not_read(server):
    url = f"ws://127.0.0.1:{server.port}/v1/stream"
    with connect(url) as socket, pytest.raises(ConnectionClosed):
        socket.send("x" * (20 << 20))
        socket.recv(timeout=10)
