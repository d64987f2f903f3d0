"""The parts by themselves: events, redaction, the audit chain, caches, schemas, prices, config."""

from __future__ import annotations

import hmac
import json
import time

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.errors import UserError
from lmworks.serving.errors import ApiError
from lmworks.serving.gateway import audit
from lmworks.serving.gateway.cache import (
    ExactCache,
    as_events,
    digest,
    may_cache,
    put_together,
)
from lmworks.serving.gateway.config import EXAMPLE, PriceConfig, check_config, load_config
from lmworks.serving.gateway.estimate import prompt_tokens
from lmworks.serving.gateway.keys import hash_secret, is_right, load_pepper, new_key, split_key
from lmworks.serving.gateway.limits import Limits, money, windows
from lmworks.serving.gateway.redaction import redact, redact_value
from lmworks.serving.gateway.relay import EventSplitter, begins_answer, has_usage, tokens_of
from lmworks.serving.gateway.semantic_cache import SemanticCache, marks
from lmworks.serving.gateway.store import Store
from lmworks.serving.gateway.structured import answer_check

PEPPER = b"0123456789abcdef"


# --- events ---


@given(
    st.lists(st.text("ab\u00e9{}:", min_size=1), max_size=8),
    st.sampled_from(["\n\n", "\r\n\r\n"]),
    st.data(),
)
def test_events_are_the_same_however_they_are_cut(texts, blank, data):
    stream = "".join(f"data: {text}{blank}" for text in texts).encode()
    splitter, events, at = EventSplitter(), [], 0
    while at < len(stream):
        step = data.draw(st.integers(1, len(stream) - at))
        events += splitter.feed(stream[at : at + step])
        at += step
    assert b"".join(events) == stream and len(events) == len(texts)
    assert splitter.rest == b""


def test_what_begins_an_answer():
    def event(choice):
        return b"data: " + json.dumps({"choices": [choice] if choice else []}).encode() + b"\n\n"

    assert not begins_answer(event({"delta": {"role": "assistant", "content": ""}}))
    assert not begins_answer(b": ping\n\n")
    assert not begins_answer(event(None))
    assert begins_answer(event({"delta": {"content": "x"}}))
    assert begins_answer(event({"delta": {"tool_calls": [{}]}}))
    assert begins_answer(event({"delta": {}, "finish_reason": "stop"}))
    for bad in (b"data: {\n\n", b"data: 5\n\n", b'data: {"error": {"message": "x"}}\n\n'):
        with pytest.raises(ValueError):
            begins_answer(bad)


def test_usage_in_all_its_forms():
    assert tokens_of({"usage": {"prompt_tokens": 3, "completion_tokens": 4}}) == (3, 4, 0)
    detailed = {"input_tokens": 9, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 5}}
    assert tokens_of({"usage": detailed}) == (9, 2, 5)
    assert tokens_of({"response": {"usage": detailed}}) == (9, 2, 5)
    assert tokens_of({"usage": {"total_tokens": 6}}) == (6, 0, 0)
    assert tokens_of({"usage": {"prompt_tokens": -3, "completion_tokens": "x"}}) == (0, 0, 0)
    assert tokens_of({"usage": None}) is None and tokens_of([]) is None
    assert has_usage(b'{"usage": {}}') and not has_usage(b'{"usage" : null}')


