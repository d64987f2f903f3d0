"""What operators see: ids, spans, log lines, figures; and what none of these may hold."""

from __future__ import annotations

import http.server
import io
import json
import logging
import sys
import threading
import time

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from lmworks.core.errors import MissingExtra
from lmworks.inference.chat import ScriptedChat
from lmworks.serving.guard import LOOPBACK_HOSTS
from lmworks.serving.json_log import LOG, log_json
from lmworks.serving.tracing import Tracing, otlp_tracing

CHAT = "/v1/chat/completions"
SECRET, QUESTION, ANSWER = "sk-very-secret", "what is hidden", "hidden words here"
ASK = {"model": "s", "messages": [{"role": "user", "content": QUESTION}], "user": "person"}
HEADERS = {"Authorization": f"Bearer {SECRET}", "X-Request-Id": "mine-1"}


class Broken:
    """A model whose error quotes what it was asked."""

    name = "broken"

    def stream(self, messages, **settings):
        yield from ScriptedChat(["one two"]).stream(messages, max_tokens=1)
        raise RuntimeError(f"can't answer {messages}")


MODELS = {"s": ScriptedChat([ANSWER]), "broken": Broken()}


@pytest.fixture
def spans(live_server):
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    exporter, provider = memory.InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with (
        live_server(MODELS, tracing=Tracing(provider)) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        client.spans = lambda count: wait_for(exporter, count)
        yield client


def wait_for(exporter, count):
    deadline = time.monotonic() + 5
    while len(found := exporter.get_finished_spans()) < count:
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    exporter.clear()
    return {span.name: span for span in found}


@pytest.mark.parametrize("stream", [False, True])
def test_spans_follow_the_conventions(spans, stream):
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    settings = {"temperature": 0.5, "max_tokens": 2, "stream": stream}
    spans.post(CHAT, json=ASK | settings, headers=HEADERS | {"traceparent": parent})
    found = spans.spans(2)
    request, chat = found[f"POST {CHAT}"], found["chat s"]
    assert request.parent.span_id == 0xB7AD6B7169203331
    assert chat.parent.span_id == request.context.span_id
    assert request.context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert request.attributes["http.route"] == CHAT
    assert request.attributes["http.response.status_code"] == 200
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "lmworks",
        "gen_ai.request.model": "s",
        "gen_ai.response.model": "s",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 2,
        "gen_ai.request.stream": stream,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 2,
    }
    assert expected.items() <= dict(chat.attributes).items()
    assert chat.attributes["gen_ai.response.time_to_first_chunk"] > 0
    said = str([span.to_json() for span in found.values()])
    assert not any(text in said for text in (SECRET, QUESTION, "hidden"))


def test_a_failure_is_an_error_of_both_spans(spans):
    assert spans.post(CHAT, json=ASK | {"model": "broken"}).status_code == 500
    found = spans.spans(2)
    assert found["chat broken"].attributes["error.type"]
    assert not found["chat broken"].status.is_ok
    assert found[f"POST {CHAT}"].attributes["http.response.status_code"] == 500
    assert QUESTION not in str([span.to_json() for span in found.values()])


def test_spans_go_to_a_collector(live_server, monkeypatch):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    got = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{collector.server_port}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        tracing = otlp_tracing()
        with live_server(MODELS, tracing=tracing) as server:
            httpx.post(server.url + CHAT, json=ASK)
        tracing.close()
        collector.shutdown()
    assert {path for path, _ in got} == {"/v1/traces"}
    said = b"".join(body for _, body in got)
    assert b"gen_ai.usage.output_tokens" in said and b"hidden" not in said


def test_a_missing_exporter_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(MissingExtra, match=r"opentelemetry.*lmworks\[observability\]"):
        otlp_tracing()


@pytest.fixture
def logged(live_server):
    """A server whose log lines are collected; the root logger is given back as it was."""
    root, stream = logging.getLogger(), io.StringIO()
    before, level = list(root.handlers), LOG.level
    handler = log_json(stream)
    try:
        with (
            live_server(MODELS, allowed_hosts=LOOPBACK_HOSTS) as server,
            httpx.Client(base_url=server.url, headers=HEADERS) as client,
        ):
            client.stream_of_log, client.socket_url = (
                stream,
                f"ws://127.0.0.1:{server.port}/v1/stream",
            )
            yield client
    finally:
        root.removeHandler(handler)
        root.handlers[:] = before
        LOG.setLevel(level)


