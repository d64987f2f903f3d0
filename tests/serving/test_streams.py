"""Streams that a client can lose and pick up, and readers that are slow."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time

import httpx
import pytest

from lmworks.inference.base import Delta
from lmworks.inference.chat import ScriptedChat
from lmworks.serving.generation import MAX_AHEAD, Generation
from lmworks.serving.live_streams import LiveStream
from lmworks.serving.streaming import Event

WORDS = " ".join(f"w{i}" for i in range(60))
CHAT = "/v1/chat/completions"


def ask(**settings):
    messages = [{"role": "user", "content": "x"}]
    options = {"resumable": True, "include_usage": True}
    fixed = {"model": "s", "messages": messages, "stream": True, "stream_options": options}
    return fixed | settings


def events_of(text):
    """(id, data) of each event of a body."""
    for block in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.splitlines() if not line.startswith(":")
        )
        if fields:
            yield fields.get("id"), fields["data"]


def text_of(datas):
    chunks = [json.loads(data) for data in datas if data != "[DONE]"]
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])


@pytest.fixture(scope="module")
def slow(live_server):
    model = ScriptedChat([WORDS], delay_s=0.01)
    with live_server({"s": model}, grace_s=0.5) as server:
        yield server


def begin(client, count):
    """The id of a stream and the first `count` events of it; then the connection is lost."""
    with client.stream("POST", CHAT, json=ask()) as response:
        assert response.status_code == 200
        got, text = [], ""
        for piece in response.iter_text():
            text += piece
            got = list(events_of(text[: text.rfind("\n\n")]))
            if len(got) >= count:
                break
        return response.headers["x-stream-id"], got


@pytest.mark.parametrize("how", ["header", "query", "the request again"])
def test_a_lost_stream_goes_on_where_it_stopped(slow, how):
    with httpx.Client(base_url=slow.url) as client:
        stream_id, got = begin(client, 7)
        last = got[-1][0]
        path, header = f"/v1/streams/{stream_id}", {"Last-Event-ID": last}
        if how == "header":
            rest = client.get(path, headers=header)
        elif how == "query":
            rest = client.get(path, params={"after": int(last.rpartition(":")[2])})
        else:
            rest = client.post(CHAT, json=ask(), headers=header)
        whole = got + list(events_of(rest.text))
    ids = [int(event_id.rpartition(":")[2]) for event_id, _ in whole]
    assert ids == list(range(len(ids)))
    datas = [data for _, data in whole]
    assert text_of(datas) == WORDS
    assert datas[-1] == "[DONE]"
    assert json.loads(datas[-2])["usage"]["completion_tokens"] == 60


def test_nobody_comes_back_and_it_is_cancelled(slow):
    service = slow.app.state.service
    with httpx.Client(base_url=slow.url) as client:
        stream_id, _ = begin(client, 2)
        assert service._running
        deadline = time.monotonic() + 5
        while service._running:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        gone = client.get(f"/v1/streams/{stream_id}")
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "stream_not_found")
        assert len(service.streams) == 0


def test_a_stream_is_ended_by_name(slow):
    with httpx.Client(base_url=slow.url) as client:
        stream_id, _ = begin(client, 2)
        assert client.delete(f"/v1/streams/{stream_id}").json()["deleted"]
        assert client.delete(f"/v1/streams/{stream_id}").status_code == 404
    assert not slow.app.state.service._running


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/streams/none", {}, 404),
        ("/v1/streams/none", {"Last-Event-ID": "garbage"}, 400),
        ("/v1/streams/none", {"Last-Event-ID": "other:3"}, 400),
        ("/v1/streams/none", {"Last-Event-ID": "none:" + "9" * 5000}, 400),
        ("/v1/streams/none?after=x", {}, 400),
        ("/v1/streams/%2e%2e%2f%2e%2e", {}, 404),
    ],
)
def test_what_is_no_stream(slow, path, headers, status):
    response = httpx.get(slow.url + path, headers=headers)
    assert response.status_code == status
    assert response.json()["error"]["message"]


class Endless:
    """A turn whose events never end, for the store alone."""

    def __init__(self):
        self.made, self.ended = 0, False

    async def events(self):
        while True:
            yield Event("x" * 100)
            self.made += 1
            await asyncio.sleep(0)

    def end(self):
        self.ended = True


def test_the_store_is_bounded_and_loses_nothing():
    async def run():
        endless = Endless()
        stream = LiveStream(endless, grace_s=60, max_bytes=1000)
        await asyncio.sleep(0.05)
        assert endless.made <= 11  # it waits for a reader
        reader = stream.read()
        numbers = [int((await anext(reader)).number.rpartition(":")[2]) for _ in range(500)]
        assert numbers == list(range(500))
        assert len(stream._events) <= 11
        with pytest.raises(Exception, match="are gone"):
            stream.check(3)
        stream.drop()
        await asyncio.sleep(0)
        assert endless.ended

    asyncio.run(run())


def test_a_slow_reader_slows_the_model():
    made = 0

    def endless():
        nonlocal made
        while True:
            made += 1
            yield Delta(text="x")

    async def run():
        generation = Generation([endless])
        await generation.open()
        await asyncio.sleep(0.1)
        assert made <= MAX_AHEAD + 1
        deltas = aiter(generation)
        for _ in range(1000):
            await anext(deltas)
        assert 1000 <= made <= 1000 + MAX_AHEAD + 2
        generation.cancel()

    asyncio.run(run())


class Ready:
    """A stream that is always ready, until it fails after `count` pieces."""

    def __init__(self, count):
        self.count, self.made, self.cancelled = count, 0, False

    def on_ready(self, wake):
        self.wake = wake
        wake()

    def ready(self):
        return True

    def cancel(self):
        self.cancelled = True
        self.wake()

    def __iter__(self):
        return self

    def __next__(self):
        if self.cancelled:
            raise StopIteration
        if self.made == self.count:
            raise RuntimeError("no more")
        self.made += 1
        return Delta(text="x")


def test_a_stream_that_says_when_it_is_ready_has_no_thread_and_waits_for_its_reader():
    async def run():
        stream = Ready(2000)
        generation = Generation([lambda: stream])
        await generation.open()
        await asyncio.sleep(0.1)
        assert stream.made == MAX_AHEAD
        assert not any(t.name.startswith("lmworks-stream") for t in threading.enumerate())
        deltas = aiter(generation)
        for count in range(1, 1501):
            await anext(deltas)
            assert stream.made <= count + MAX_AHEAD
        with pytest.raises(RuntimeError, match="no more"):
            while True:
                await anext(deltas)
        assert stream.made == 2000

    asyncio.run(run())


def test_such_a_stream_ends_when_it_is_cancelled():
    async def run():
        generation = Generation([lambda: Ready(10**9)])
        await generation.open()
        deltas = aiter(generation)
        await anext(deltas)
        generation.cancel()
        left = [delta async for delta in deltas]
        assert len(left) <= MAX_AHEAD

    asyncio.run(run())


def test_who_takes_nothing_is_left(live_server, monkeypatch):
    monkeypatch.setattr("lmworks.serving.streaming.STALL_S", 0.3)
    answer = " ".join(["y" * 20_000] * 2000)
    with live_server({"s": ScriptedChat([answer])}) as server:
        body = json.dumps(ask(stream_options=None)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(head.encode() + body)
            assert client.recv(10).startswith(b"HTTP/1.1 2")
            service = server.app.state.service
            deadline = time.monotonic() + 10
            while service._running:
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_silence_is_broken_by_comments(live_server, monkeypatch):
    monkeypatch.setattr("lmworks.serving.streaming.SILENCE_S", 0.05)
    with live_server({"s": ScriptedChat(["late"], delay_s=0.4)}) as server:
        text = httpx.post(server.url + CHAT, json=ask()).text
        assert text.count(": \n\n") >= 3
        assert text_of([data for _, data in events_of(text)]) == "late"