# --- redaction ---


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("write to Ann.Lee+x@mail.example.co.uk now", "write to [EMAIL] now"),
        ("key sk-proj-abcdefghij0123456789XYZ ok", "key [SECRET] ok"),
        ("AKIAIOSFODNN7EXAMPLE", "[SECRET]"),
        ("ghp_" + "a" * 36, "[SECRET]"),
        ("Authorization: Bearer abcdefghijklmnop1234", "Authorization: [SECRET]"),
        ("password = hunter2hunter", "[SECRET]"),
        ("pay 4111 1111 1111 1111 today", "pay [CARD] today"),
        ("order 4111 1111 1111 1112 today", "order 4111 1111 1111 1112 today"),  # no Luhn
        ("IBAN DE89 3704 0044 0532 0130 00.", "IBAN [IBAN]."),
        ("IBAN DE88 3704 0044 0532 0130 00.", "IBAN DE88 3704 0044 0532 0130 00."),
        ("call +49 30 1234567 or 555-123-4567", "call [PHONE] or [PHONE]"),
        ("call (555) 123-4567", "call [PHONE]"),
        ("ssn 078-05-1120", "ssn [US_SSN]"),
        ("host 192.168.0.17 up", "host [IP_ADDRESS] up"),
        (
            "version 1.2.3 of 2024-05-06 costs 12,345.67",
            "version 1.2.3 of 2024-05-06 costs 12,345.67",
        ),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0.SflKxwRJSMeKKF2QT4", "[JWT]"),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
            "[PRIVATE_KEY]",
        ),
    ],
)
def test_redaction(text, told):
    assert redact(text) == told


@given(st.text('a1@.-+ :="sk', max_size=400))
@settings(deadline=500)
def test_redaction_is_stable(text):
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "part",
    ["a", "1", "1 ", "a.", "@", "a@", "-", "+1", "password:", "A1", "-----BEGIN PRIVATE KEY-----"],
)
def test_no_text_makes_redaction_slow(part):
    started = time.perf_counter()
    redact(part * 50_000)
    assert time.perf_counter() - started < 5


def test_values_keep_their_shape():
    body = {
        "model": "a@b.example",
        "messages": [{"role": "user", "content": "a@b.example"}],
        "n": 1,
    }
    assert redact_value(body) == {
        "model": "a@b.example",
        "messages": [{"role": "user", "content": "[EMAIL]"}],
        "n": 1,
    }


# --- keys ---


def test_an_unknown_id_is_hashed_and_compared_like_a_known_one(monkeypatch):
    """A microsecond that no test over HTTP could see."""
    _, key = new_key(PEPPER, "alice")
    done: list[str] = []
    for name in ("digest", "compare_digest"):
        work = getattr(hmac, name)
        monkeypatch.setattr(hmac, name, lambda *a, n=name, w=work: (done.append(n), w(*a))[1])
    assert not is_right(PEPPER, key.id, "0" * 64, key)
    known, done[:] = list(done), []
    assert not is_right(PEPPER, "0" * 12, "0" * 64, None)
    assert done == known == ["digest", "compare_digest"]


def test_a_key_is_kept_as_a_hash_only(tmp_path):
    text, key = new_key(PEPPER, "alice")
    key_id, secret = split_key(text)
    assert len(secret) == 64 and secret.encode() not in key.hash and key_id == key.id
    assert is_right(PEPPER, key_id, secret, key)
    assert not is_right(b"another pepper!!", key_id, secret, key)
    other, second = new_key(PEPPER, "bob")
    assert not is_right(PEPPER, second.id, secret, second)
    # A hash that is put under another id is worth nothing.
    assert hash_secret(PEPPER, key_id, secret) != hash_secret(PEPPER, second.id, secret)
    assert other != text and "hash" not in key.plain()
    for name in ("", " x", "a\nb", "x" * 81):
        with pytest.raises(UserError):
            new_key(PEPPER, name)
    first = load_pepper("LMWORKS_NO_SUCH_VARIABLE", tmp_path / "g.db")
    assert first == load_pepper("LMWORKS_NO_SUCH_VARIABLE", tmp_path / "g.db")
    assert (tmp_path / "g.secret").stat().st_mode & 0o077 == 0


# --- the audit log ---


def _entries(count):
    entries, last = [], None
    for i in range(count):
        last = audit.next_entry(PEPPER, last, "me", "do", {"i": i})
        entries.append(last)
    return entries


