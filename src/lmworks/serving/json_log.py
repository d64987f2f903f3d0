"""One JSON object per line for each request and each answer: what happened, never what was said.

Off until `log_json` is called (`lmworks serve --log-json`). What is logged is a closed list of
fields: no header, no path as it came, no prompt, no answer. Of an exception its type and the places
in the code are told and not its message, which may quote either.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections import Counter
from typing import IO, Any

from lmworks.inference.base import Delta, Usage
from lmworks.serving.callers import Caller

LOG = logging.getLogger("lmworks.serving.requests")
_FIELDS = "fields"


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Time (UTC), level, event, and the fields that belong to it."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.msg if isinstance(record.msg, str) else type(record.msg).__name__,
        }
        line |= getattr(record, _FIELDS, {})
        if record.exc_info and record.exc_info[0]:
            line["error"] = record.exc_info[0].__name__
            frames = traceback.extract_tb(record.exc_info[2])
            line["where"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        return json.dumps(line, ensure_ascii=False)


def log_json(stream: IO[str] | None = None) -> logging.Handler:
    """Log as JSON lines from now on, to `stream` or stderr. Returns the handler, to take it off."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    for other in list(root.handlers):
        root.removeHandler(other)
    root.addHandler(handler)
    LOG.setLevel(logging.INFO)
    return handler


def log_request(name: str, method: str, endpoint: str, status: int, seconds: float) -> None:
    """An HTTP request was answered, its client left (status 499), or a WebSocket (101) closed."""
    if LOG.isEnabledFor(logging.INFO):
        fields = {
            "request_id": name,
            "method": method,
            "endpoint": endpoint,
            "status": status,
            "seconds": round(seconds, 4),
        }
        LOG.info("request", extra={_FIELDS: fields})


class AnswerLog:
    """Logs one answer at its end; see `turns.Watch`."""

    def __init__(self, model: str, operation: str, caller: Caller) -> None:
        self._fields = {
            "request_id": caller.request_id,
            "model": model,
            "operation": operation,
            "client": caller.client,
            "priority": caller.priority,
        }
        self._started_s = time.monotonic()
        self._first_s: float | None = None
        self._usages: list[Usage] = []
        self._reasons: Counter[str] = Counter()

    def saw(self, index: int, delta: Delta) -> None:
        """See `turns.Watch`."""
        if self._first_s is None:
            self._first_s = time.monotonic() - self._started_s
        if delta.usage:
            self._usages.append(delta.usage)
        if delta.finish_reason:
            self._reasons[delta.finish_reason] += 1

    def end(self, error: BaseException | None) -> None:
        """See `turns.Watch`."""
        if not LOG.isEnabledFor(logging.INFO):
            return
        fields = self._fields | {
            "seconds": round(time.monotonic() - self._started_s, 4),
            "first_piece_s": None if self._first_s is None else round(self._first_s, 4),
            "prompt_tokens": sum(usage.prompt_tokens for usage in self._usages),
            "completion_tokens": sum(usage.completion_tokens for usage in self._usages),
            "finish_reasons": dict(self._reasons) or {"cancelled": 1},
        }
        if error is not None:
            fields["error"] = getattr(error, "code", None) or type(error).__name__
        LOG.info("answer", extra={_FIELDS: fields})
