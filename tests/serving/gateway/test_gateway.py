"""One gateway, end to end over loopback: keys, limits under load, what is passed on and counted."""

from __future__ import annotations

import concurrent.futures
import json
import statistics
import time

import httpx
import pytest
from tests.serving.gateway.live import ask


def parallel(work, count, workers=50):
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(work, range(count)))


def test_an_answer_passes_as_it_is(fake, gateway):
    back = fake()
    live = gateway(back)
    with live.client(live.key()) as client:
        answer = ask(client, temperature=0.5, anything={"x": [1]})
        direct = httpx.post(f"{back.url}/chat/completions", json={"model": "fake"})
        assert answer.content == direct.content
        assert answer.headers["x-lmworks-backend"] == "a"
    asked = back.asked()[0]
    assert asked["model"] == "fake"
    assert (asked["temperature"], asked["anything"]) == (0.5, {"x": [1]})
    assert "max_tokens" not in asked  # nothing is set where no limit needs it


def test_a_stream_is_passed_on_piece_by_piece(fake, gateway):
    live = gateway(fake(mode="slow", tokens=6))
    with live.client(live.key()) as client:
        body = {"model": "chat", "messages": [], "stream": True}
        started, times, text = time.monotonic(), [], b""
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            for piece in answer.iter_bytes():
                times.append(time.monotonic() - started)
                text += piece
    assert times[-1] - times[0] > 0.2  # six pieces, 50 ms apart
    assert len(times) >= 6
    events = [json.loads(line[6:]) for line in text.decode().splitlines() if line[6:7] == "{"]
    assert (
        "".join(e["choices"][0]["delta"].get("content", "") for e in events) == "word " * 5 + "word"
    )
    assert text.endswith(b"data: [DONE]\n\n")
    (row,) = live.rows("SELECT * FROM usage")
    assert (row["prompt_tokens"], row["completion_tokens"]) == (7, 6)  # the back end's own count


@pytest.mark.parametrize("wanted", [False, True])
def test_the_event_with_usage_goes_to_who_asked_for_it(fake, gateway, wanted):
    live = gateway(fake())
    options = {"stream_options": {"include_usage": True}} if wanted else {}
    with live.client(live.key()) as client:
        text = ask(client, stream=True, **options).text
    assert ('"total_tokens"' in text) == wanted


def test_official_client(fake, gateway):
    openai = pytest.importorskip("openai")
    live = gateway(fake())
    client = openai.OpenAI(base_url=f"{live.url}/v1", api_key=live.key(), max_retries=0)
    question = [{"role": "user", "content": "hi"}]
    answer = client.chat.completions.create(model="chat", messages=question)
    assert answer.usage.total_tokens == 12
    pieces = client.chat.completions.create(model="chat", messages=question, stream=True)
    assert "".join(p.choices[0].delta.content or "" for p in pieces).count("word") == 5
    assert client.embeddings.create(model="chat", input="x", encoding_format="float").data
    assert [model.id for model in client.models.list()] == ["chat"]
    with pytest.raises(openai.NotFoundError, match="did you mean 'chat'"):
        client.chat.completions.create(model="chatt", messages=question)
    client.close()


# --- keys ---


def test_wrong_revoked_and_expired_keys(fake, gateway):
    live = gateway(fake())
    key = live.key(days=1e-9)
    time.sleep(0.01)
    with live.client(key) as client:
        assert "expired" in ask(client).json()["error"]["message"]
    key = live.key(name="bob")
    with live.client(key) as client:
        assert ask(client).status_code == 200
        admin = live.client(live.key(name="root", admin=True))
        key_id = key.split("_")[1]
        assert admin.post(f"/admin/keys/{key_id}/revoke").status_code == 200
        answer = ask(client)  # at once, with the same connection
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert admin.post(f"/admin/keys/{key_id}/rotate").status_code == 400  # stays revoked
        admin.close()


def test_keys_that_are_none(fake, gateway):
    back = fake()
    live = gateway(back)
    key = live.key()
    wrong = [
        "lmw",
        key[:-1],
        key + "0",
        key.upper(),
        key[:-1] + ("0" if key[-1] != "0" else "1"),
        "lmw_" + "0" * 12 + "_" + "0" * 64,
        key.replace("_", "-"),
        "' OR 1=1 --",
        "\u00e9" * 40,
        "x" * 60_000,
    ]
    with live.client() as client:
        assert ask(client).status_code == 401
        for text in wrong:
            headers = {"Authorization": b"Bearer " + text.encode()}
            answer = client.post("/v1/chat/completions", headers=headers, json={"model": "chat"})
            assert answer.status_code in (400, 401, 431), text
        for value in (key, f"Basic {key}", f"Bearer{key}", f"Bearer  {key} {key}"):
            answer = client.get("/v1/models", headers={"Authorization": value})
            assert answer.status_code == 401, value
        both = [("Authorization", f"Bearer {key}"), ("x-api-key", live.key(name="other"))]
        answer = client.get("/v1/models", headers=both)
        assert "several" in answer.json()["error"]["message"]
        assert client.get("/v1/models", headers={"x-api-key": key}).status_code == 200
    assert back.asked() == []