def test_the_chain_shows_every_kind_of_change():
    import dataclasses

    entries = _entries(5)
    whole = audit.verify(PEPPER, entries)
    assert (whole.entries, whole.fault, whole.head) == (5, "", entries[-1].hash)
    assert audit.verify(PEPPER, [], "").fault == ""
    changed = [*entries]
    changed[2] = dataclasses.replace(entries[2], details={"i": 9})
    assert "entry 3 was changed" in audit.verify(PEPPER, changed).fault
    assert "entry 3 is missing" in audit.verify(PEPPER, entries[:2] + entries[3:]).fault
    assert audit.verify(PEPPER, [entries[1], entries[0], *entries[2:]]).fault
    assert "another secret" in audit.verify(b"x" * 16, entries).fault
    assert audit.verify(PEPPER, entries[:3]).fault == ""  # cut off at the end: only the head tells
    assert "cut off" in audit.verify(PEPPER, entries[:3], whole.head).fault
    assert audit.verify(PEPPER, entries, entries[2].hash).fault == ""
    forged = audit.next_entry(b"guessed pepper!!", entries[-1], "me", "do", {})
    assert audit.verify(PEPPER, [*entries, forged]).fault


def test_the_store_lets_nobody_change_the_audit_log(tmp_path):
    store = Store(tmp_path / "g.db")
    store.audit(PEPPER, "me", "do", {"a": "\u00e9"})
    store.audit(PEPPER, "me", "do more", {})
    for sql in ("UPDATE audit SET actor = 'x'", "DELETE FROM audit"):
        with pytest.raises(UserError, match="append-only"):
            store.write((sql, ()))
    assert audit.verify(PEPPER, store.audit_entries()).entries == 2
    store.close()


def test_a_store_that_is_something_else(tmp_path):
    (tmp_path / "g.db").write_text("not a database, but long enough to be read as one" * 20)
    with pytest.raises(UserError, match="can't be used"):
        Store(tmp_path / "g.db")


# --- limits ---


def test_windows_begin_and_end_where_they_should():
    limits = Limits(requests_per_day=1, tokens_per_month=2)
    leap = 1709164800 + 3600  # 2024-02-29 01:00 UTC
    day, month = windows("k", limits, leap)
    assert (day.name, day.ends_s) == ("k:requests:day:2024-02-29", 1709251200)
    assert (month.name, month.ends_s) == ("k:tokens:month:2024-02", 1709251200)
    december = windows("k", limits, 1735689599)  # a second before 2025
    assert [w.ends_s for w in december] == [1735689600, 1735689600]


@given(st.integers(0, 10**7), st.integers(0, 10**6), st.floats(0, 100), st.floats(0, 100))
def test_money_is_exact_to_a_billionth_and_never_rounded_down(prompt, completion, a, b):
    price = PriceConfig(input=a, output=b)
    exact = (prompt * a + completion * b) * 1000
    assert exact - 1 <= money(price, prompt, completion) <= exact + 1
    assert money(price, 1, 0) >= 0


def test_bad_limits():
    with pytest.raises(UserError, match="did you mean 'tokens_per_day'"):
        Limits.of({"tokens_per_dy": 5})
    with pytest.raises(UserError, match="from 0 upwards"):
        Limits.of({"tokens_per_day": -5})
    assert Limits.of({"tokens_per_day": 0}).tokens_per_day == 0


def test_prompts_are_estimated():
    assert prompt_tokens("/completions", {"prompt": "x" * 400}, 4.0) == 103
    assert prompt_tokens("/completions", {"prompt": [1, 2, 3]}, 4.0) == 6
    picture = [{"type": "image_url", "image_url": {"url": "data:" + "A" * 10**6}}]
    body = {"messages": [{"role": "user", "content": picture}]}
    assert 1000 < prompt_tokens("/chat/completions", body, 4.0) < 1020
    deep: list = []
    for _ in range(300):
        deep = [deep]
    with pytest.raises(ApiError, match="nested too deeply"):
        prompt_tokens("/chat/completions", {"messages": deep}, 4.0)


