"""What a gateway adds to a request: lmworks' beside LiteLLM's proxy, over the same quick back end.

    python -m venv /tmp/litellm && /tmp/litellm/bin/pip install "litellm[proxy]"
    python bench/gateway.py --litellm /tmp/litellm/bin/litellm

The back end answers at once (`tests/serving/gateway/fake_backend.py`), so what is measured is the
gateway, the client and the loopback between them. Each round asks the back end itself, lmworks and
LiteLLM in turn, with one connection and with sixteen. lmworks checks a key with a quota and a rate,
counts, and writes the request log; LiteLLM checks its master key and keeps no database. The
processor time per request is what a busy machine does not blur.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pairs

ROOT = Path(__file__).parents[1]
FAKE = ROOT / "tests" / "serving" / "gateway" / "fake_backend.py"
MASTER = "sk-bench-0123456789abcdef"
QUESTION = [{"role": "user", "content": "Say something about gateways, in one sentence."}]


class Door:
    """An address, a key, and the process behind them."""

    def __init__(self, port: int, key: str, model: str, pid: int) -> None:
        self.port, self.key, self.model, self.pid = port, key, model, pid

    def cpu_s(self) -> float:
        """Processor time so far, of the process and its children that live."""
        seconds = 0.0
        for pid in [self.pid, *_children(self.pid)]:
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return seconds

    def request(self, stream: bool) -> bytes:
        body = json.dumps({"model": self.model, "messages": QUESTION, "stream": stream}).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            f"authorization: Bearer {self.key}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in found]
    return []


async def load(door: Door, connections: int, seconds: float, stream: bool) -> list[float]:
    """Latencies of all requests that were answered within the time."""
    latencies: list[float] = []
    end = time.perf_counter() + seconds

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        request = door.request(stream)
        while time.perf_counter() < end:
            started = time.perf_counter()
            writer.write(request)
            await _read_answer(reader)
            latencies.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return latencies


async def _read_answer(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if not head.startswith(b"http/1.1 200"):
        raise SystemExit(f"an answer that is none: {head[:200]!r} {await reader.read(400)!r}")
    if b"transfer-encoding: chunked" in head:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await reader.readexactly(size + 2)
        await reader.readexactly(2)
    else:
        length = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
        await reader.readexactly(length)


@contextlib.contextmanager
def process(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block."""
    started = subprocess.Popen(command, **options)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def _wait(door: Door, seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            asyncio.run(load(door, 1, 0.0, False))
            asyncio.run(load(door, 1, 0.05, False))
            return
        except (OSError, asyncio.IncompleteReadError, SystemExit):
            if time.monotonic() > end:
                raise
            time.sleep(0.3)


@contextlib.contextmanager
def lmworks_door(folder: Path, backend_port: int) -> Iterator[Door]:
    """Our gateway, with a key that has limits which the run does not reach."""
    config = folder / "gateway.yaml"
    port = _free_port()
    config.write_text(
        f"port: {port}\nstore: gateway.db\nbackends:\n"
        f"  fake: {{url: 'http://127.0.0.1:{backend_port}/v1'}}\n"
        "models:\n  chat:\n    routes: [{backend: fake, model: fake}]\n"
        "    price: {input: 1, output: 2}\n"
    )
    command = [sys.executable, "-m", "lmworks.cli.main", "gateway"]
    limits = ["--requests-per-day", "100000000", "--requests-per-minute", "10000000"]
    limits += ["--budget-per-month", "1000000"]
    key = subprocess.run(
        [*command, "keys", "create", "bench", "-c", str(config), *limits],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    with process([*command, "serve", str(config)], stdout=subprocess.DEVNULL) as running:
        yield Door(port, key, "chat", running.pid)


@contextlib.contextmanager
def litellm_door(program: str, folder: Path, backend_port: int) -> Iterator[Door]:
    """LiteLLM's proxy: one worker, no database, quiet."""
    config = folder / "litellm.yaml"
    port = _free_port()
    config.write_text(
        "model_list:\n  - model_name: chat\n    litellm_params:\n      model: openai/fake\n"
        f"      api_base: http://127.0.0.1:{backend_port}/v1\n      api_key: none\n"
        f"general_settings:\n  master_key: {MASTER}\n"
    )
    quiet = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [program, "--config", str(config), "--port", str(port), "--num_workers", "1"]
    with process(
        command,
        env={**os.environ, **quiet, "PYTHONPATH": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        yield Door(port, MASTER, "chat", running.pid)


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--litellm", default="", help="the program; without, ours alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        fake = stack.enter_context(process([sys.executable, str(FAKE)], stdout=subprocess.PIPE))
        assert fake.stdout
        backend = Door(int(fake.stdout.readline()), "none", "fake", fake.pid)
        doors = {"back end": backend}
        doors["lmworks"] = stack.enter_context(lmworks_door(folder, backend.port))
        if options.litellm:
            door = litellm_door(options.litellm, folder, backend.port)
            doors["litellm"] = stack.enter_context(door)
        for door in doors.values():
            _wait(door)
        rows = _measure(doors, options.rounds, options.seconds)
    quick = [name for name in ("uvloop", "httptools") if importlib.util.find_spec(name)]
    pairs.keep("gateway", rows=rows, rounds=options.rounds, seconds=options.seconds, quick=quick)


def _measure(doors: dict[str, Door], rounds: int, seconds: float) -> list[dict[str, Any]]:
    rows = []
    for connections, stream in ((1, False), (16, False), (1, True), (16, True)):
        seen: dict[str, list[list[float]]] = {name: [] for name in doors}
        cpu_s = dict.fromkeys(doors, 0.0)
        for _ in range(rounds):
            for name, door in doors.items():
                before_s = door.cpu_s()
                seen[name].append(asyncio.run(load(door, connections, seconds, stream)))
                cpu_s[name] += door.cpu_s() - before_s
        direct = [statistics.median(one) for one in seen["back end"]]
        for name, found in seen.items():
            added = sorted(statistics.median(a) - b for a, b in zip(found, direct, strict=True))
            every = sorted(latency for one in found for latency in one)
            row = {
                "door": name,
                "connections": connections,
                "stream": stream,
                "requests_per_s": statistics.median(len(one) for one in found) / seconds,
                "cpu_ms": cpu_s[name] / len(every) * 1000,
                "p50_ms": statistics.median(every) * 1000,
                "p99_ms": every[int(len(every) * 0.99)] * 1000,
                "added_p50_ms": statistics.median(added) * 1000,
                "added_p50_ms_range": [added[0] * 1000, added[-1] * 1000],
            }
            rows.append(row)
            kind = "stream" if stream else "whole"
            print(
                f"{name:9} x{connections:<3}{kind:7}{row['requests_per_s']:8.0f} requests/s  "
                f"p50 {row['p50_ms']:7.2f} ms  p99 {row['p99_ms']:7.2f} ms  "
                f"cpu {row['cpu_ms']:6.2f} ms  added {row['added_p50_ms']:7.2f} ms "
                f"[{added[0] * 1000:.2f} to {added[-1] * 1000:.2f}]",
                flush=True,
            )
    return rows


if __name__ == "__main__":
    main()
