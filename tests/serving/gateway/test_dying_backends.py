"""A back end that dies, in every way there is, costs no user request while another lives."""

from __future__ import annotations

import concurrent.futures
import time

import pytest
from tests.serving.gateway.live import ask

from lmworks.serving.gateway.config import RouteConfig
from lmworks.serving.gateway.routing import weighted_order

WAYS = ["500", "429", "hang", "cut", "cut-head", "error-event", "cut-role", "no-json", "cut-middle"]
STREAM_ONLY, WHOLE_ONLY = {"cut-head", "error-event", "cut-role"}, {"no-json", "cut-middle"}


def complete(answer) -> bool:
    return answer.status_code == 200 and answer.text.count("word") == 5


@pytest.mark.parametrize("way", [*WAYS, "killed"])
def test_no_request_is_lost(fake, gateway, way):
    bad, good = fake(mode="ok" if way == "killed" else way), fake()
    waits = {"first_byte_s": 0.5, "answer_s": 0.5} if way == "hang" else {}
    live = gateway({"url": bad.url, **waits}, good)
    if way == "killed":
        bad.kill()
    with live.client(live.key()) as client:

        def one(i):
            stream = i % 2 == 0
            if way in STREAM_ONLY | WHOLE_ONLY:
                stream = way in STREAM_ONLY
            return ask(client, stream=stream)

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(one, range(48)))
        assert all(complete(answer) for answer in answers)
        assert {answer.headers["x-lmworks-backend"] for answer in answers} == {"b"}
    (row,) = live.rows("SELECT sum(requests) AS n, sum(completion_tokens) AS t FROM usage")
    assert (row["n"], row["t"]) == (48, 240)
    # Once the breaker is open, nobody waits for it.
    assert live.door.backends["a"].requests < 24


def test_a_back_end_is_killed_in_mid_traffic_and_comes_back(fake, gateway):
    first, second = fake(), fake()
    live = gateway(first, second, breaker={"failures": 2, "open_s": 0.2})
    port = first.port
    with live.client(live.key()) as client:

        def one(i):
            if i == 40:
                first.kill()
            return ask(client, stream=i % 2 == 0)

        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(one, range(120)))
        assert all(complete(answer) for answer in answers)
        backend = live.door.backends["a"]
        assert backend.state != "closed"
        fake(port=port)
        time.sleep(0.25)
        assert backend.state == "half-open"
        served = {ask(client).headers["x-lmworks-backend"] for _ in range(40)}
        assert served == {"a", "b"} and backend.state == "closed"


def test_a_stream_that_is_cut_in_the_middle_says_so(fake, gateway):
    """What the client has seen can't be taken back; it is told, and pays for what it got."""
    live = gateway(fake(mode="cut-middle"), fake(mode="cut-middle"))
    with live.client(live.key()) as client:
        text = ask(client, stream=True).text
    assert '"content": "word "' in text and "cut off" in text and "[DONE]" not in text
    (row,) = live.rows("SELECT * FROM usage")
    assert (row["errors"], row["completion_tokens"]) == (1, 2)


def test_the_fallback_answers_before_any_pause(fake, gateway):
    models = {
        "chat": {"routes": [{"backend": "a", "model": "fake"}], "fallbacks": ["spare"]},
        "spare": {"routes": [{"backend": "b", "model": "spare"}], "price": {"output": 1000}},
    }
    spare = fake()
    live = gateway(fake(mode="500"), spare, models=models, retries={"rounds": 3, "base_s": 5.0})
    with live.client(live.key()) as client:
        started = time.monotonic()
        assert complete(ask(client))
        assert time.monotonic() - started < 1.0
    assert spare.asked()[0]["model"] == "spare"
    (row,) = live.rows("SELECT * FROM usage")
    assert (row["model"], row["backend"], row["nano"]) == ("chat", "b", 5_000_000)


def test_it_waits_and_tries_again_when_all_are_down(fake, gateway):
    back = fake(mode="500")
    live = gateway(back, retries={"rounds": 6, "base_s": 0.3}, breaker={"failures": 100})
    with live.client(live.key()) as client, concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, client)
        time.sleep(0.1)
        back.mode("ok")
        assert complete(waiting.result())


def test_all_dead_is_told_without_secrets(fake, gateway):
    back = fake()
    live = gateway(back)
    back.kill()
    with live.client(live.key()) as client:
        answer = ask(client)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")
        for _ in range(5):
            ask(client)
        assert ask(client).json()["error"]["code"] == "no_backend"  # the breaker is open
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200


def test_a_hanging_one_is_found_by_its_health_check(fake, gateway):
    bad, good = fake(mode="hang"), fake()
    backends = [
        {"url": b.url, "health_path": "/models", "health_every_s": 0.05, "first_byte_s": 0.2}
        for b in (bad, good)
    ]
    live = gateway(*backends, breaker={"failures": 100})
    time.sleep(0.8)
    assert [b.healthy for b in live.door.backends.values()] == [False, True]
    with live.client(live.key()) as client:
        assert all(ask(client).headers["x-lmworks-backend"] == "b" for _ in range(10))
        bad.mode("ok")
        time.sleep(0.5)
        assert live.door.backends["a"].healthy


def test_one_that_is_back_is_asked_before_its_next_check(fake, gateway):
    back = fake()
    live = gateway(back)  # whose health nobody checks, so what it is set to stays
    live.door.backends["a"].healthy = False
    with live.client(live.key()) as client:
        assert client.get("/ready").status_code == 503
        assert complete(ask(client))


def test_hedging_asks_another_when_the_first_is_silent(fake, gateway):
    slow, quick = fake(mode="hang"), fake()
    backends = [{"url": b.url, "first_byte_s": 5.0, "answer_s": 5.0} for b in (slow, quick)]
    models = {
        "chat": {
            "strategy": "order",
            "routes": [{"backend": "a", "model": "fake"}, {"backend": "b", "model": "fake"}],
        }
    }
    live = gateway(*backends, models=models, retries={"hedge_s": 0.1})
    with live.client(live.key()) as client:
        started = time.monotonic()
        answer = ask(client, stream=True)
        assert complete(answer) and answer.headers["x-lmworks-backend"] == "b"
        assert time.monotonic() - started < 2.0
    assert live.door.backends["a"].in_flight == 0


def test_latency_aware_routing_prefers_the_fast_one(fake, gateway):
    models = {
        "chat": {
            "strategy": "latency",
            "routes": [{"backend": "a", "model": "fake"}, {"backend": "b", "model": "fake"}],
        }
    }
    live = gateway(fake(), fake(), models=models)
    live.door.backends["a"].answered(2.0)
    with live.client(live.key()) as client:
        served = [ask(client).headers["x-lmworks-backend"] for _ in range(10)]
    assert served == ["b"] * 10


def test_weights_share_the_requests():
    routes = [RouteConfig(backend=b, model="m", weight=w) for b, w in (("a", 3), ("b", 1))]
    first = [weighted_order(routes)[0].backend for _ in range(4000)]
    assert 0.72 < first.count("a") / 4000 < 0.78  # 3 : 1, within 4 standard deviations


def test_a_full_back_end_is_passed_over(fake, gateway):
    slow, other = fake(mode="slow"), fake()
    backends = [{"url": slow.url, "max_parallel": 1}, {"url": other.url}]
    live = gateway(*backends)
    with live.client(live.key()) as client:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: ask(client, stream=True), range(24)))
        assert all(complete(answer) for answer in answers)
    assert len(slow.asked()) <= 6
