"""The Responses API through the official client: kept answers, events, the background."""

from __future__ import annotations

import json
import time

import openai
import pytest

from lmworks.inference.chat import ScriptedChat
from lmworks.serving.response_store import ResponseStore


@pytest.fixture(scope="module")
def seen():
    return []


@pytest.fixture(scope="module")
def answers(live_server, seen):
    def answer(messages):
        seen.append([dict(message) for message in messages])
        return f"answer to {messages[-1]['content']}"

    models = {"s": ScriptedChat(answer), "slow": ScriptedChat(["word " * 60], delay_s=0.02)}
    with (
        live_server(models, grace_s=2.0) as server,
        openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client,
    ):
        client.service = server.app.state.service
        yield client.responses


def test_a_whole_response(answers):
    response = answers.create(
        model="s", input="two words", instructions="Be.", metadata={"a": "b"}, temperature=0.5
    )
    assert response.status == "completed" and response.id.startswith("resp_")
    assert response.output_text == "answer to two words"
    assert (response.usage.input_tokens, response.usage.output_tokens) == (3, 4)
    assert (response.metadata, response.temperature, response.error) == ({"a": "b"}, 0.5, None)
    assert answers.retrieve(response.id).output_text == response.output_text
    assert [item.content for item in answers.input_items.list(response.id)] == ["two words"]
    answers.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        answers.retrieve(response.id)


def test_events_build_the_same_response(answers):
    events = list(answers.create(model="s", input="x", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == events[-1].response.output_text == "answer to x"
    assert answers.retrieve(events[-1].response.id).usage == events[-1].response.usage
    with answers.stream(model="s", input="x") as stream:
        assert stream.get_final_response().output_text == "answer to x"


def test_it_goes_on_from_an_earlier_one(answers, seen):
    first = answers.create(model="s", input="first", instructions="Only once.")
    parts = [{"type": "input_text", "text": "second"}]
    second = answers.create(
        model="s",
        input=[{"role": "user", "content": parts}],
        previous_response_id=first.id,
    )
    assert second.previous_response_id == first.id
    assert [message["content"] for message in seen[-1]] == ["first", "answer to first", "second"]
    third = answers.create(model="s", input="x", previous_response_id=second.id, store=False)
    assert len(seen[-1]) == 5
    for missing in (third.id, "resp_none"):
        with pytest.raises(openai.NotFoundError) as caught:
            answers.create(model="s", input="x", previous_response_id=missing)
        assert caught.value.param == "previous_response_id"


def test_an_answer_that_was_cut(answers):
    cut = answers.create(model="s", input="x", max_output_tokens=2)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    *_, last = answers.create(model="s", input="x", max_output_tokens=2, stream=True)
    assert (last.type, last.response.output[0].status) == ("response.incomplete", "incomplete")


def test_the_background_goes_on_alone(answers):
    response = answers.create(model="slow", input="x", background=True)
    assert response.status == "in_progress"
    deadline = time.monotonic() + 20
    while (now := answers.retrieve(response.id)).status == "in_progress":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert now.status == "completed" and now.output_text.count("word") == 60


def test_a_lost_background_stream_is_picked_up(answers):
    got = []
    with answers.create(model="slow", input="x", background=True, stream=True) as stream:
        for event in stream:
            got.append(event)
            if len(got) == 9:
                break
    name = got[0].response.id
    rest = answers.retrieve(name, stream=True, starting_after=got[-1].sequence_number)
    got += list(rest)
    assert [event.sequence_number for event in got] == list(range(len(got)))
    text = "".join(e.delta for e in got if e.type == "response.output_text.delta")
    assert text == got[-1].response.output_text == answers.retrieve(name).output_text


def test_a_background_answer_is_cancelled(answers):
    response = answers.create(model="slow", input="x", background=True)
    time.sleep(0.2)
    assert answers.cancel(response.id).status == "cancelled"
    assert answers.retrieve(response.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        answers.cancel(response.id)


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"truncation": "auto"}, "truncation"),
        ({"background": True, "store": False}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"top_logprobs": 99}, "top_logprobs"),
    ],
)
def test_bad_values_name_their_parameter(answers, settings, param):
    with pytest.raises(openai.BadRequestError) as caught:
        answers.create(**{"model": "s", "input": "x"} | settings)
    assert caught.value.param == param


def test_what_is_kept_survives_the_process_and_is_bounded_in_memory(tmp_path, monkeypatch):
    def response(i):
        return {"id": f"r{i}", "previous_response_id": f"r{i - 1}" if i else None, "output": [i]}

    path = tmp_path / "responses.db"
    store = ResponseStore(path)
    for i in range(3):
        store.save(response(i), [{"n": i}])
    store.close()
    assert ResponseStore(path).conversation("r2") == [{"n": 0}, 0, {"n": 1}, 1, {"n": 2}, 2]
    monkeypatch.setattr("lmworks.serving.response_store.MAX_IN_MEMORY", 2)
    memory = ResponseStore()
    for i in range(3):
        memory.save(response(i), [])
    assert memory.get("r2")["output"] == [2]
    with pytest.raises(Exception, match="no such response"):
        memory.get("r0")
    (tmp_path / "no.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(Exception, match="can't be used"):
        ResponseStore(tmp_path / "no.db")


def test_calls_come_and_their_results_go_back(live_server):
    seen = []

    def answer(messages):
        seen.append([dict(message) for message in messages])
        if messages[-1]["role"] == "tool":
            return "It is warm."
        return '<tool_call>{"name": "weather", "arguments": {"city": "Ulm"}}</tool_call>'

    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = {"type": "function", "name": "weather", "parameters": schema}
    with (
        live_server({"s": ScriptedChat(answer)}) as server,
        openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client,
    ):
        ask = {"model": "s", "tools": [tool], "tool_choice": "auto"}
        called = client.responses.create(input="x", **ask)
        (call,) = called.output
        assert (call.type, call.name, call.status) == ("function_call", "weather", "completed")
        assert json.loads(call.arguments) == {"city": "Ulm"}
        events = list(client.responses.create(input="x", stream=True, **ask))
        pieces = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
        assert "".join(pieces) == call.arguments
        assert events[-1].response.output[0].arguments == call.arguments
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "warm"}
        done = client.responses.create(input=[result], previous_response_id=called.id, **ask)
        assert done.output_text == "It is warm."
        assert [message["role"] for message in seen[-1]] == ["user", "assistant", "tool"]
        assert seen[-1][1]["tool_calls"][0]["id"] == call.call_id


def test_an_item_that_is_null_is_the_requests_fault(answers):
    with pytest.raises(openai.BadRequestError, match="input"):
        answers.create(model="s", input=[None])