# --- caches ---

WHOLE = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "hello",
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}


def test_a_stream_and_a_whole_answer_are_the_same_answer():
    assert put_together(as_events(WHOLE, include_usage=True), chat=True) == WHOLE
    text = {
        **WHOLE,
        "object": "text_completion",
        "choices": [{"index": 0, "text": "hi", "logprobs": None, "finish_reason": "length"}],
    }
    assert put_together(as_events(text, include_usage=True), chat=False) == text
    events = as_events(WHOLE, include_usage=True)
    assert put_together(events[:1], chat=True) is None  # it did not end
    assert put_together([], chat=True) is None


def test_digests_tell_apart_all_that_matters():
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 0}
    same = {**body, "stream": True, "user": "me", "stream_options": {"include_usage": True}}
    assert digest("k", "/chat/completions", body) == digest("k", "/chat/completions", same)
    others = [
        digest("other", "/chat/completions", body),
        digest("k", "/completions", body),
        digest("k", "/chat/completions", {**body, "temperature": 0.1}),
        digest("k", "/chat/completions", {**body, "model": "n"}),
        digest("k", "/chat/completions", {**body, "tools": [1]}),
    ]
    assert len({digest("k", "/chat/completions", body), *others}) == 6
    assert may_cache("/chat/completions", body, "deterministic")
    assert not may_cache("/chat/completions", {"temperature": 0.7}, "deterministic")
    assert may_cache("/chat/completions", {"temperature": 0.7}, "always")
    assert not may_cache("/chat/completions", {"temperature": 0, "n": 2}, "always")


def test_a_cache_keeps_its_bounds():
    cache = ExactCache(max_bytes=1000, ttl_s=0.2)
    for i in range(50):
        cache.put(str(i), {"i": i, "x": "y" * 50})
        assert cache.num_bytes <= 1000
    assert cache.get("49") and cache.get("0") is None
    cache.put("big", {"x": "y" * 999})
    assert cache.get("big") is None
    time.sleep(0.25)
    assert cache.get("49") is None  # too old
    for i in range(50):
        cache.drop(str(i))
    assert cache.num_bytes == len(cache) == 0


def test_marks_tell_apart_what_vectors_do_not():
    assert marks("Convert 5 miles") != marks("Convert 6 miles")
    assert marks("Is it safe?") != marks("Is it not safe?") == marks("Isn't it safe?")
    assert marks("the capital of France") != marks("the capital of Spain")
    assert marks("How do I reset it?") == marks("How can I reset that?")
    assert marks('print "a"') != marks('print "b"')


def test_a_semantic_cache_stays_within_its_scope():
    import asyncio

    vectors = {"a": [1.0, 0.0], "b": [0.99, 0.141], "c": [0.0, 1.0]}
    cache = SemanticCache(lambda texts: np.array([vectors[t[-1]] for t in texts]), 0.95, 60)

    def body(text, **rest):
        return {"model": "m", "messages": [{"role": "user", "content": f"what is {text}"}], **rest}

    async def find(key, asked):
        return await cache.find(key, "/chat/completions", asked)

    first = asyncio.run(find("k", body("a")))
    assert first.found == ""
    cache.keep(first, "answer")
    assert asyncio.run(find("k", body("b"))).found == "answer"
    assert asyncio.run(find("k", body("c"))).found == ""
    assert asyncio.run(find("other", body("a"))).found == ""
    assert asyncio.run(find("k", body("a", tools=[1]))).found == ""
    assert asyncio.run(find("k", {"model": "m", "messages": []})) is None


# --- structured output ---


def _format(schema):
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}


def _said(text, reason="stop"):
    return {"choices": [{"message": {"content": text}, "finish_reason": reason}]}


