"""What no well-behaved client sends, and what only operators read."""

from __future__ import annotations

import contextlib
import json
import re
import socket

import httpx
import pytest

from lmworks.core.errors import UserError
from lmworks.inference.chat import RemoteChat, RemoteError, ScriptedChat
from lmworks.serving import bodies
from lmworks.serving.app import create_app

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"not json",
        b"\xff\xfe",
        b"[1]",
        b'"text"',
        b"null",
        b"{}",
        b"[" * 100_000,
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    ],
)
def test_a_bad_body_is_400_in_one_line(raw, body):
    response = raw.post(CHAT, content=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert "\n" not in error["message"] and "Traceback" not in error["message"]


def test_a_body_over_the_limit_is_413(live_server):
    with (
        live_server({"s": ScriptedChat(["yes"])}, max_body_bytes=1000) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        assert client.post(CHAT, content=b"x" * 1001).status_code == 413
        chunks = (b"x" * 100 for _ in range(100))  # no Content-Length
        response = client.post(CHAT, content=chunks)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"


def test_a_body_that_does_not_come_is_408(live_server, monkeypatch):
    monkeypatch.setattr("lmworks.serving.bodies.BODY_S", 0.2)
    with (
        live_server({"s": ScriptedChat(["yes"])}) as server,
        socket.create_connection(("127.0.0.1", server.port)) as client,
    ):
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{{"
        client.sendall(head.encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "tiny/../tiny", "tiny\x00", "", "T" * 100_000, "."]
)
def test_a_path_is_no_name_of_a_model(raw, name):
    response = raw.post(CHAT, json=ASK | {"model": name})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    assert len(response.content) < 1000
    assert "root:" not in response.text


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: -5",
        "Content-Length: 99999999999999999999999",
        "Host: evil.example",
        "X-Long: " + "x" * 300_000,
        " folded: x",
    ],
)
def test_header_tricks_are_refused(server, raw, head, monkeypatch):
    monkeypatch.setattr(bodies, "BODY_S", 0.5)  # the chunks of the first never come
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        text = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}\r\n\r\n"
        with contextlib.suppress(OSError):
            client.sendall(text.encode())
            answer = client.recv(1000)
            assert not answer or 400 <= int(answer.split()[1]) < 500
    assert raw.get("/health").status_code == 200


def test_unknown_paths_and_methods_keep_the_shape(raw):
    for method, path, status in [("GET", "/nothing", 404), ("GET", CHAT, 405)]:
        response = raw.request(method, path)
        assert response.status_code == status
        assert response.json()["error"]["message"]


