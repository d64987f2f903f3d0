"""An endpoint that does not behave, over a mock transport."""

from __future__ import annotations

import httpx
import pytest

from lmworks.inference.chat import RemoteChat, RemoteError

MESSAGES = [{"role": "user", "content": "x"}]


@pytest.fixture
def remote(monkeypatch):
    monkeypatch.delenv("LMWORKS_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    chats = []

    def make(handler):
        chat = RemoteChat("http://api.example/v1", "m")
        headers = chat._client.headers
        chat.close()
        chat._client = httpx.Client(transport=httpx.MockTransport(handler), headers=headers)
        chats.append(chat)
        return chat

    yield make
    for chat in chats:
        chat.close()


def answering(status, text):
    return lambda request: httpx.Response(status, text=text)


@pytest.mark.parametrize(
    ("status", "text", "message"),
    [
        (401, '{"error": {"message": "bad\\nkey"}}', "status 401: bad key$"),
        (500, "<html>" + "x" * 999, r"status 500: <html>x+\.\.\.$"),
        (302, "", "status 302: no reason given"),
        (200, "hello", "other than JSON"),
        (200, "[1]", "not of OpenAI's form"),
        (200, '{"choices": [{"message": 3}]}', "not of OpenAI's form"),
        (200, '{"error": "overloaded"}', "overloaded"),
    ],
)
def test_every_fault_is_one_line(remote, status, text, message):
    chat = remote(answering(status, text))
    with pytest.raises(RemoteError, match=message) as caught:
        chat.complete(MESSAGES)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {\n\n", "not JSON"),
        ('data: {"error": {"message": "out of memory"}}\n\n', "out of memory"),
        ('data: {"choices": [{"delta": {"content": "a"}}]}\n\n', "in the middle of the answer"),
        ("", "in the middle of the answer"),
    ],
)
def test_a_broken_stream_is_told(remote, text, message):
    with pytest.raises(RemoteError, match=message):
        list(remote(answering(200, text)).stream(MESSAGES))


def test_a_stream_with_the_fields_that_servers_add(remote):
    text = (
        ": keep-alive\n\n"
        'data: {"choices": [{"delta": {"role": "assistant"}}], "x": 1}\n\n'
        'data: {"choices": [{"delta": {"content": "Hi"}, "finish_reason": null}]}\n\n'
        'data: {"choices": [{"delta": {}, "finish_reason": "content_filter"}]}\n\n'
        'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}\n\n'
        "data: [DONE]\n\n"
    )
    deltas = list(remote(answering(200, text)).stream(MESSAGES))
    assert [delta.text for delta in deltas] == ["", "Hi", ""]
    assert deltas[-1].finish_reason == "stop"
    assert deltas[-1].usage.prompt_tokens == 5


def test_only_what_was_given_is_sent(remote):
    import json

    seen = []

    def handler(request):
        seen.append((request, json.loads(request.content)))
        return httpx.Response(200, text='{"choices": [{"text": "x", "finish_reason": "length"}]}')

    chat = remote(handler)
    assert chat.complete_text("Once", max_tokens=3, stop="a").finish_reason == "length"
    request, body = seen[0]
    assert body == {"model": "m", "prompt": "Once", "max_tokens": 3, "stop": ["a"]}
    assert request.headers["authorization"] == "Bearer sk-very-secret"
    assert request.url == "http://api.example/v1/completions"


def test_the_only_model_is_taken_and_several_are_named(monkeypatch):
    listing = {"data": [{"id": "a"}, {"id": "b"}]}
    monkeypatch.setattr(RemoteChat, "_json", lambda self, *_: listing)
    with pytest.raises(Exception, match="name one of its models after a #: a, b"):
        RemoteChat("http://api.example/v1")
    listing["data"].pop()
    chat = RemoteChat("http://api.example/v1")
    assert chat.name == "a"
    chat.close()
