"""Caches, answers by a schema, redaction, logs and the admin API, over a running gateway."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from tests.serving.gateway.live import ask

from lmworks.core.errors import UserError
from lmworks.models.save import save_model
from lmworks.serving.gateway.semantic_cache import load_question_encoder


def test_the_same_request_is_answered_again_but_never_to_another_key(fake, gateway):
    back = fake()
    live = gateway(back, cache={"exact": True})
    alice, bob = live.key("alice", tokens_per_day=1000), live.key("bob")
    with live.client(alice) as client:
        first, again = ask(client, temperature=0), ask(client, temperature=0)
        assert (first.headers["x-lmworks-cache"], again.headers["x-lmworks-cache"]) == (
            "miss",
            "hit",
        )
        assert again.json() == first.json()
        assert client.get("/v1/key").json()["left"]["tokens"] == 988  # paid once
        streamed = ask(client, temperature=0, stream=True)  # the same answer, in another form
        assert streamed.headers["x-lmworks-cache"] == "hit"
        assert streamed.text.count("word") == 5 and streamed.text.endswith("data: [DONE]\n\n")
        assert "x-lmworks-cache" not in ask(client).headers  # a temperature of 1 is no repetition
        fresh = client.post(
            "/v1/chat/completions",
            json={"model": "chat", "messages": [{"role": "user", "content": "hi"}], "seed": 1},
            headers={"Cache-Control": "no-store"},
        )
        assert "x-lmworks-cache" not in fresh.headers
    with live.client(bob) as client:
        assert ask(client, temperature=0).headers["x-lmworks-cache"] == "miss"
    assert len(back.asked()) == 4
    rows = live.rows("SELECT sum(cache_hits) AS hits, sum(requests) AS n FROM usage")
    assert rows == [{"hits": 2, "n": 6}]


def test_a_stream_fills_the_cache(fake, gateway):
    back = fake()
    live = gateway(back, cache={"exact": True, "when": "always"})
    with live.client(live.key()) as client:
        ask(client, stream=True)
        whole = ask(client)
        assert whole.headers["x-lmworks-cache"] == "hit"
        assert whole.json()["choices"][0]["message"]["content"].count("word") == 5
        assert whole.json()["usage"]["total_tokens"] == 12
        back.mode("cut-middle")
        broken = ask(client, stream=True, user="x", seed=3)
        assert "cut off" in broken.text
        back.mode("ok")
        assert ask(client, seed=3).headers["x-lmworks-cache"] == "miss"  # half an answer is none


def test_what_means_the_same_is_answered_again(fake, gateway):
    def embed(texts):
        return np.array([[1.0, 0.0] if "capital" in t else [0.0, 1.0] for t in texts], np.float32)

    live = gateway(fake(), cache={"semantic": True, "when": "always"}, embed=embed)

    def question(client, text):
        answer = ask(client, messages=[{"role": "user", "content": text}])
        assert answer.status_code == 200
        return answer.headers["x-lmworks-cache"]

    with live.client(live.key()) as client:
        assert question(client, "What is the capital of France?") == "miss"
        assert question(client, "Tell me the capital of France") == "semantic"
        assert question(client, "What is the capital of Spain?") == "miss"
        assert question(client, "How are you?") == "miss"
    with live.client(live.key(name="bob")) as client:
        assert question(client, "Tell me the capital of France") == "miss"


@pytest.mark.weights
def test_the_encoder_tells_what_means_the_same():
    encoder = load_question_encoder("minilm-l6")
    vectors = encoder.encode(
        ["How do I reset my password?", "How can I reset my password?", "What is a lion?"]
    )
    assert np.isfinite(encoder.encode(["\u200b"])).all()  # a text of no tokens but its marks
    encoder.close()
    cosines = vectors @ vectors.T
    # 0.99; without the marks that stand around a text it would be 0.91
    assert cosines[0, 1] > 0.98 and cosines[0, 2] < 0.3
    assert np.allclose(np.diag(cosines), 1, atol=1e-5)


def test_a_model_that_gives_no_vectors_compares_no_questions(tiny_model, tokenizer, tmp_path):
    save_model(tiny_model, tmp_path, tokenizer=tokenizer)
    with pytest.raises(UserError, match="gives no vectors of texts"):
        load_question_encoder(str(tmp_path))


def test_an_answer_that_breaks_its_schema_is_asked_for_again(fake, gateway):
    pytest.importorskip("jsonschema")
    bad, good = fake(mode="schema"), fake()
    models = {
        "chat": {
            "strategy": "order",
            "routes": [{"backend": "a", "model": "fake"}, {"backend": "b", "model": "fake"}],
        }
    }
    live = gateway(bad, good, models=models)
    schema = {
        "type": "object",
        "required": ["answer"],
        "properties": {"answer": {"type": "integer"}},
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with live.client(live.key()) as client:
        answer = ask(client, response_format=wanted)
        assert json.loads(answer.json()["choices"][0]["message"]["content"]) == {"answer": 5}
        assert answer.headers["x-lmworks-backend"] == "b"
        assert bad.asked()[0]["response_format"] == wanted  # it went through as it was
        good.mode("schema")
        failed = ask(client, response_format=wanted)
        assert (failed.status_code, failed.json()["error"]["code"]) == (502, "schema_violation")
        impossible = {"type": "json_schema", "json_schema": {"schema": {"type": "wrong"}}}
        assert ask(client, response_format=impossible).status_code == 400


def test_secrets_are_taken_out_for_back_ends_and_logs(fake, gateway):
    back, trusted = fake(), fake()
    models = {
        "chat": {"routes": [{"backend": "a", "model": "fake"}]},
        "local": {"routes": [{"backend": "b", "model": "fake"}]},
    }
    backends = [{"url": back.url, "redact": True}, {"url": trusted.url}]
    live = gateway(*backends, models=models, log={"contents": True})
    said = "mail ann@example.org, key sk-abcdefghijklmnopqrstuvwx"
    with live.client(live.key()) as client:
        for model in ("chat", "local"):
            ask(client, model=model, messages=[{"role": "user", "content": said}])
    assert back.asked()[0]["messages"][0]["content"] == "mail [EMAIL], key [SECRET]"
    assert trusted.asked()[0]["messages"][0]["content"] == said
    rows = live.rows("SELECT * FROM requests")
    assert all("[EMAIL]" in row["question"] and "word word" in row["answer"] for row in rows)
    everything = live.config.store.read_bytes()
    everything += live.config.store.with_name("gateway.db-wal").read_bytes()
    assert b"ann@example.org" not in everything and b"sk-abcdef" not in everything


def test_no_key_and_no_question_is_kept_anywhere(fake, gateway):
    live = gateway(fake())
    key = live.key()
    with live.client(key) as client:
        ask(client, messages=[{"role": "user", "content": "the quick brown fox"}])
    folder = live.config.path.parent
    kept = b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())
    assert key.split("_")[1].encode() in kept  # the id is
    assert key.split("_")[2].encode() not in kept and b"brown fox" not in kept


def test_the_admin_api(fake, gateway):
    live = gateway(fake())
    with live.client(live.key(name="root", admin=True)) as admin:
        made = admin.post("/admin/keys", json={"name": "carol", "limits": {"requests_per_day": 1}})
        carol = made.json()
        with live.client(carol["key"]) as client:
            assert [ask(client).status_code for _ in range(2)] == [200, 429]
            changed = admin.patch(
                f"/admin/keys/{carol['id']}", json={"limits": {"requests_per_day": 9}}
            )
            assert changed.json()["limits"] == {"requests_per_day": 9}
            assert ask(client).status_code == 200
            rotated = admin.post(f"/admin/keys/{carol['id']}/rotate").json()
            assert ask(client).status_code == 401  # the old secret
        with live.client(rotated["key"]) as client:
            assert ask(client).status_code == 200  # the same key: 3 requests so far
        keys = admin.get("/admin/keys").json()["keys"]
        assert {key["name"] for key in keys} == {"root", "carol"}
        assert "hash" not in json.dumps(keys) and carol["key"] not in json.dumps(keys)
        (row,) = admin.get("/admin/usage?days=1").json()["usage"]
        assert (row["key"], row["requests"]) == ("carol", 3)
        log = admin.get("/admin/requests").json()["requests"]
        assert [entry["status"] for entry in log] == [200, 200, 429, 200]
        assert admin.get("/admin/backends").json()["backends"][0]["requests"] == 3
        audit = admin.get("/admin/audit").json()
        actions = [entry["action"] for entry in audit["entries"]]
        assert actions == ["create key", "create key", "change key", "rotate key"]
        assert audit["fault"] == "" and carol["key"] not in json.dumps(audit)
        for bad in (
            {"name": ""},
            {"name": "x", "limits": {"a": 1}},
            {"name": "x", "models": ["none"]},
            {"name": "x", "models": "chat"},
            {"actor": "me", "name": "x"},
            {"name": "x", "days": -1},
            {"name": "x", "admin": "yes"},
            {"name": "x", "limits": 5},
        ):
            assert admin.post("/admin/keys", json=bad).status_code == 400, bad
        assert admin.get("/admin/usage?days=x").status_code == 400
        assert admin.post("/admin/keys/none/revoke").status_code == 400


def test_figures(fake, gateway):
    live = gateway(fake(mode="500"), fake())
    with live.client(live.key()) as client, live.client() as stranger:
        for _ in range(8):
            ask(client)
        ask(stranger)
        text = client.get("/metrics").text
    parser = pytest.importorskip("prometheus_client.parser")
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert values["lmworks_gateway_requests_total", "200", "chat"] == 8
    assert values["lmworks_gateway_tokens_total", "chat", "completion"] == 40
    assert values["lmworks_gateway_backend_failures_total", "a", "status"] >= 1
    assert values["lmworks_gateway_refused_total", "invalid_api_key"] == 1
    assert values["lmworks_gateway_requests_in_flight",] == 0


def test_old_entries_of_the_log_are_removed(fake, gateway):
    live = gateway(fake())
    with live.client(live.key()) as client:
        ask(client)
        live.rows("SELECT 1")
        from lmworks.serving.gateway.store import Store

        store = Store(live.config.store)
        store.write(("UPDATE requests SET time_s = ?", (time.time() - 31 * 86400,)))
        store.remove_before(time.time() - 30 * 86400)
        assert store.rows("SELECT * FROM requests") == []
        store.close()