def test_health(raw):
    assert raw.get("/health").json()["models"] == ["tiny"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[", "evil:8000"])
def test_another_host_name_is_refused(raw, host):
    response = raw.get("/v1/models", headers={"Host": host})
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "host_not_allowed"


def test_pages_of_other_sites_are_refused(raw, server):
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        response = raw.post(CHAT, json=ASK, headers={"Origin": origin})
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers
    assert raw.post(CHAT, json=ASK, headers={"Origin": server.url}).status_code == 200
    local = f"localhost:{server.port}"
    assert raw.get("/health", headers={"Host": local}).status_code == 200


SAMPLE = re.compile(r'^[a-z_]+\{([a-z_]+="[^"]*",?)+\} [0-9.e+-]+$')


def test_metrics_are_valid_and_add_up(raw):
    def read():
        lines = raw.get("/metrics").text.splitlines()
        lines = [line for line in lines if not line.startswith("# ")]
        assert all(SAMPLE.match(line) for line in lines)
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}

    before = read()
    answers = [raw.post(CHAT, json=ASK).json() for _ in range(3)]
    raw.post(CHAT, content=b"not json")
    after = read()

    def gained(name):
        return after[name] - before.get(name, 0)

    assert gained(f'lmworks_requests_total{{endpoint="{CHAT}",status="200"}}') == 3
    assert gained(f'lmworks_requests_total{{endpoint="{CHAT}",status="400"}}') == 1
    for kind in ("prompt", "completion"):
        total = sum(answer["usage"][kind + "_tokens"] for answer in answers)
        assert gained(f'lmworks_{kind}_tokens_total{{model="tiny"}}') == total
    name = "lmworks_time_to_first_token_seconds"
    assert gained(name + '_count{model="tiny"}') == 3
    assert gained(name + '_bucket{model="tiny",le="+Inf"}') == 3
    assert after['lmworks_requests_in_flight{model="tiny"}'] == 0
    assert after['lmworks_requests_running{model="tiny"}'] == 0


def test_metrics_agree_with_prometheus(raw):
    parser = pytest.importorskip("prometheus_client.parser", reason="prometheus_client is not here")
    families = list(parser.text_string_to_metric_families(raw.get("/metrics").text))
    assert {family.name for family in families} >= {"lmworks_requests", "lmworks_request_seconds"}


class Failing:
    """A model that fails at the start, or after its first piece."""

    name = "failing"

    def stream(self, messages, **sampling):
        if messages[0]["content"] == "refuse":
            raise UserError("no answer to this")
        yield from ScriptedChat(["one two"]).stream(messages, max_tokens=1)
        raise RuntimeError("secret detail")


def test_a_failing_model_leaves_the_server_alive(live_server, caplog):
    with (
        live_server({"failing": Failing(), "s": ScriptedChat(["fine"])}) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        ask = ASK | {"model": "failing"}
        response = client.post(CHAT, json=ask)
        assert response.status_code == 500
        assert "secret" not in response.text
        refused = client.post(
            CHAT, json=ask | {"messages": [{"role": "user", "content": "refuse"}]}
        )
        assert (refused.status_code, refused.json()["error"]["message"]) == (
            400,
            "no answer to this",
        )
        events = client.post(CHAT, json=ask | {"stream": True}).text.split("\n\n")
        assert "error" in json.loads(events[-2].removeprefix("data: "))
        fine = client.post(CHAT, json=ASK | {"model": "s"})
        assert fine.json()["choices"][0]["message"]["content"] == "fine"
    assert "secret detail" in caplog.text


def test_a_remote_chat_speaks_to_it(server, chat, monkeypatch):
    monkeypatch.setenv("LMWORKS_API_KEY", "sk-secret")
    remote = RemoteChat(server.url + "/v1")
    assert remote.name == "tiny"
    messages = [{"role": "user", "content": "Who is it?"}]
    settings = {"seed": 3, "max_tokens": 12, "top_k": 20, "stop": ["\x00"]}
    local = chat.complete(messages, **settings)
    assert remote.complete(messages, **settings) == local
    deltas = list(remote.stream(messages, **settings))
    assert "".join(d.text for d in deltas) == local.text
    assert deltas[-1].usage.completion_tokens == local.completion_tokens
    assert deltas[-1].finish_reason == local.finish_reason
    assert remote.complete_text("Who", **settings) == chat.complete_text("Who", **settings)
    scored = remote.complete(messages, logprobs=2, **settings)
    assert [e.logprob for e in scored.logprobs] == pytest.approx(
        [e.logprob for e in chat.complete(messages, logprobs=2, **settings).logprobs], abs=1e-5
    )
    with pytest.raises(RemoteError, match=r"status 400.*context holds") as caught:
        remote.complete([{"role": "user", "content": "x" * 500}])
    assert "sk-secret" not in repr(vars(remote)) + str(caught.value)
    other = RemoteChat(server.url + "/v1", "other")
    with pytest.raises(RemoteError, match="status 404: the model 'other' does not exist"):
        other.complete(messages)
    other.close()
    remote.close()


def test_the_page_runs_only_its_own_script(raw):
    response = raw.get("/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "'unsafe" not in policy
    assert policy.count("'sha256-") == 3
    assert "innerHTML" not in response.text and "http" not in policy
    assert not re.search(r'(src|href)="(?!data:)', response.text)


def test_the_app_needs_no_allowed_hosts():
    assert create_app({"s": ScriptedChat(["x"])}).state.service.models