def test_headers_of_a_client_reach_no_back_end(fake, gateway):
    back = fake()
    live = gateway(back)
    evil = {"X-Evil": "1", "X-Request-Id": "mine", "Cookie": "a=b", "X-Forwarded-For": "1.2.3.4"}
    with live.client(live.key()) as client:
        answer = client.post("/v1/chat/completions", headers=evil, json={"model": "chat"})
        assert answer.headers["x-request-id"].startswith("mine-")
        bad = {"X-Request-Id": "a b\tc"}
        answer = client.post("/v1/chat/completions", headers=bad, json={"model": "chat"})
        assert answer.headers["x-request-id"].startswith("req-")
    for head in back.seen()["headers"]:
        names = {line.partition(":")[0].lower() for line in head.splitlines() if line}
        assert names == {"host", "accept-encoding", "user-agent", "content-type", "content-length"}


def test_a_wrong_secret_takes_as_long_as_an_unknown_id(fake, gateway):
    live = gateway(fake())
    key = live.key()
    known, unknown = key[:-6] + "aaaaaa", "lmw_" + "0" * 12 + key[16:]
    times: dict[str, list[float]] = {known: [], unknown: []}
    with live.client() as client:
        for _ in range(150):
            for text, seen in times.items():
                started = time.perf_counter()
                client.get("/v1/models", headers={"x-api-key": text})
                seen.append(time.perf_counter() - started)
    # The quickest tenth: what else this machine does makes requests slower, never quicker.
    a, b = (statistics.quantiles(seen, n=10)[0] for seen in times.values())
    assert 0.7 < a / b < 1.4


def test_allowlists(fake, gateway):
    back = fake()
    routes = [{"backend": "a", "model": "fake"}]
    live = gateway(back, models={"chat": {"routes": routes}, "secret": {"routes": routes}})
    with live.client(live.key(models=["chat"])) as client:
        assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["chat"]
        answer = client.post("/v1/chat/completions", json={"model": "secret"})
        assert answer.status_code == 404
        assert "known: chat" in answer.json()["error"]["message"]
        assert client.get("/v1/models/secret").status_code == 404
    with live.client(live.key(admin=True)) as client:
        assert ask(client).status_code == 404  # an admin key asks no model
    with live.client(live.key()) as client:
        assert client.get("/admin/keys").status_code == 403


# --- limits, with 50 clients at once ---


def test_requests_of_a_day_are_exact(fake, gateway):
    back = fake()
    live = gateway(back)
    key = live.key(requests_per_day=40)
    with live.client(key) as client:
        answers = parallel(lambda _: ask(client), 120)
    statuses = [answer.status_code for answer in answers]
    assert (statuses.count(200), statuses.count(429)) == (40, 80)
    assert len(back.asked()) == 40
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "insufficient_quota"
    assert int(refused.headers["retry-after"]) > 0
    (row,) = live.rows("SELECT * FROM usage")
    assert (row["requests"], row["prompt_tokens"], row["completion_tokens"]) == (40, 280, 200)


def test_a_bucket_is_exact(fake, gateway):
    live = gateway(fake())
    key = live.key(requests_per_minute=1, burst=30)  # nothing to speak of comes back in a second
    with live.client(key) as client:
        answers = parallel(lambda _: ask(client), 100)
    assert sum(answer.status_code == 200 for answer in answers) == 30
    code = {a.json()["error"]["code"] for a in answers if a.status_code == 429}
    assert code == {"rate_limit_exceeded"}


def test_a_bucket_fills_again(fake, gateway):
    live = gateway(fake())
    with live.client(live.key(requests_per_minute=600, burst=1)) as client:
        assert [ask(client).status_code for _ in range(2)] == [200, 429]
        time.sleep(0.11)
        assert ask(client).status_code == 200