def lines_of(client, count):
    deadline = time.monotonic() + 5
    while len(lines := client.stream_of_log.getvalue().splitlines()) < count:
        assert time.monotonic() < deadline, lines
        time.sleep(0.01)
    return [json.loads(line) for line in lines]


def test_a_line_per_request_and_answer(logged):
    response = logged.post(CHAT, json=ASK)
    assert response.headers["x-request-id"] == "mine-1"
    answer, request = lines_of(logged, 2)
    assert (request["event"], answer["event"]) == ("request", "answer")
    assert request["request_id"] == answer["request_id"] == "mine-1"
    assert (request["endpoint"], request["status"], request["level"]) == (CHAT, 200, "info")
    assert (answer["model"], answer["prompt_tokens"], answer["completion_tokens"]) == ("s", 3, 3)
    assert answer["finish_reasons"] == {"stop": 1}
    assert answer["client"].startswith("user:")


def test_a_line_per_websocket_and_answer_on_it(logged):
    with connect(logged.socket_url, additional_headers=HEADERS) as socket:
        for name in "ab":
            socket.send(json.dumps({"type": "request", "id": name, "request": ASK}))
        ended = 0
        while ended < 2:
            ended += json.loads(socket.recv(timeout=10))["type"] == "done"
    *answers, request = lines_of(logged, 3)
    assert [answer["event"] for answer in answers] == ["answer"] * 2
    assert {line["request_id"] for line in (*answers, request)} == {"mine-1"}
    told = (request["event"], request["method"], request["endpoint"], request["status"])
    assert told == ("request", "GET", "/v1/stream", 101)


def test_a_refused_websocket_is_a_line_too(logged):
    with pytest.raises(InvalidStatus, match="403"):
        connect(logged.socket_url, origin="https://evil.example")
    (request,) = lines_of(logged, 1)
    assert (request["event"], request["endpoint"], request["status"]) == ("request", "other", 403)
    assert "evil" not in logged.stream_of_log.getvalue()


def test_no_line_holds_a_secret_or_a_word_of_the_talk(logged):
    logged.post(CHAT, json=ASK)
    logged.post(CHAT, json=ASK | {"stream": True})
    logged.post(CHAT, json=ASK | {"model": "broken"})
    logged.post(CHAT, json=ASK | {"temperature": "hidden"})
    logged.get(f"/{SECRET}/hidden")
    logged.get(f"/v1/models/{SECRET}")
    logged.get("/health", headers={"X-Request-Id": "two\twords " + SECRET})
    lines = lines_of(logged, 11)
    text = logged.stream_of_log.getvalue()
    assert not any(word in text for word in (SECRET, "hidden", "person", "Bearer"))
    failure = next(line for line in lines if line.get("error") == "RuntimeError")
    assert any("test_watching.py" in place for place in failure["where"])
    assert {line["endpoint"] for line in lines if line["event"] == "request"} == {
        CHAT,
        "other",
        "/v1/models/{name:path}",
        "/health",
    }


def test_ids_are_made_where_none_is_given_or_it_is_odd(live_server):
    with live_server(MODELS) as server:
        made = [
            httpx.get(server.url + "/health", headers=headers).headers["x-request-id"]
            for headers in ({}, {}, {"X-Request-Id": "x" * 500}, {"X-Request-Id": "<script>"})
        ]
    assert len(set(made)) == 4
    assert all(name.startswith("req_") for name in made)


def test_figures_of_every_model(client, raw, chat):
    for _ in range(2):
        client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "y" * 80}], max_tokens=8
        )
    text = raw.get("/metrics").text
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")

    def figure(name):
        return float(figures[f'{name}{{model="tiny"}}'])

    assert figure("lmworks_batch_size_count") > 0
    assert figure("lmworks_queue_seconds_count") >= 2
    assert figure("lmworks_cached_prompt_tokens_total") >= 64  # the second found the first's pages
    assert figure("lmworks_prefix_hit_tokens_total") >= 64
    assert figure("lmworks_cache_pages") >= figure("lmworks_cache_pages_in_use") >= 0
    assert figure("lmworks_inter_token_seconds_count") > 0
    assert figure("lmworks_preemptions_total") >= 0
    assert any('end="length"' in name for name in figures)
