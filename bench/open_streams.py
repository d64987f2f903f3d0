"""Thousands of open streams on one server: memory of each, and how late its tokens come.

    python bench/open_streams.py --streams 1000 --streams 4000

The model is a script: it gives each stream a token per second, with the time at which it was given.
So what is measured is the way from the model to the client: server, connection, client.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import os
import queue
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pairs import keep
from serving_load import CHAT, Http, memory_mb, percentiles

TOKENS = 15
EVERY_S = 1.0


class PacedStream:
    """A token now and then, given by one thread for all streams."""

    def __init__(self) -> None:
        from lmworks.inference.base import Delta, Usage

        self._delta, self._usage = Delta, Usage(prompt_tokens=1, completion_tokens=TOKENS)
        self._given: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._read, self._wake = 0, lambda: None
        self.num_given, self.cancelled = 0, False

    def give(self) -> None:
        self.num_given += 1
        self._given.put(f"{time.monotonic():.6f} ")
        self._wake()

    def on_ready(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def ready(self) -> bool:
        return self._read == TOKENS or self.cancelled or not self._given.empty()

    def cancel(self) -> None:
        self.cancelled = True
        self._wake()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._read == TOKENS or self.cancelled:
            raise StopIteration
        self._read += 1
        last = self._read == TOKENS
        return self._delta(
            text=self._given.get(),
            finish_reason="stop" if last else None,
            usage=self._usage if last else None,
        )


class PacedModel:
    """As many streams as are asked for, each from its own beginning."""

    name = "paced"

    def __init__(self) -> None:
        self._due: list[tuple[float, int, PacedStream]] = []
        self._lock, self._number = threading.Lock(), 0
        threading.Thread(target=self._run, daemon=True).start()

    def stream(self, messages: Any, **settings: Any) -> PacedStream:
        stream = PacedStream()
        self._again(stream, time.monotonic() + EVERY_S)
        return stream

    def _again(self, stream: PacedStream, due_s: float) -> None:
        with self._lock:
            self._number += 1
            heapq.heappush(self._due, (due_s, self._number, stream))

    def _run(self) -> None:
        while True:
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                with self._lock:
                    due_s, _, stream = heapq.heappop(self._due)
                stream.give()
                if stream.num_given < TOKENS and not stream.cancelled:
                    self._again(stream, due_s + EVERY_S)
            time.sleep(0.005)


def serve() -> None:
    """The other process."""
    from lmworks.serving.run import serve

    serve({"paced": PacedModel()}, port=0)  # type: ignore[dict-item]


async def read_one(port: int, late_s: list[float], opened: list[float]) -> int:
    """The tokens of one stream; how late each came is noted."""
    message = {"role": "user", "content": "x"}
    body = json.dumps({"model": "paced", "messages": [message], "stream": True}).encode()
    count = 0
    async with Http(port) as http:
        http.send("POST", CHAT, body)
        await http.head()
        opened.append(time.monotonic())
        async for _, data in http.events():
            now = time.monotonic()
            if data == "[DONE]":
                return count
            text = json.loads(data)["choices"][0]["delta"].get("content")
            if text:
                late_s.append(now - float(text))
                count += 1
    return -1


async def measure(pid: int, port: int, streams: int) -> dict[str, Any]:
    before, started = memory_mb(pid), time.monotonic()
    late_s: list[float] = []
    opened: list[float] = []
    tasks = []
    for number in range(streams):
        tasks.append(asyncio.create_task(read_one(port, late_s, opened)))
        if number % 50 == 49:
            await asyncio.sleep(0.02)
    peak, cpu_s = before, cpu_seconds(pid)
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0.5)
        peak = max(peak, memory_mb(pid))
    counts = [task.result() for task in tasks]
    return {
        "streams": streams,
        "whole": sum(count == TOKENS for count in counts),
        "all_open_after_s": max(opened) - started,
        "kb_per_stream": (peak - before) * 1024 / streams,
        "late": percentiles(late_s),
        "cpu_us_per_token": (cpu_seconds(pid) - cpu_s) / (streams * TOKENS) * 1e6,
        "seconds": time.monotonic() - started,
    }


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, action="append")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if options.serve:
        serve()
        return
    rows = []
    for streams in options.streams or [1000, 2000, 4000]:
        command = [sys.executable, str(Path(__file__)), "--serve"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        try:
            assert server.stdout is not None
            port = int(next(server.stdout.readline() for _ in range(4)).rsplit(":", 1)[1])
            row = asyncio.run(measure(server.pid, port, streams))
        finally:
            server.terminate()
            server.wait(30)
        print(
            f"{streams} streams: {row['whole']} came whole; all open after "
            f"{row['all_open_after_s']:.1f} s; {row['kb_per_stream']:.0f} KB each; "
            f"{row['cpu_us_per_token']:.0f} us of CPU per token; "
            f"a token is late by {row['late']}",
            flush=True,
        )
        rows.append(row)
    keep("open_streams", rows=rows, every_s=EVERY_S, tokens=TOKENS)


if __name__ == "__main__":
    main()
