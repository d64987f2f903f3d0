"""A back end that answers at once and keeps what it was asked: for tests and `bench/gateway.py`.

    python tests/serving/gateway/fake_backend.py [--port N] [--mode MODE] [--tokens N]

It prints its port. `POST /mode` with a word changes what it does from then on: ok, 500, 429, 400,
hang, cut (the connection before a byte of the answer), cut-head (after the head), cut-middle (of a
stream), error-event, no-json, slow (an event every 50 ms), schema (an answer that breaks any).
`GET /asked` gives the bodies it was sent. The prompt counts 7 tokens and the answer as many as
`max_tokens` says, up to --tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

PROMPT_TOKENS = 7


class Fake:
    """One server's state."""

    def __init__(self, mode: str, tokens: int) -> None:
        self.mode, self.tokens = mode, tokens
        self.asked: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self.left = 0  # connections that the other side closed in the middle of a stream
        self._ready: dict[int, bytes] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, any number of requests."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, _, rest = head.decode("latin-1").partition("\r\n")
                method, path, _ = line.split(" ")
                length = 0
                for header in rest.split("\r\n"):
                    if header.lower().startswith("content-length:"):
                        length = int(header[15:])
                body = await reader.readexactly(length) if length else b""
                if not await self._answer(method, path, rest, body, reader, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(
        self,
        method: str,
        path: str,
        head: str,
        body: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        if path == "/mode":
            self.mode = body.decode()
            return await _send(writer, {"mode": self.mode})
        if path == "/asked":
            seen = {"asked": self.asked, "headers": self.headers, "left": self.left}
            return await _send(writer, seen)
        if self.mode == "hang":  # health checks too: the process is there, and that is all
            await asyncio.sleep(3600)
        if method == "GET":
            return await _send(writer, {"object": "list", "data": [{"id": "fake"}]})
        asked = json.loads(body)
        if len(self.asked) < 10_000:
            self.asked.append(asked)
            self.headers.append(head)
        if self.mode == "cut":
            return False
        if self.mode in ("500", "429", "400"):
            error = {"error": {"message": "as told", "type": "x", "code": "told", "param": None}}
            return await _send(writer, error, int(self.mode))
        limit = asked.get("max_completion_tokens") or asked.get("max_tokens") or 10**9
        count = min(self.tokens, limit)
        if path.endswith("/embeddings"):
            usage = {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS}
            data = [{"object": "embedding", "index": 0, "embedding": [0.0, 1.0]}]
            return await _send(writer, {"object": "list", "data": data, "usage": usage})
        if asked.get("stream"):
            return await self._stream(asked, count, writer)
        if self.mode == "no-json":
            return await _send(writer, "<html>not JSON</html>")
        if self.mode == "cut-middle":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{")
            return False
        return await _send(writer, self._whole(asked, count))

    def _whole(self, asked: dict[str, Any], count: int) -> dict[str, Any]:
        text = " ".join(["word"] * count)
        if asked.get("response_format"):
            text = "{}" if self.mode == "schema" else json.dumps({"answer": count})
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        head = {"id": "x", "object": "chat.completion", "created": 1, "model": "fake"}
        return {**head, "choices": [choice], "usage": _usage(count)}

    async def _stream(
        self, asked: dict[str, Any], count: int, writer: asyncio.StreamWriter
    ) -> bool:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        if self.mode == "cut-head":
            await writer.drain()
            return False
        await _chunk(writer, {"role": "assistant", "content": ""})
        if self.mode == "error-event":
            writer.write(_framed(b'data: {"error": {"message": "as told"}}\n\n'))
            return False
        if self.mode == "cut-role":
            await writer.drain()
            return False
        try:
            for i in range(count):
                await _chunk(writer, {"content": "word " if i + 1 < count else "word"})
                if self.mode == "cut-middle" and i == 1:
                    return False
                if self.mode == "slow":
                    await asyncio.sleep(0.05)
        except ConnectionError:
            self.left += 1
            return False
        await _chunk(writer, {}, finish_reason="stop")
        if (asked.get("stream_options") or {}).get("include_usage"):
            event = {"id": "x", "model": "fake", "choices": [], "usage": _usage(count)}
            writer.write(_framed(b"data: " + json.dumps(event).encode() + b"\n\n"))
        writer.write(_framed(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        await writer.drain()
        return True


def _usage(count: int) -> dict[str, int]:
    total = PROMPT_TOKENS + count
    return {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": count, "total_tokens": total}


def _framed(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def _chunk(
    writer: asyncio.StreamWriter, delta: dict[str, Any], finish_reason: str | None = None
) -> None:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "fake"}
    event = {**head, "choices": [choice], "usage": None}
    writer.write(_framed(b"data: " + json.dumps(event).encode() + b"\n\n"))
    await writer.drain()


async def _send(writer: asyncio.StreamWriter, value: Any, status: int = 200) -> bool:
    body = value.encode() if isinstance(value, str) else json.dumps(value).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    return True


async def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--mode", default="ok")
    parser.add_argument("--tokens", type=int, default=5)
    options = parser.parse_args()
    fake = Fake(options.mode, options.tokens)
    server = await asyncio.start_server(fake.serve, "127.0.0.1", options.port, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
