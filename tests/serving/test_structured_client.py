"""The official client, unchanged: tools, forms of answers, and what it does with bad ones."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Literal

import httpx
import jsonschema
import openai
import pydantic
import pytest

from lmworks.inference.chat import RemoteChat
from lmworks.inference.engine import Engine
from lmworks.inference.local import LocalChat
from lmworks.inference.scripted import ScriptedChat
from lmworks.tokenizers.tokenizer import PipelineTokenizer

pytest.importorskip("llguidance")

ASK = [{"role": "user", "content": "What?"}]
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Ulm", "Rom"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
TOOLS = [TOOL, {"type": "function", "function": {"name": "time"}}]
NAMED = {"type": "function", "function": {"name": "weather"}}
CALLS = (
    'One moment.<tool_call>{"name": "weather", "arguments": {"city": "Ulm", "days": 2}}</tool_call>'
    '<tool_call>{"name": "tme", "arguments": {}}</tool_call>'
)


@pytest.fixture(scope="module")
def tooled(tiny_model, tokenizer) -> Iterator[LocalChat]:
    """The tiny model with a template that takes tools and says little."""
    template = "{{ tools is none }}{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    vocabulary = dataclasses.replace(tokenizer.vocabulary, chat_template=template)
    engine = Engine(tiny_model, PipelineTokenizer(vocabulary), max_batch=4)
    yield LocalChat(engine, "tooled")
    engine.close()


@pytest.fixture(scope="module")
def url(tooled, live_server) -> Iterator[str]:
    with live_server({"tooled": tooled, "scripted": ScriptedChat([CALLS])}) as server:
        yield server.url + "/v1"


@pytest.fixture
def client(url) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=20) as client:
        yield client


def ask(client, **settings):
    settings = {"model": "tooled", "messages": ASK, "max_tokens": 150} | settings
    return client.chat.completions.create(**settings)


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_that_is_demanded(client, choice):
    settings = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False, "seed": 1}
    answer = ask(client, **settings)
    [call] = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None
    assert call.type == "function" and call.function.name == "weather" and call.id
    jsonschema.validate(json.loads(call.function.arguments), WEATHER)
    chunks = list(ask(client, stream=True, **settings))
    pieces = [p for c in chunks for p in c.choices[0].delta.tool_calls or ()]
    assert [p.function.name for p in pieces if p.id] == ["weather"]
    assert len(pieces) > 3, "the arguments come as they are made"
    assert "".join(p.function.arguments or "" for p in pieces) == call.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_the_client_puts_streamed_calls_together(client):
    with client.chat.completions.stream(model="scripted", messages=ASK, tools=TOOLS) as stream:
        answer = stream.get_final_completion()
    message = answer.choices[0].message
    assert message.content == "One moment."
    assert [call.function.name for call in message.tool_calls] == ["weather", "tme"]
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Ulm", "days": 2}
    assert answer.choices[0].finish_reason == "tool_calls"


def test_a_call_of_an_unknown_tool_is_told(client):
    calls = ask(client, model="scripted", tools=TOOLS).choices[0].message.tool_calls
    assert "problem" not in calls[0].model_dump()
    assert "did you mean 'time'" in calls[1].model_dump()["problem"]


def test_calls_and_results_of_earlier_turns(client, tooled):
    call = ask(client, model="scripted", tools=TOOLS).choices[0].message
    result = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "Sunny."}
    answer = ask(client, messages=[*ASK, call, result], tools=TOOLS, max_tokens=1)
    text = tooled.engine.tokenizer.render_chat([*ASK, call.model_dump(exclude_none=True), result])
    assert answer.usage.prompt_tokens == len(tooled.engine.tokenizer.encode(text)) - len("True") + 5


class Place(pydantic.BaseModel):
    city: Literal["Ulm", "Rom"]
    old: bool
    rooms: list[Literal["big", "small"]] = pydantic.Field(max_length=3)


def test_the_parse_helper_gives_an_object(client):
    answer = client.chat.completions.parse(
        model="tooled", messages=ASK, response_format=Place, max_tokens=150, seed=2
    )
    assert isinstance(answer.choices[0].message.parsed, Place)
    assert answer.choices[0].finish_reason == "stop"


def test_the_parse_helper_with_a_strict_tool(client):
    tool = openai.pydantic_function_tool(Place)
    answer = client.chat.completions.parse(
        model="tooled",
        messages=ASK,
        tools=[tool],
        tool_choice="required",
        max_tokens=170,
        parallel_tool_calls=False,
        seed=3,  # some answers of a random model take more than there is room for
    )
    [call] = answer.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, Place)


def test_a_form_streamed_with_log_probabilities(client):
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": WEATHER, "strict": True}}
    settings = {"response_format": form, "seed": 4, "logprobs": True, "top_logprobs": 2}
    chunks = list(ask(client, stream=True, **settings))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    jsonschema.validate(json.loads(text), WEATHER)
    told = [e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert "".join(entry.token for entry in told) == text
    assert all(entry.logprob <= 0 and len(entry.top_logprobs) == 2 for entry in told)


def test_several_choices_each_in_the_form(client):
    answer = ask(
        client,
        n=4,
        response_format={"type": "json_schema", "json_schema": {"name": "w", "schema": WEATHER}},
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for choice in answer.choices:
        jsonschema.validate(json.loads(choice.message.content), WEATHER)


def test_grammars_in_the_completions_too(client):
    form = {"type": "grammar", "grammar": {"syntax": "regex", "definition": "[0-9]{4}-[0-9]{2}"}}
    answer = client.completions.create(
        model="tooled", prompt="On ", max_tokens=20, extra_body={"response_format": form}
    )
    assert len(answer.choices[0].text) == 7 and answer.choices[0].finish_reason == "stop"


def form_of(schema):
    value = {"name": "x", "schema": schema, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": value}}


NESTED = {"type": "string"}
for _ in range(200):
    NESTED = {"type": "array", "items": NESTED}


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        (form_of({"type": "integer", "minimum": 3, "maximum": 2}), "response_format"),
        (form_of({"type": "nothing"}), "response_format"),
        (form_of({"type": "string", "pattern": "("}), "response_format"),
        (form_of({"$ref": "#"}), "response_format"),
        (form_of(NESTED), "response_format"),
        (form_of({"enum": ["x" * 300_000]}), "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": "json"}, "response_format"),
        ({"tools": "x"}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
        ),
        ({"extra_body": {"repetition_penalty": 0}}, "repetition_penalty"),
        ({"extra_body": {"typical_p": 1.5}}, "typical_p"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "assistant"}]}, "messages[0]"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": "x",
                        "tool_calls": [
                            {
                                "id": "1",
                                "type": "function",
                                "function": {"name": "a", "arguments": "{}"},
                            }
                        ],
                    }
                ]
            },
            "messages[0]",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": 1}]}]},
            "messages[0].tool_calls[0].id",
        ),
    ],
)
def test_bad_requests_are_refused_before_anything_is_made(client, tooled, settings, param):
    before = tooled.engine.statistics.completion_tokens
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **settings)
    assert caught.value.param == param
    assert "\n" not in caught.value.body["message"]
    assert tooled.engine.statistics.completion_tokens == before


def test_all_of_it_through_a_remote_chat(url, tooled):
    remote = RemoteChat(url, "tooled")
    settings = {"tools": TOOLS, "tool_choice": NAMED, "temperature": 0.0, "max_tokens": 150}
    mine, theirs = tooled.complete(ASK, **settings), remote.complete(ASK, **settings)
    assert [(c.name, c.arguments) for c in theirs.tool_calls] == [
        (c.name, c.arguments) for c in mine.tool_calls
    ]
    assert theirs.finish_reason == "tool_calls"
    deltas = list(remote.stream(ASK, **settings))
    assert (
        "".join(p.arguments for d in deltas for p in d.tool_calls) == mine.tool_calls[0].arguments
    )
    assert deltas[-1].finish_reason == "tool_calls" and deltas[-1].usage
    form = form_of(WEATHER)["response_format"]
    text = remote.complete(ASK, response_format=form, max_tokens=100).text
    jsonschema.validate(json.loads(text), WEATHER)
    remote.close()


@pytest.mark.parametrize("body", ['{"name": "\\ud800"}', '{"x": NaN}', "[" * 900 + "]" * 900])
def test_what_no_client_would_send(url, body):
    tools = f'[{{"type": "function", "function": {body}}}]'
    messages = json.dumps(ASK)
    content = f'{{"model": "tooled", "messages": {messages}, "tools": {tools}}}'
    response = httpx.post(url + "/chat/completions", content=content)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("tools")
