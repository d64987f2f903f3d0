"""A streamed answer on its way from a back end to a client: nothing is held back, much is read.

What was used stands in the last event. Where the client did not ask for that event it is taken out;
until it comes, and for streams that are cut, events are counted instead.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from lmworks.serving.errors import CLIENT_LEFT, ApiError
from lmworks.serving.gateway.account import Account
from lmworks.serving.gateway.cache import put_together
from lmworks.serving.gateway.relay import DONE, event_data, event_of, has_usage, is_piece, tokens_of
from lmworks.serving.gateway.routing import Answer
from lmworks.serving.gateway.upstream import UpstreamFailure
from lmworks.serving.streaming import unless_left


class StreamedAnswer(Response):
    """A stream on its way: whole events, each sent on as it comes.

    Args:
        keep: given the whole answer that it amounted to, or None; None where nobody wants it.
        end: called once, however it ends.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        http: Request,
        account: Account,
        answer: Answer,
        headers: dict[str, str],
        *,
        wants_usage: bool,
        keep: Callable[[Any], None] | None,
        end: Callable[[Account], Awaitable[None]],
    ) -> None:
        plain = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(headers=plain | headers)
        del self.headers["content-length"]
        self._http, self._account, self._answer = http, account, answer
        self._wants_usage, self._keep, self._end = wants_usage, keep, end
        self._seen: list[bytes] = []
        self._settled = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send until it ends or the client leaves; it is settled before the client sees its end."""
        account = self._account
        try:
            if await unless_left(self._http, self._send_all(send)) is None:
                account.status, account.error = CLIENT_LEFT, "the client left"
        finally:
            await self._answer.close()
            await self._settle()

    async def _settle(self) -> None:
        if self._settled:
            return
        self._settled = True
        if self._keep and self._account.status == 200:
            with contextlib.suppress(ValueError, AttributeError, TypeError, KeyError):
                chat = self._account.endpoint == "/chat/completions"
                self._keep(put_together(self._seen, chat=chat))
        await self._end(self._account)

    async def _send_all(self, send: Any) -> bool:
        account = self._account
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for events in self._answer.events():
                passed = b"".join([event for event in events if self._passes(event)])
                if passed.endswith(DONE):
                    await self._settle()
                if passed:
                    account.first_byte()
                    await send({"type": "http.response.body", "body": passed, "more_body": True})
        except UpstreamFailure as failure:
            self._answer.backend.failed(failure)
            account.status, account.error = 502, str(failure)
            broken = ApiError(502, f"the answer was cut off: {failure}", code="upstream_error")
            await self._settle()
            body = event_of(broken.body())
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await self._settle()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return True

    def _passes(self, event: bytes) -> bool:
        """Count an event; whether the client is to have it."""
        if self._keep:
            self._seen.append(event)
        if event == DONE:
            return True
        if has_usage(event):
            with contextlib.suppress(ValueError, AttributeError, RecursionError):
                chunk = json.loads(event_data(event))
                self._account.tokens = tokens_of(chunk) or self._account.tokens
                if chunk.get("choices") == [] and not self._wants_usage:
                    return False
        elif b'"error"' in event:
            with contextlib.suppress(ValueError, AttributeError, RecursionError):
                if error := json.loads(event_data(event)).get("error"):
                    self._account.status, self._account.error = 502, str(error)[:500]
        elif is_piece(event):
            self._account.wrote(1)
        return True
