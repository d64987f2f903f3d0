"""A `ChatModel` behind any OpenAI-compatible endpoint.

The key comes from `LMWORKS_API_KEY`, else `OPENAI_API_KEY`; it goes into one header and is in no
message, representation or log. Redirects are not followed, so it reaches the named host only.
Settings that were not given are not sent, so the endpoint's own defaults hold.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lmworks.core.errors import UserError
from lmworks.inference.base import (
    Completion,
    Delta,
    FinishReason,
    Messages,
    TokenLogprob,
    ToolCallDelta,
    Usage,
    collect,
)
from lmworks.inference.settings import REQUEST_SETTINGS, Settings

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 300.0  # a long prompt on a slow machine, before the first token
_SHOWN_CHARACTERS = 200


class RemoteError(UserError):
    """The endpoint could not be reached, refused the request, or answered something else."""


class RemoteChat:
    """One model of an endpoint.

    Args:
        url: up to and with `/v1`.
        model: its name there; left empty, the endpoint's only one.
        timeout_s: how long to wait for the next byte.
    """

    def __init__(self, url: str, model: str = "", *, timeout_s: float = READ_TIMEOUT_S) -> None:
        import httpx

        key = os.environ.get("LMWORKS_API_KEY") or os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._client = httpx.Client(headers=headers, timeout=timeout)
        self.name = model or self._only_model()

    def _only_model(self) -> str:
        listed = self._json("GET", "/models")
        entries = listed.get("data") if isinstance(listed, Mapping) else None
        names = [str(entry["id"]) for entry in entries or () if "id" in entry]
        if len(names) == 1:
            return names[0]
        known = ", ".join(names) or "none"
        raise UserError(f"{self.url}: name one of its models after a #: {known}")

    def complete(self, messages: Messages, **sampling: Any) -> Completion:
        """See `ChatModel.complete`. Raises: RemoteError."""
        return self._complete("/chat/completions", {"messages": list(messages)}, sampling)

    def stream(self, messages: Messages, **sampling: Any) -> Iterator[Delta]:
        """See `ChatModel.stream`. Raises: RemoteError."""
        return self._stream("/chat/completions", {"messages": list(messages)}, sampling)

    def complete_text(self, prompt: str | Sequence[int], **sampling: Any) -> Completion:
        """See `ChatModel.complete_text`. Raises: RemoteError."""
        return self._complete("/completions", {"prompt": prompt}, sampling)

    def stream_text(self, prompt: str | Sequence[int], **sampling: Any) -> Iterator[Delta]:
        """See `ChatModel.stream_text`. Raises: RemoteError."""
        return self._stream("/completions", {"prompt": prompt}, sampling)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _complete(
        self, path: str, question: dict[str, Any], sampling: Mapping[str, Any]
    ) -> Completion:
        body = self._body(path, question, sampling)
        answer = self._json("POST", path, body)
        wants_logprobs = sampling.get("logprobs") is not None
        return collect(iter([self._delta(answer)]), logprobs=wants_logprobs)

    def _stream(
        self, path: str, question: dict[str, Any], sampling: Mapping[str, Any]
    ) -> Iterator[Delta]:
        body = self._body(path, question, sampling)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        return self._events(self._send("POST", path, body, stream=True))

    def _body(
        self, path: str, question: dict[str, Any], sampling: Mapping[str, Any]
    ) -> dict[str, Any]:
        request = Settings.of(sampling)
        settings = request.sampling
        body = {"model": self.name, **question}
        body |= {
            name: value
            for name, value in sampling.items()
            if value is not None and name not in REQUEST_SETTINGS
        }
        if settings.stops:
            body["stop"] = list(settings.stops)
        if settings.logprobs is not None and path == "/chat/completions":
            body |= {"logprobs": True, "top_logprobs": settings.logprobs}
        return body

    def _send(self, method: str, path: str, body: Any = None, *, stream: bool = False) -> Any:
        import httpx

        request = self._client.build_request(method, self.url + path, json=body)
        try:
            response = self._client.send(request, stream=stream)
            if not response.is_success:
                response.read()
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._failure(error) from error
        if not response.is_success:
            raise RemoteError(
                f"{self.url} answered with status {response.status_code}: {_reason(response.text)}"
            )
        return response

    def _json(self, method: str, path: str, body: Any = None) -> Any:
        response = self._send(method, path, body)
        try:
            return response.json()
        except ValueError as error:
            raise RemoteError(
                f"{self.url} answered with something other than JSON: is this the address of an "
                "OpenAI-compatible API, with its /v1?"
            ) from error

    def _failure(self, error: Exception) -> RemoteError:
        import httpx

        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return RemoteError(f"{self.url} can't be reached: {_one_line(str(error))}")
        if isinstance(error, httpx.TimeoutException):
            return RemoteError(f"{self.url} sent nothing for {self._timeout_s:g} s")
        return RemoteError(f"{self.url}: {type(error).__name__}: {_one_line(str(error))}")

    def _events(self, response: Any) -> Iterator[Delta]:
        """The deltas of an SSE answer; the finish reason waits for the usage that may follow."""
        import httpx

        last: Delta | None = None
        try:
            for line in response.iter_lines():
                if not line.startswith("data:") or line[5:].strip() in ("", "[DONE]"):
                    continue
                delta = self._delta(self._parse(line[5:]))
                if last is not None:  # after the last piece only the usage is of interest
                    last = Delta(**{**vars(last), "usage": delta.usage or last.usage})
                elif delta.finish_reason:
                    last = delta
                else:
                    yield delta
        except httpx.HTTPError as error:
            raise self._failure(error) from error
        finally:
            response.close()
        if last is None:
            raise RemoteError(f"{self.url} ended the stream in the middle of the answer")
        yield last

    def _parse(self, text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise RemoteError(f"{self.url} sent an event that is not JSON") from error

    def _delta(self, chunk: Any) -> Delta:
        """One chunk, or a whole answer: both have the same fields at the places read here."""
        if isinstance(chunk, Mapping) and chunk.get("error"):
            raise RemoteError(f"{self.url}: {_reason(json.dumps(chunk))}")
        try:
            choice = (chunk.get("choices") or [{}])[0]
            message = choice.get("delta") or choice.get("message") or choice
            usage = chunk.get("usage")
            return Delta(
                text=message.get("content") or message.get("text") or "",
                finish_reason=_finish_reason(choice.get("finish_reason")),
                stop_string=_text(choice.get("stop_reason")),
                usage=usage
                and Usage(
                    prompt_tokens=int(usage["prompt_tokens"]),
                    completion_tokens=int(usage.get("completion_tokens") or 0),
                ),
                logprobs=tuple(_logprobs(choice.get("logprobs"))),
                tool_calls=tuple(_tool_calls(message.get("tool_calls"))),
            )
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise RemoteError(f"{self.url} sent an answer that is not of OpenAI's form") from error


def _finish_reason(value: Any) -> FinishReason | None:
    # Endpoints have more reasons (content_filter); for a text all of them are an end.
    known: dict[Any, FinishReason] = {"length": "length", "tool_calls": "tool_calls"}
    return None if value is None else known.get(value, "stop")


def _tool_calls(calls: Any) -> Iterator[ToolCallDelta]:
    """Pieces of calls, or whole ones, which have no index."""
    for place, call in enumerate(calls or ()):
        function = call.get("function") or {}
        index = call.get("index")
        yield ToolCallDelta(
            index=place if index is None else int(index),
            id=call.get("id") or "",
            name=function.get("name") or "",
            arguments=function.get("arguments") or "",
        )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""  # vLLM names a token by its id


def _logprobs(block: Any) -> Iterator[TokenLogprob]:
    for entry in (block or {}).get("content") or ():
        top = tuple((t["token"], float(t["logprob"])) for t in entry.get("top_logprobs") or ())
        yield TokenLogprob(token=entry["token"], logprob=float(entry["logprob"]), top=top)


def _reason(text: str) -> str:
    """The message inside an error answer, in one line."""
    try:
        error = json.loads(text)["error"]
        text = error["message"] if isinstance(error, Mapping) else str(error)
    except (ValueError, KeyError, TypeError):
        pass
    return _one_line(str(text)) or "no reason given"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARACTERS else line[:_SHOWN_CHARACTERS] + "..."
