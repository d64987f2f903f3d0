"""A server under load for minutes: is any answer lost or mixed up, does anything leak, how late?

    python bench/serving_load.py --minutes 10 --streams 200

A small random model is served by another process. Each of the streams asks over and over, at
random: streamed or whole answers; some it leaves in the middle, politely or not, some it loses and
picks up, some it ends by name, some it reads slowly; and some requests are bad. Every answer that
is read to its end must equal, to the character, the one that the same weights gave alone to the
same question, greedy or under its seed. At the end all slots, pages and streams must be free, and
the memory of the server must be where it was after the first fifth. Ends with status 1 if not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import random
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from pairs import keep

CHAT = "/v1/chat/completions"
NUM_QUESTIONS = 200
CONTEXT = 256
GRACE_S = 3.0
MOST_GROWTH = 0.10  # of the server's memory, after the first fifth


def make_chat(max_batch: int) -> Any:
    """A model of two layers with weights that are the same in every process."""
    import torch

    from lmworks.inference.engine import Engine
    from lmworks.inference.local import LocalChat
    from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
    from lmworks.models.model import Model
    from lmworks.tokenizers.train import train_bpe

    torch.set_num_threads(1)
    config = ModelConfig.uniform(
        vocab_size=264,
        hidden_size=64,
        num_hidden_layers=2,
        mixer=AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=16),
        feed_forward=MLPConfig(intermediate_size=128),
        max_position_embeddings=CONTEXT,
    )
    model = Model(config).eval()
    model.reset_parameters(torch.Generator().manual_seed(5))
    with torch.no_grad():  # sharper than fresh weights, so that greedy has no near ties
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8)
    tokenizer = train_bpe(["no merge is learnt"], vocab_size=260)
    return LocalChat(Engine(model, tokenizer, max_batch=max_batch, max_waiting=2000), "tiny")


def serve(max_batch: int) -> None:
    """The other process."""
    from lmworks.serving.run import serve

    serve({"tiny": make_chat(max_batch)}, port=0, grace_s=GRACE_S)


def questions() -> list[dict[str, Any]]:
    """Requests that differ in length, beginning, length of the answer and sampling."""
    generator = random.Random(1)
    shared = "the beginning that many have in common " * 2
    found = []
    for number in range(NUM_QUESTIONS):
        text = f"{number} " + "x" * generator.randrange(60)
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": (shared if number % 3 else "") + text}],
            "max_tokens": generator.randrange(4, 64),
            "logit_bias": {str(i): -100 for i in range(4)},  # never the end of the text
        }
        found.append(body | ({"temperature": 0} if number % 2 else {"seed": number}))
    return found


def answers_alone(asked: list[dict[str, Any]]) -> list[str]:
    """What the weights answer when nobody else asks."""
    chat = make_chat(1)
    texts = []
    for body in asked:
        settings = {k: v for k, v in body.items() if k not in ("model", "messages", "logit_bias")}
        bias = {int(k): v for k, v in body["logit_bias"].items()}
        texts.append(chat.complete(body["messages"], logit_bias=bias, **settings).text)
    chat.close()
    return texts


@dataclasses.dataclass
class Tally:
    """What happened so far."""

    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    wrong: list[str] = dataclasses.field(default_factory=list)
    first_s: list[float] = dataclasses.field(default_factory=list)
    between_s: list[float] = dataclasses.field(default_factory=list)
    whole_s: list[float] = dataclasses.field(default_factory=list)
    tokens: int = 0

    def fault(self, text: str) -> None:
        self.counts["faults"] += 1
        if len(self.wrong) < 20:
            self.wrong.append(text)


class Http:
    """One request on one connection, by hand: a client that costs little of the machine."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Http:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def send(self, method: str, path: str, body: bytes = b"", headers: str = "") -> None:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n{headers}\r\n"
        )
        self.writer.write(head.encode() + body)

    def reset(self) -> None:
        """Leave without a goodbye: the other side gets an RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def head(self) -> tuple[int, dict[str, str]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        self._chunked = headers.get("transfer-encoding") == "chunked"
        self._length = int(headers.get("content-length", 0))
        return int(lines[0].split()[1]), headers

    async def body(self) -> bytes:
        if not self._chunked:
            return await self.reader.readexactly(self._length)
        return b"".join([chunk async for chunk in self.chunks()])

    async def chunks(self) -> Any:
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]

    async def events(self) -> Any:
        """(id, data) of each server-sent event; each comes in a chunk of its own here."""
        async for chunk in self.chunks():
            fields = dict(line.split(": ", 1) for line in chunk.decode().splitlines() if line)
            if "data" in fields:
                yield fields.get("id", ""), fields["data"]


class Load:
    """The clients."""

    def __init__(self, port: int, seconds: float, asked: list[Any], expected: list[str]) -> None:
        self._port, self._asked, self._expected = port, asked, expected
        self._end = time.monotonic() + seconds
        self.tally = Tally()

    async def run(self, streams: int) -> None:
        await asyncio.gather(*(self._client(number) for number in range(streams)))

    async def _client(self, number: int) -> None:
        generator = random.Random(number)
        kinds = [self._streamed, self._whole, self._leaves, self._resumes, self._ends, self._bad]
        await asyncio.sleep(generator.random())
        while time.monotonic() < self._end:
            kind = generator.choices(kinds, [55, 12, 12, 6, 5, 10])[0]
            try:
                async with asyncio.timeout(120), Http(self._port) as http:
                    await kind(http, generator)
                self.tally.counts[kind.__name__.strip("_")] += 1
            except Exception as error:
                self.tally.fault(f"lost: {kind.__name__}: {type(error).__name__}: {error}")

    def _pick(self, generator: random.Random, **more: Any) -> tuple[bytes, str]:
        number = generator.randrange(len(self._asked))
        return json.dumps(self._asked[number] | more).encode(), self._expected[number]

    def _check(self, got: str, expected: str, tokens: int, limit: int) -> None:
        if got != expected:
            self.tally.fault(f"mixed up: {got[:60]!r} is not {expected[:60]!r}")
        if tokens != limit:
            self.tally.fault(f"usage says {tokens} tokens, {limit} were asked for")
        self.tally.tokens += tokens

    async def _streamed(self, http: Http, generator: random.Random) -> None:
        body, expected = self._pick(generator, stream=True, stream_options={"include_usage": True})
        slow = generator.random() < 0.05
        http.send("POST", CHAT, body)
        started = last = time.monotonic()
        status, _ = await http.head()
        assert status == 200, status
        datas = []
        async for _, data in http.events():
            now = time.monotonic()
            if not slow:
                (self.tally.between_s if datas else self.tally.first_s).append(now - last)
            last = now
            datas.append(data)
            if slow:
                await asyncio.sleep(0.05)
        if not slow:
            self.tally.whole_s.append(time.monotonic() - started)
        self._finish(datas, expected, body)

    def _finish(self, datas: list[str], expected: str, body: bytes) -> None:
        assert datas and datas[-1] == "[DONE]", datas[-1:]
        chunks = [json.loads(data) for data in datas[:-1]]
        text = "".join(
            choice["delta"].get("content") or "" for c in chunks for choice in c["choices"]
        )
        usage = chunks[-1]["usage"]
        self._check(text, expected, usage["completion_tokens"], json.loads(body)["max_tokens"])

    async def _whole(self, http: Http, generator: random.Random) -> None:
        body, expected = self._pick(generator)
        http.send("POST", CHAT, body)
        status, _ = await http.head()
        assert status == 200, status
        answer = json.loads(await http.body())
        text = answer["choices"][0]["message"]["content"]
        tokens = answer["usage"]["completion_tokens"]
        self._check(text, expected, tokens, json.loads(body)["max_tokens"])

    async def _leaves(self, http: Http, generator: random.Random) -> None:
        body, _ = self._pick(generator, stream=generator.random() < 0.7)
        http.send("POST", CHAT, body)
        if generator.random() < 0.5:
            http.reset()
        if b'"stream": true' not in body:
            await asyncio.sleep(generator.random() * 0.2)
            return
        await http.head()
        count = generator.randrange(6)
        async for _ in http.events():
            count -= 1
            if count <= 0:
                return

    async def _resumes(self, http: Http, generator: random.Random) -> None:
        options = {"include_usage": True, "resumable": True}
        body, expected = self._pick(generator, stream=True, stream_options=options)
        http.send("POST", CHAT, body)
        status, headers = await http.head()
        assert status == 200, status
        got = []
        count = generator.randrange(1, 8)
        async for event in http.events():
            got.append(event)
            if len(got) >= count:
                break
        http.writer.close()
        await asyncio.sleep(generator.random() * GRACE_S / 2)
        async with Http(self._port) as again:
            last = f"Last-Event-ID: {got[-1][0]}\r\n"
            again.send("GET", f"/v1/streams/{_stream_of(got[-1][0])}", headers=last)
            status, _ = await again.head()
            assert status == 200, (status, headers)
            got += [event async for event in again.events()]
        numbers = [int(event_id.rpartition(":")[2]) for event_id, _ in got]
        assert numbers == list(range(len(got))), numbers
        self._finish([data for _, data in got], expected, body)

    async def _ends(self, http: Http, generator: random.Random) -> None:
        body, _ = self._pick(generator, stream=True, stream_options={"resumable": True})
        http.send("POST", CHAT, body)
        await http.head()
        event_id, _ = await anext(http.events())
        http.writer.close()
        async with Http(self._port) as again:
            again.send("DELETE", f"/v1/streams/{_stream_of(event_id)}")
            status, _ = await again.head()
            assert status == 200, status

    async def _bad(self, http: Http, generator: random.Random) -> None:
        good = json.loads(self._pick(generator)[0])
        bodies = [
            b"{",
            b"[" * 5000,
            json.dumps(good | {"model": "../../etc/passwd"}).encode(),
            json.dumps(good | {"max_tokens": -1}).encode(),
            json.dumps(good | {"temperature": 1e9}).encode(),
            json.dumps(good | {"messages": [{"role": "user", "content": "y" * 999}]}).encode(),
            json.dumps(good | {"logit_bias": {"99999": 1}}).encode(),
        ]
        kind = generator.randrange(len(bodies) + 2)
        if kind == len(bodies):  # a body that never comes whole
            http.writer.write(
                f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999\r\n\r\n{{".encode()
            )
            await http.writer.drain()
            return
        if kind > len(bodies):  # no HTTP at all
            http.writer.write(b"\x16\x03\x01 hello\r\n\r\n")
            await http.reader.read()
            return
        http.send("POST", CHAT, bodies[kind])
        status, _ = await http.head()
        assert 400 <= status < 500, status


def _stream_of(event_id: str) -> str:
    return event_id.rpartition(":")[0]


async def figures(port: int) -> dict[str, float]:
    """`/metrics` of the model, by name."""
    async with Http(port) as http:
        http.send("GET", "/metrics")
        await http.head()
        lines = (await http.body()).decode().splitlines()
    mark = '{model="tiny"}'
    found = (line.rsplit(" ", 1) for line in lines if mark in line)
    return {name.removesuffix(mark): float(value) for name, value in found}


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def percentiles(values: list[float]) -> str:
    """In milliseconds."""
    ranked = sorted(values) or [0.0]
    at = [ranked[min(len(ranked) - 1, int(len(ranked) * q))] * 1000 for q in (0.5, 0.9, 0.99)]
    return "p50 {:.0f}, p90 {:.0f}, p99 {:.0f} ms".format(*at)


async def measure(pid: int, port: int, load: Load, streams: int, seconds: float) -> dict[str, Any]:
    """Run the load, watch the server, wait until it is idle."""
    running = asyncio.create_task(load.run(streams))
    began, samples = time.monotonic(), []
    while not running.done():
        await asyncio.wait({running}, timeout=max(seconds / 60, 1.0))
        samples.append((time.monotonic() - began, memory_mb(pid)))
        if len(samples) % 6 == 0:
            at, now = samples[-1], await figures(port)
            print(
                f"  {at[0]:5.0f} s  {at[1]:6.1f} MB  running "
                f"{now['lmworks_requests_running']:.0f}, waiting "
                f"{now['lmworks_requests_waiting']:.0f}, faults {load.tally.counts['faults']}",
                flush=True,
            )
    await running
    elapsed = time.monotonic() - began
    deadline = time.monotonic() + 20 + GRACE_S
    while True:
        now = await figures(port)
        free = (
            now["lmworks_requests_running"] == now["lmworks_requests_waiting"] == 0
            and now["lmworks_requests_in_flight"] == 0
            and now["lmworks_cache_pages_in_use"] == now["lmworks_cache_pages_of_prefixes"]
        )
        if free or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.2)
    settled = [mb for at, mb in samples if at >= elapsed / 5] or [0.0]
    first, last = settled[0], max(settled[-3:])
    return {
        "seconds": elapsed,
        "all_free": free,
        "memory_mb_after_a_fifth": first,
        "memory_mb_at_the_end": last,
        "memory_flat": last <= first * (1 + MOST_GROWTH),
        "pages_in_use": now["lmworks_cache_pages_in_use"],
        "pages_of_prefixes": now["lmworks_cache_pages_of_prefixes"],
        "preemptions": now["lmworks_preemptions_total"],
        "threads": len(list(Path(f"/proc/{pid}/task").iterdir())),
        "open_files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--no-record", action="store_true", help="leave bench/results alone")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.max_batch)
        return 0
    asked = questions()
    expected = answers_alone(asked)
    command = [sys.executable, __file__, "--serve", "--max-batch", str(options.max_batch)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert server.stdout is not None
        lines = [server.stdout.readline() for _ in range(5)]
        port = int(lines[0].rsplit(":", 1)[1])
        seconds = options.minutes * 60
        load = Load(port, seconds, asked, expected)
        found = asyncio.run(measure(server.pid, port, load, options.streams, seconds))
    finally:
        server.terminate()
        server.wait(30)
    tally = load.tally
    print("\n".join(tally.wrong))
    counts = dict(sorted(tally.counts.items()))
    print(f"{sum(counts.values())} requests in {found['seconds']:.0f} s: {counts}")
    print(f"{tally.tokens / found['seconds']:.0f} tokens/s of checked answers")
    print(f"first event:     {percentiles(tally.first_s)}")
    print(f"between events:  {percentiles(tally.between_s)}")
    print(f"whole answer:    {percentiles(tally.whole_s)}")
    for name, value in found.items():
        print(f"{name}: {value if isinstance(value, bool) else round(value, 1)}")
    good = not tally.counts["faults"] and found["all_free"] and found["memory_flat"]
    good = good and server.returncode == 0
    print("nothing lost, mixed up or leaked" if good else "NOT as it should be")
    if options.no_record:
        return 0 if good else 1
    keep(
        "serving_load",
        streams=options.streams,
        counts=counts,
        tokens_per_s=tally.tokens / found["seconds"],
        first_event=percentiles(tally.first_s),
        between_events=percentiles(tally.between_s),
        whole_answer=percentiles(tally.whole_s),
        good=good,
        **found,
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
