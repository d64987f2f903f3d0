"""The Anthropic Messages API: its shapes, its events, its errors."""

from __future__ import annotations

import json

import httpx
import pytest

from lmworks.inference.chat import ScriptedChat

ASK = {"model": "s", "max_tokens": 10, "messages": [{"role": "user", "content": "one two"}]}
PATH = "/v1/messages"


@pytest.fixture(scope="module")
def scripted(live_server):
    seen = []

    def answer(messages):
        seen.append([dict(message) for message in messages])
        return "three four five"

    with (
        live_server({"s": ScriptedChat(answer)}) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        client.seen = seen
        yield client


def events(response):
    for block in response.text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines())
        data = json.loads(lines["data"])
        assert data["type"] == lines["event"]
        yield data


def test_a_whole_message(scripted):
    answer = scripted.post(PATH, json=ASK | {"system": [{"type": "text", "text": "Be."}]}).json()
    assert answer["type"] == "message" and answer["id"].startswith("msg_")
    assert answer["content"] == [{"type": "text", "text": "three four five"}]
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("end_turn", None)
    assert (answer["usage"]["input_tokens"], answer["usage"]["output_tokens"]) == (3, 3)
    assert scripted.seen[-1] == [
        {"role": "system", "content": "Be."},
        {"role": "user", "content": "one two"},
    ]


def test_events_build_the_same_message(scripted):
    got = list(events(scripted.post(PATH, json=ASK | {"stream": True})))
    kinds = [event["type"] for event in got]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert got[0]["message"]["usage"]["input_tokens"] == 2  # before the first token
    text = "".join(e["delta"]["text"] for e in got if e["type"] == "content_block_delta")
    assert text == "three four five"
    assert got[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert got[-2]["usage"]["output_tokens"] == 3


def test_why_it_stopped(scripted):
    cut = scripted.post(PATH, json=ASK | {"max_tokens": 2}).json()
    assert cut["stop_reason"] == "max_tokens"
    stopped = scripted.post(PATH, json=ASK | {"stop_sequences": ["five", "nine"]}).json()
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "five")
    assert stopped["content"][0]["text"] == "three four "


def test_count_tokens(scripted):
    ask = {"model": "s", "messages": ASK["messages"], "system": "Be."}
    assert scripted.post(PATH + "/count_tokens", json=ask).json() == {"input_tokens": 3}


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"model": "t"}, "not_found_error", "does not exist"),
        ({"max_tokens": None}, "invalid_request_error", "max_tokens"),
        ({"max_tokens": -1}, "invalid_request_error", "max_tokens: must be"),
        ({"messages": []}, "invalid_request_error", "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "invalid_request_error", "last"),
        ({"temperature": "hot"}, "invalid_request_error", "temperature"),
        ({"stop_sequences": [""]}, "invalid_request_error", "stop_sequences"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "invalid_request_error",
            "messages[0].content",
        ),
        (
            {"tools": [{"type": "web_search_20250305", "name": "w", "input_schema": {}}]},
            "invalid_request_error",
            "tools[0].type",
        ),
    ],
)
def test_errors_have_its_shape(scripted, change, kind, says):
    response = scripted.post(PATH, json={**ASK, **change})
    body = response.json()
    assert body["type"] == "error" and body["error"]["type"] == kind
    assert says in body["error"]["message"]
    assert response.headers["x-request-id"]


def test_what_is_no_request_has_its_shape_too(scripted):
    for response in (scripted.post(PATH, content=b"{"), scripted.get(PATH)):
        assert response.json()["type"] == "error"
    assert scripted.get(PATH).status_code == 405


def test_the_official_client(scripted):
    anthropic = pytest.importorskip("anthropic")
    url = str(scripted.base_url)
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        message = client.messages.create(**ASK)
        assert message.content[0].text == "three four five"
        with client.messages.stream(**ASK) as stream:
            assert "".join(stream.text_stream) == "three four five"
            assert stream.get_final_message().usage.output_tokens == 3
        assert client.messages.count_tokens(model="s", messages=ASK["messages"]).input_tokens == 2
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(**ASK | {"model": "t"})


CALLS = (
    'One moment.<tool_call>{"name": "weather", "arguments": {"city": "Ulm"}}</tool_call>'
    '<tool_call>{"name": "weather", "arguments": {"city": "Rom"}}</tool_call>'
)
TOOL = {
    "name": "weather",
    "description": "Now.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
USES = [
    {"type": "text", "text": "One moment."},
    {"type": "tool_use", "name": "weather", "input": {"city": "Ulm"}},
    {"type": "tool_use", "name": "weather", "input": {"city": "Rom"}},
]


def test_calls_come_and_their_results_go_back(live_server):
    seen = []

    def answer(messages):
        seen.append([dict(message) for message in messages])
        return CALLS if len(messages) == 1 else "It is warm."

    with (
        live_server({"s": ScriptedChat(answer)}) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        ask = ASK | {"tools": [TOOL], "tool_choice": {"type": "auto"}, "max_tokens": 99}
        called = client.post(PATH, json=ask).json()
        assert called["stop_reason"] == "tool_use"
        ids = [block.pop("id") for block in called["content"][1:]]
        assert len(set(ids)) == 2 and called["content"] == USES
        blocks = {}
        for event in events(client.post(PATH, json=ask | {"stream": True})):
            if event["type"] == "content_block_start":
                blocks[event["index"]] = event["content_block"] | {"json": ""}
            if event["type"] == "content_block_delta":
                delta, block = event["delta"], blocks[event["index"]]
                block["text"] = block.get("text", "") + delta.get("text", "")
                block["json"] += delta.get("partial_json", "")
        assert [block["type"] for block in blocks.values()] == ["text", "tool_use", "tool_use"]
        assert blocks[0]["text"] == "One moment."
        assert [json.loads(blocks[i]["json"]) for i in (1, 2)] == [{"city": "Ulm"}, {"city": "Rom"}]
        content = [use | {"id": f"c{i}"} if i else use for i, use in enumerate(USES)]
        results = [
            {"type": "tool_result", "tool_use_id": "c1", "content": "warm"},
            {
                "type": "tool_result",
                "tool_use_id": "c2",
                "content": [{"type": "text", "text": "w"}],
            },
            {"type": "text", "text": "So?"},
        ]
        more = [{"role": "assistant", "content": content}, {"role": "user", "content": results}]
        done = client.post(PATH, json=ask | {"messages": [*ASK["messages"], *more]}).json()
        assert (done["content"][0]["text"], done["stop_reason"]) == ("It is warm.", "end_turn")
        roles = [message["role"] for message in seen[-1]]
        assert roles == ["user", "assistant", "tool", "tool", "user"]
        assert [call["id"] for call in seen[-1][1]["tool_calls"]] == ["c1", "c2"]
