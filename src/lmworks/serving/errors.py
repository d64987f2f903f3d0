"""Errors in the shape of the API that was asked.

OpenAI's: `{"error": {"message", "type", "param", "code"}}`. Anthropic's: `{"type": "error",
"error": {"type", "message"}}`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from lmworks.core.errors import UserError, nearest
from lmworks.inference.grammar_tokens import GrammarError
from lmworks.inference.remote import RemoteError
from lmworks.inference.sampling import InvalidParameter
from lmworks.inference.streams import EngineClosed, GenerationError, PromptTooLong, QueueFull
from lmworks.serving.memory_units import DoesNotFit, LoadFailed, NoRoom

_LOG = logging.getLogger("lmworks.serving")
_SHOWN = 100  # characters of a name that came from outside
CLIENT_LEFT = 499  # the status that access logs have used for this since nginx
ANTHROPIC_PATH = "/v1/messages"
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_TYPES = {404: "not_found_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """What a client is told: an HTTP status and the four fields."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def about(self, param: str) -> ApiError:
        """The same for another parameter, in the words of the request at hand."""
        message = self.message.replace(f"{self.param}: ", f"{param}: ", 1)
        return ApiError(self.status, message, param=param, code=self.code)

    def body(self) -> dict[str, Any]:
        """The JSON object to send."""
        by_status = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, by_status),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self, path: str = "") -> JSONResponse:
        """The whole answer, in the shape of the API that `path` belongs to."""
        headers = {"Retry-After": "1"} if self.status in (429, 503) else None
        body = self.anthropic_body() if path.startswith(ANTHROPIC_PATH) else self.body()
        return JSONResponse(body, self.status, headers)

    def anthropic_body(self) -> dict[str, Any]:
        """The JSON object to send to a client of the Anthropic API."""
        by_status = "invalid_request_error" if self.status < 500 else "api_error"
        error = {"type": _ANTHROPIC_TYPES.get(self.status, by_status), "message": self.message}
        return {"type": "error", "error": error}


def model_not_found(name: str, known: Iterable[str]) -> ApiError:
    """404, with the nearest name and all names."""
    names = sorted(known)
    name = name if len(name) <= _SHOWN else name[:_SHOWN] + "..."
    close = nearest(name, names)
    hint = f"did you mean {close!r}? " if close else ""
    message = f"the model {name!r} does not exist here: {hint}known: {', '.join(names)}"
    return ApiError(404, message, param="model", code="model_not_found")


def as_api_error(error: Exception) -> ApiError:
    """The answer for whatever was raised; what is not the client's or a user's fault is logged."""
    match error:
        case ApiError():
            return error
        case PromptTooLong():
            # The last words are what clients look for, where they don't look at the code.
            message = f"{error} (this model's maximum context length is {error.max_positions})"
            return ApiError(400, message, param="messages", code="context_length_exceeded")
        case InvalidParameter():
            return ApiError(400, str(error), param=error.param, code="invalid_value")
        case QueueFull():
            return ApiError(429, str(error), code="queue_full")
        case GenerationError(__cause__=GrammarError()):  # a limit that the grammar ran into
            return ApiError(400, str(error), code="grammar_failed")
        case GenerationError():
            _LOG.error("generation failed", exc_info=error)
            return ApiError(500, str(error), code="generation_failed")
        case EngineClosed():
            return ApiError(503, str(error), code="shutting_down")
        case RemoteError():
            return ApiError(502, str(error), code="upstream_error")
        case DoesNotFit():
            return ApiError(507, str(error), param="model", code="model_too_large")
        case NoRoom():
            return ApiError(503, str(error), param="model", code="no_memory_now")
        case LoadFailed():
            _LOG.error("loading failed", exc_info=error)
            return ApiError(500, str(error), param="model", code="model_load_failed")
        case UserError():
            return ApiError(400, str(error))
        case ClientDisconnect():  # in the middle of its own request; nobody reads this
            return ApiError(CLIENT_LEFT, "the client left")
        case HTTPException():
            return ApiError(error.status_code, str(error.detail))
        case RequestValidationError():  # of what the framework reads: paths and queries
            first = error.errors()[0]
            param = str(first["loc"][-1])
            return ApiError(400, f"{param}: {first['msg']}", param=param, code="invalid_type")
    _LOG.error("request failed", exc_info=error)
    return ApiError(500, f"the server failed on this request ({type(error).__name__})")


def install_error_handlers(app: FastAPI) -> None:
    """Let every error of the app, also of its routing, leave in OpenAI's shape."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response(request.url.path)

    expected = (ApiError, UserError, GenerationError, ClientDisconnect, RequestValidationError)
    for kind in (*expected, HTTPException, Exception):
        app.add_exception_handler(kind, handle)