def test_tokens_are_never_more_than_the_quota(fake, gateway):
    """Each request may use 7 + 5; while it runs, what it may use at most is reserved."""
    back = fake()
    live = gateway(back, bytes_per_token=1)
    key = live.key(tokens_per_day=500)
    with live.client(key) as client:
        settings = {"max_tokens": 5}
        done = 0
        for _ in range(4):  # what is given back by some lets others in
            answers = parallel(lambda _: ask(client, **settings), 40)
            assert {a.status_code for a in answers} <= {200, 429}, [a.text for a in answers]
            done += sum(answer.status_code == 200 for answer in answers)
        while ask(client, **settings).status_code == 200:
            done += 1
        left = client.get("/v1/key").json()["left"]["tokens"]
    (row,) = live.rows("SELECT * FROM usage")
    used = row["prompt_tokens"] + row["completion_tokens"]
    assert used == 12 * done == 500 - left <= 500
    assert left < 2 + 3 + 4 + 4 + 5  # the next would not fit: 2 bytes, marks, 5 to write
    assert live.rows("SELECT * FROM open_requests") == []


def test_an_answer_without_a_limit_gets_what_is_left(fake, gateway):
    back = fake(tokens=1000)
    live = gateway(back)
    with live.client(live.key(tokens_per_day=60)) as client:
        answer = ask(client)
        assert answer.status_code == 200
        limit = back.asked()[0]["max_completion_tokens"]
        assert answer.json()["usage"]["completion_tokens"] == limit
        assert ask(client).status_code == 429
        refused = ask(client, max_tokens=1000)
        assert "this key's tokens for today" in refused.json()["error"]["message"]


def test_a_budget_holds(fake, gateway):
    """12 tokens at 1 and 2 per million: 17 millionths a request."""
    live = gateway(fake())
    with live.client(live.key(budget_per_month=0.0001)) as client:
        statuses = [ask(client, max_tokens=5).status_code for _ in range(8)]
        left = client.get("/v1/key").json()["left"]["money"]
    assert statuses == [200] * 5 + [429] * 3
    assert left == pytest.approx(0.0001 - 5 * 17e-6)


def test_what_fails_costs_nothing(fake, gateway):
    back = fake(mode="500")
    live = gateway(back)
    with live.client(live.key(requests_per_day=5, tokens_per_day=1000)) as client:
        assert ask(client).status_code == 502
        assert client.get("/v1/key").json()["left"] == {"requests": 5, "tokens": 1000}
        back.mode("400")  # the client's own fault is a request
        answer = ask(client)
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, "as told")
        assert client.get("/v1/key").json()["left"] == {"requests": 4, "tokens": 1000}


def test_who_leaves_a_stream_pays_for_it_and_stops_it(fake, gateway):
    back = fake(mode="slow", tokens=100)
    live = gateway(back)
    with live.client(live.key(tokens_per_day=5000)) as client:
        body = {"model": "chat", "messages": [], "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            for count, _ in enumerate(answer.iter_bytes()):
                if count == 4:
                    break
        for _ in range(100):
            if live.rows("SELECT * FROM usage"):
                break
            time.sleep(0.02)
        (row,) = live.rows("SELECT * FROM usage")
        assert 3 <= row["completion_tokens"] <= 12
        assert live.rows("SELECT * FROM requests")[0]["status"] == 499
        for _ in range(100):
            if back.seen()["left"]:
                break
            time.sleep(0.02)
        assert back.seen()["left"] == 1


# --- bad input ---


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"[]", None),
        (b"{}", "model"),
        (b'{"model": 5}', "model"),
        (b'{"model": "chat", "max_tokens": -1}', "max_tokens"),
        (b'{"model": "chat", "max_tokens": 1e400}', "max_tokens"),
        (b'{"model": "chat", "max_tokens": "9"}', "max_tokens"),
        (b'{"model": "chat", "max_tokens": 99999999999999999999}', "max_tokens"),
        (b'{"model": "chat", "n": 1000}', "n"),
        (b'{"model": "chat", "n": 0}', "n"),
        (b'{"model": "chat", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}", None),
        (b"\xff\xfe", None),
    ],
)
def test_bad_bodies(fake, gateway, body, param):
    back = fake()
    live = gateway(back)
    with live.client(live.key(tokens_per_day=1000)) as client:
        answer = client.post("/v1/chat/completions", content=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
    assert back.asked() == []


def test_a_gigantic_body_and_a_strange_path(fake, gateway):
    live = gateway(fake(), max_body_mb=0.01)
    with live.client(live.key()) as client:
        answer = client.post("/v1/chat/completions", content=b"x" * 20_000)
        assert answer.status_code == 413
        for path in ("/v1/../admin/keys", "/v1/models/..%2f..%2fetc", "/v1/nothing", "//admin"):
            assert client.get(path).status_code in (403, 404)
        assert client.get("/v1/chat/completions").status_code == 405
