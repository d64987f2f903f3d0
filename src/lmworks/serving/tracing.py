"""OpenTelemetry spans: one per HTTP request, and in it one per answer after the GenAI conventions.

Needs the extra `observability`, and is off without a provider: the packages are imported by who
turns it on. A `traceparent` header continues the caller's trace. Content is never an attribute.

Source: OpenTelemetry semantic conventions for generative AI spans (experimental) and HTTP spans.
Differs: `gen_ai.provider.name` is `lmworks`, which the list of known providers has not.
"""

from __future__ import annotations

import time
from typing import Any

from lmworks.core.errors import MissingExtra
from lmworks.inference.base import Delta
from lmworks.serving.callers import Caller
from lmworks.serving.turns import Turn

SPAN = "span"  # its key in the state of an ASGI scope
_PROVIDER = "lmworks"


class Tracing:
    """Makes the spans.

    Args:
        provider: a `TracerProvider`; None: no spans.
    """

    def __init__(self, provider: Any = None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("lmworks.serving") if provider is not None else None

    def request(self, scope: Any) -> RequestSpan:
        """Begin the span of an HTTP request."""
        if self._tracer is None:
            return RequestSpan(None)
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        headers = {
            name.decode("latin-1"): text.decode("latin-1") for name, text in scope["headers"]
        }
        span = self._tracer.start_span(
            scope["method"],
            context=extract(headers),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": scope["method"], "url.scheme": scope["scheme"]},
        )
        scope.setdefault("state", {})[SPAN] = span
        return RequestSpan(span)

    def answer(self, turn: Turn, caller: Caller) -> list[AnswerSpan]:
        """Begin the span of an answer; none where spans are off."""
        if self._tracer is None:
            return []
        from opentelemetry.trace import SpanKind, set_span_in_context

        attributes = {
            **turn.traced(),
            "gen_ai.provider.name": _PROVIDER,
            "gen_ai.request.model": turn.model,
            "gen_ai.request.stream": bool(turn.stream),
        }
        span = self._tracer.start_span(
            f"{attributes['gen_ai.operation.name']} {turn.model}",
            context=None if caller.span is None else set_span_in_context(caller.span),
            kind=SpanKind.INTERNAL,
            attributes=attributes,
        )
        return [AnswerSpan(span, turn.model)]

    def close(self) -> None:
        """Send what is left."""
        if self._provider is not None and (shutdown := getattr(self._provider, "shutdown", None)):
            shutdown()


class RequestSpan:
    """The span of one HTTP request, or nothing."""

    def __init__(self, span: Any) -> None:
        self._span = span

    def end(self, endpoint: str, status: int) -> None:
        """The request is over."""
        if self._span is None:
            return
        from opentelemetry.trace import Status, StatusCode

        self._span.update_name(f"{self._span.name} {endpoint}")
        self._span.set_attributes({"http.route": endpoint, "http.response.status_code": status})
        if status >= 500:
            self._span.set_attribute("error.type", str(status))
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


class AnswerSpan:
    """The span of one answer; see `turns.Watch`."""

    def __init__(self, span: Any, model: str) -> None:
        self._span, self._model = span, model
        self._started_s = time.monotonic()
        self._first = True
        self._reasons: dict[int, str] = {}
        self._prompt_tokens = self._completion_tokens = self._cached_tokens = 0

    def saw(self, index: int, delta: Delta) -> None:
        """See `turns.Watch`."""
        if self._first:
            self._first = False
            seconds = time.monotonic() - self._started_s
            self._span.set_attribute("gen_ai.response.time_to_first_chunk", seconds)
        if delta.usage:
            self._prompt_tokens += delta.usage.prompt_tokens
            self._completion_tokens += delta.usage.completion_tokens
            self._cached_tokens += delta.usage.cached_tokens
        if delta.finish_reason:
            self._reasons[index] = delta.finish_reason

    def end(self, error: BaseException | None) -> None:
        """See `turns.Watch`."""
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attributes(
            {
                "gen_ai.response.model": self._model,
                "gen_ai.response.finish_reasons": [self._reasons[i] for i in sorted(self._reasons)],
                "gen_ai.usage.input_tokens": self._prompt_tokens,
                "gen_ai.usage.output_tokens": self._completion_tokens,
                "gen_ai.usage.cache_read.input_tokens": self._cached_tokens,
            }
        )
        kind = "cancelled" if error is None and not self._reasons else None
        if error is not None:
            kind = getattr(error, "code", None) or type(error).__name__
            self._span.set_status(Status(StatusCode.ERROR))
        if kind:
            self._span.set_attribute("error.type", kind)
        self._span.end()


def otlp_tracing() -> Tracing:
    """Spans to the collector that `OTEL_EXPORTER_OTLP_ENDPOINT` names, in batches.

    Raises: MissingExtra.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise MissingExtra(error.name or "opentelemetry", "observability", "--traces") from error
    named = Resource({SERVICE_NAME: "lmworks"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=named)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