def test_answers_are_held_against_the_schema():
    pytest.importorskip("jsonschema")
    schema = {"type": "object", "required": ["a"], "properties": {"a": {"pattern": "^x+$"}}}
    check = answer_check(_format(schema))
    check(_said('{"a": "xx"}'))
    check(_said('{"a": ', "length"))  # cut at the client's own limit
    for bad in ("{}", "no json", '{"a": "y"}', "[]"):
        with pytest.raises(ValueError):
            check(_said(bad))
    with pytest.raises(ApiError, match="response_format"):
        answer_check(_format({"type": "nothing"}))
    assert answer_check({}) is None
    with pytest.raises(ValueError):
        answer_check({"response_format": {"type": "json_object"}})(_said("[1]"))


def test_a_schema_reaches_nothing_and_takes_no_time():
    pytest.importorskip("jsonschema")
    check = answer_check(_format({"$ref": "http://127.0.0.1:1/schema.json"}))
    with pytest.raises(ApiError, match="can't be used"):
        check(_said("{}"))
    check = answer_check(_format({"pattern": "^(a+)+$"}))
    started = time.perf_counter()
    check(_said(json.dumps("a" * 5000 + "b")))  # what can't be told is let pass
    assert time.perf_counter() - started < 2


# --- the config ---


def test_the_example_is_in_order_and_its_values_are_the_defaults(tmp_path):
    import dataclasses

    from lmworks.serving.gateway.config import GatewayConfig

    path = tmp_path / "gateway.yaml"
    path.write_text(EXAMPLE.read_text())
    config = load_config(path)
    assert list(config.models) == ["chat"]
    given, plain = dataclasses.asdict(config.settings), dataclasses.asdict(GatewayConfig())
    for name in ("backends", "models", "defaults"):
        given.pop(name), plain.pop(name)
    assert given == plain


GOOD = {
    "backends": {"a": {"url": "http://x/v1"}},
    "models": {"m": {"routes": [{"backend": "a", "model": "m"}]}},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": {}}, "unknown key 'backend': did you mean 'backends'"),
        ({"backends": {"a": {"urll": "http://x"}}}, r"backends\.a: unknown key 'urll'"),
        ({"backends": {"a": {"url": "ftp://x"}}}, "write it as http"),
        ({"backends": {"a": {"url": "http://me:pw@x/v1"}}}, "holds no password"),
        ({"backends": {"a": {}}}, "either url or serve"),
        ({"backends": {"a b": {"url": "http://x"}}}, "is no name"),
        ({"backends": {"a": {"url": "http://x", "api_key_env": "NO_SUCH_KEY"}}}, "is not set"),
        ({"backends": {"a": {"url": "http://x", "idle_s": 0}}}, "idle_s"),
        ({"models": {"m": {"routes": []}}}, "routes is empty"),
        ({"models": {"m": {"routes": [{"backend": "b", "model": "m"}]}}}, "did you mean|known: a"),
        ({"models": {"m": {**GOOD["models"]["m"], "fallbacks": ["n"]}}}, "unknown model 'n'"),
        ({"models": {"m": {**GOOD["models"]["m"], "fallbacks": ["m"]}}}, "for itself"),
        ({"models": {"m": {**GOOD["models"]["m"], "price": {"input": -1}}}}, "price"),
        ({"defaults": {"tokens_per_da": 1}}, "did you mean 'tokens_per_day'"),
        ({"cache": {"threshold": 2}}, "threshold"),
        ({"redis": "localhost"}, "redis://"),
        ({"port": 70000}, "port 70000"),
        ({"retries": {"rounds": -1}}, "negative"),
    ],
)
def test_faults_in_a_config_are_named(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        check_config({**GOOD, **change}, tmp_path / "gateway.yaml")


def test_a_config_that_is_no_yaml(tmp_path):
    path = tmp_path / "gateway.yaml"
    for text, message in (("a: [", "not valid YAML at line"), ("5", "must hold settings")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load_config(path)
    with pytest.raises(UserError, match="gateway init"):
        load_config(tmp_path / "none.yaml")
    assert yaml.safe_load(EXAMPLE.read_text())
