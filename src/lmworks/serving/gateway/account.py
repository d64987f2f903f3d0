"""One request's bill: what is reserved for it, what it has used, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from lmworks.serving.gateway.config import PriceConfig
from lmworks.serving.gateway.ledger import Ticket, Used
from lmworks.serving.gateway.limits import Cost, money
from lmworks.serving.gateway.redaction import redact
from lmworks.serving.gateway.relay import Tokens
from lmworks.serving.gateway.store import Statement

_MAX_KEPT_CHARACTERS = 65536


class Account:
    """Filled while a request runs; `cost`, `used` and `log` are read once, at its end."""

    def __init__(self, request_id: str, endpoint: str, started_s: float) -> None:
        self.id, self.endpoint = request_id, endpoint
        self.started_s = started_s  # of the monotonic clock
        self.key_id = self.model = self.backend = self.error = ""
        self.cache = ""  # hit, semantic, miss, or nothing
        self.status, self.tries = 200, 0
        self.was_sent = False  # to a back end
        self.ticket: Ticket | None = None
        self.price = PriceConfig()
        self.tokens: Tokens | None = None  # as the back end counted them
        self.ttft_s: float | None = None
        self.question: str | None = None
        self.answer: str | None = None

    def wrote(self, pieces: int) -> None:
        """Pieces of a stream have come; until the back end's own count, one is one token."""
        if self.ticket:
            self.ticket.written_tokens += pieces
            prompt, written = self.ticket.prompt_tokens, self.ticket.written_tokens
            self.ticket.nano = money(self.price, prompt, written)

    def first_byte(self) -> None:
        """Something has been sent to the client."""
        if self.ttft_s is None:
            self.ttft_s = time.monotonic() - self.started_s

    @property
    def counted(self) -> Tokens:
        """What is charged: the back end's count, else the estimate of what it did."""
        if self.tokens is not None or self.ticket is None:
            return self.tokens or Tokens(0, 0)
        # A client that leaves before the answer is there pays for what was read.
        if not self.was_sent or (not self.backend and self.status != 499):
            return Tokens(0, 0)
        if self.status != 200 and self.status != 499 and not self.ticket.written_tokens:
            return Tokens(0, 0)
        return Tokens(self.ticket.prompt_tokens, self.ticket.written_tokens)

    @property
    def nano(self) -> int:
        """What it costs."""
        return money(self.price, *self.counted)

    def cost(self) -> Cost:
        """What takes the place of the reservation. A failure of ours costs no request."""
        tokens = self.counted
        failed = self.status >= 500
        return Cost(0 if failed else 1, tokens.prompt + tokens.completion, self.nano)

    def used(self) -> Used:
        """For the usage of the day on which it began."""
        tokens = self.counted
        used = Used(
            key_id=self.key_id,
            model=self.model,
            backend=self.backend,
            errors=int(self.status >= 400 and self.status != 499),
            cache_hits=int(self.cache in ("hit", "semantic")),
            prompt_tokens=tokens.prompt,
            completion_tokens=tokens.completion,
            nano=self.nano,
        )
        return used.dated(self.ticket.started_s if self.ticket else time.time())

    def log(self) -> Statement:
        """The row of the request log."""
        tokens = self.counted
        values = (
            self.id,
            round(time.time(), 3),
            self.key_id,
            self.endpoint,
            self.model,
            self.backend,
            self.status,
            round(time.monotonic() - self.started_s, 4),
            None if self.ttft_s is None else round(self.ttft_s, 4),
            tokens.prompt,
            tokens.completion,
            self.nano,
            self.cache,
            self.tries,
            redact(self.error)[:500],
            _kept(self.question),
            _kept(self.answer),
        )
        marks = ", ".join("?" * len(values))
        return (f"INSERT OR REPLACE INTO requests VALUES ({marks})", values)


def _kept(text: str | None) -> str | None:
    if text is None:
        return None
    text = redact(text)
    return text if len(text) <= _MAX_KEPT_CHARACTERS else text[:_MAX_KEPT_CHARACTERS] + "..."


def text_of(answer: Mapping[str, Any] | None) -> str | None:
    """The words of a whole answer, for the log."""
    texts = []
    for choice in (answer or {}).get("choices") or ():
        message = choice.get("message") or choice
        texts.append(str(message.get("content") or message.get("text") or ""))
    return "\n".join(texts) if texts else None
