"""Anthropic's API behind OpenAI's: the parts of a request and an answer, and over a real server."""

from __future__ import annotations

import json

import pytest
from tests.serving.gateway.live import ask

from lmworks.inference.scripted import ScriptedChat
from lmworks.serving.app import create_app
from lmworks.serving.errors import ApiError
from lmworks.serving.gateway.anthropic import Anthropic
from lmworks.serving.gateway.cache import put_together

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}


def asked(**body):
    path, made = Anthropic().ask("/chat/completions", {"model": "m", "messages": [], **body})
    assert path == "/messages"
    return made


def test_a_conversation_with_tools_and_pictures():
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    made = asked(
        messages=[
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "look"}, picture]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
            {"role": "user", "content": "and?"},
        ],
        tools=TOOLS,
        tool_choice="required",
        stop="end",
        temperature=1.7,
        user="me",
    )
    assert made["system"] == "be brief" and made["max_tokens"] == 4096
    assert [turn["role"] for turn in made["messages"]] == ["user", "assistant", "user"]
    source = made["messages"][0]["content"][1]["source"]
    assert source == {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    assert made["messages"][1]["content"][0]["input"] == {"x": 1}
    result, text = made["messages"][2]["content"]  # turns of one side are one message there
    assert result["tool_use_id"] == "c1" and result["content"][0]["text"] == "42"
    assert text == {"type": "text", "text": "and?"}
    assert made["tool_choice"] == {"type": "any"} and made["tools"][0]["name"] == "f"
    assert made["stop_sequences"] == ["end"] and made["temperature"] == 1.0
    assert "user" not in made and "tools" not in asked(tools=TOOLS, tool_choice="none")


@pytest.mark.parametrize(
    "settings",
    [
        {"logprobs": True},
        {"n": 2},
        {"logit_bias": {"1": 1}},
        {"response_format": {"type": "json_schema"}},
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        {"messages": ["x"]},
    ],
)
def test_what_can_not_be_asked_there_is_refused_by_name(settings):
    with pytest.raises(ApiError) as caught:
        asked(**settings)
    assert caught.value.status == 400 and caught.value.param == next(iter(settings))


def test_a_stream_with_a_tool_call_is_the_whole_answer():
    usage = {"input_tokens": 5, "cache_read_input_tokens": 2, "output_tokens": 1}
    call = {"type": "tool_use", "id": "c1", "name": "f"}
    said = [
        {"type": "message_start", "message": {"id": "m1", "model": "claude", "usage": usage}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "let me "}},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "see"}},
        {"type": "content_block_start", "index": 1, "content_block": call},
        {
            "type": "content_block_delta",
            "delta": {"type": "input_json_delta", "partial_json": '{"x"'},
        },
        {
            "type": "content_block_delta",
            "delta": {"type": "input_json_delta", "partial_json": ": 1}"},
        },
        {
            "type": "message_delta",
            "delta": {"stop_reason": "tool_use"},
            "usage": {"output_tokens": 9},
        },
        {"type": "message_stop"},
    ]
    translator, events = Anthropic().translator(), []
    for value in said:
        event = f"event: {value['type']}\ndata: {json.dumps(value)}\n\n".encode()
        events += translator.feed(event)
    streamed = put_together(events, chat=True)
    blocks = [{"type": "text", "text": "let me see"}, {**call, "input": {"x": 1}}]
    whole = Anthropic().whole(
        {
            "type": "message",
            "id": "m1",
            "model": "claude",
            "content": blocks,
            "stop_reason": "tool_use",
            "usage": {**usage, "output_tokens": 9},
        }
    )
    for answer in (streamed, whole):
        answer.pop("created")
    assert streamed == whole
    assert whole["usage"]["prompt_tokens"] == 7 and whole["usage"]["completion_tokens"] == 9
    assert whole["choices"][0]["message"]["tool_calls"] == [CALL]
    with pytest.raises(ValueError):
        Anthropic().whole({"type": "error"})


@pytest.mark.parametrize("stream", [False, True])
def test_over_a_server_that_speaks_it(gateway, fake, live_app, stream):
    """lmworks' own `/v1/messages`, written by other hands, on the other side."""
    with live_app(create_app({"fake": ScriptedChat(["one two three four"])})) as server:
        backends = [{"url": f"{server.url}/v1", "kind": "anthropic"}, {"url": fake().url}]
        routes = [{"backend": name, "model": "fake"} for name in "ab"]
        models = {"chat": {"strategy": "order", "routes": routes}}
        live = gateway(*backends, models=models)
        with live.client(live.key()) as client:
            answer = ask(client, stream=stream, max_tokens=3, user="me")
            assert answer.headers["x-lmworks-backend"] == "a"
            if stream:
                lines = [line[6:] for line in answer.text.splitlines() if line[6:7] == "{"]
                pieces = [json.loads(line)["choices"][0] for line in lines]
                text = "".join(piece["delta"].get("content") or "" for piece in pieces)
                reason = pieces[-1]["finish_reason"]
                assert answer.text.endswith("data: [DONE]\n\n")
            else:
                choice = answer.json()["choices"][0]
                text, reason = choice["message"]["content"], choice["finish_reason"]
            assert (text, reason) == ("one two three", "length")
            other = ask(client, stream=stream, n=2)  # what it can't do, the next route does
            assert other.headers["x-lmworks-backend"] == "b"
    (row,) = live.rows("SELECT * FROM usage WHERE backend = 'a'")
    assert row["completion_tokens"] == 3 and row["prompt_tokens"] > 0
