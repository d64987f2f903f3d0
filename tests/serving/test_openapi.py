"""The description is valid, and requests drawn from it, good and bad, find no 500."""

from __future__ import annotations

import json
import logging

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import just

from lmworks.inference.chat import ScriptedChat

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not here")


@pytest.fixture(scope="module")
def url(live_server):
    model = ScriptedChat(["one two three"])
    with live_server({"s": model, "a/b": model}, grace_s=0.2, max_body_bytes=100_000) as server:
        yield server.url


def test_it_describes_what_there_is(url):
    document = httpx.get(url + "/openapi.json").json()
    assert {"/v1/chat/completions", "/v1/responses", "/v1/messages"} <= set(document["paths"])
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    chat = document["components"]["schemas"][name]
    assert {"model", "messages"} <= set(chat["required"])
    kinds = chat["properties"]["temperature"]["anyOf"]
    assert {"type": "number", "minimum": 0, "maximum": 100} in kinds
    refs = set(json.dumps(document).split('"$ref": "#/components/schemas/')[1:])
    assert {ref.partition('"')[0] for ref in refs} <= set(document["components"]["schemas"])


def fuzz(url, examples, client):
    """Every operation, with `examples` requests that fit the description and as many that do not.

    Returns: the number of requests, and how many had a good answer.
    """
    from schemathesis import GenerationMode

    loaded = schemathesis.openapi.from_url(url + "/openapi.json")
    sent = good = 0

    def check(case, known):
        nonlocal sent, good
        if known and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "s"
        response = case.call(session=client, timeout=20)
        sent, good = sent + 1, good + (response.status_code == 200)
        assert response.status_code < 500, case.as_curl_command()
        if response.status_code >= 400:
            assert response.json()["error"]["message"], case.as_curl_command()

    quick = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    for operation in (result.ok() for result in loaded.get_all_operations()):
        can_be_wrong = len(operation.body) or len(operation.query)
        for mode in GenerationMode if can_be_wrong else (GenerationMode.POSITIVE,):
            cases = operation.as_strategy(generation_mode=mode)
            # The right name leads behind the first door.
            known = just(mode is GenerationMode.POSITIVE)
            quick(given(cases, known)(check))()
    return sent, good


@pytest.mark.parametrize("examples", [4, pytest.param(150, marks=pytest.mark.slow)])
def test_nothing_drawn_from_it_is_a_500(url, examples, caplog):
    import requests

    with requests.Session() as client, caplog.at_level(logging.ERROR, "lmworks.serving"):
        sent, good = fuzz(url, examples, client)
    print(f"{sent} requests, {good} answered well")
    assert not caplog.records
    assert sent >= 10 * examples and good >= examples
    assert httpx.get(url + "/health").status_code == 200
