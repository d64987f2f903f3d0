"""LangChain's and LiteLLM's clients, unchanged, against a live server."""

from __future__ import annotations

import json
import os

import pytest

from lmworks.inference.scripted import ScriptedChat

# What litellm's own code makes pydantic say.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Items? .*ReadOnly.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_:DeprecationWarning"),
]
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Ulm"}}</tool_call>'
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Ulm", "Rom"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
NO_END = {"0": -100, "1": -100, "2": -100, "3": -100}


@pytest.fixture(scope="module")
def url(chat, live_server):
    with live_server({"tiny": chat, "calls": ScriptedChat([CALL])}) as server:
        yield server.url + "/v1"


@pytest.fixture(scope="module")
def langchain():
    return pytest.importorskip("langchain_openai", reason="langchain-openai is not here")


@pytest.fixture(scope="module")
def litellm():
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # its import asks GitHub for prices
    module = pytest.importorskip("litellm", reason="litellm is not here")
    module.suppress_debug_info = True
    return module


def test_langchain_talks(langchain, url):
    model = langchain.ChatOpenAI(
        base_url=url,
        api_key="none",
        model="tiny",
        max_retries=0,
        temperature=0,
        max_tokens=12,
        stream_usage=True,
    )
    answer = model.invoke("What is it?")
    assert answer.content and answer.usage_metadata["output_tokens"] <= 12
    pieces = list(model.stream("What is it?"))
    assert "".join(piece.content for piece in pieces) == answer.content
    total = sum(p.usage_metadata["total_tokens"] for p in pieces if p.usage_metadata)
    assert total == answer.usage_metadata["total_tokens"]
    scored = model.bind(logprobs=True, top_logprobs=2).invoke("What is it?")
    assert len(scored.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2


def test_langchain_calls_tools_and_holds_to_a_schema(langchain, url):
    settings = {"base_url": url, "api_key": "none", "max_retries": 0}
    caller = langchain.ChatOpenAI(model="calls", **settings).bind_tools([TOOL])
    (call,) = caller.invoke("x").tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Ulm"})
    pytest.importorskip("llguidance")
    schema = {"title": "Place", "description": "Where.", **SCHEMA}
    model = langchain.ChatOpenAI(model="tiny", max_tokens=60, seed=1, **settings)
    held = model.with_structured_output(schema, method="json_schema")
    assert held.invoke("Where?")["city"] in ("Ulm", "Rom")


def test_langchain_over_responses(langchain, url):
    model = langchain.ChatOpenAI(
        base_url=url, api_key="none", model="tiny", max_retries=0, use_responses_api=True
    )
    answer = model.bind(max_output_tokens=16, extra_body={"seed": 1}).invoke("What is it?")
    assert answer.text and answer.usage_metadata["output_tokens"] <= 16


def test_litellm_talks(litellm, url):
    settings = {
        "model": "openai/tiny",
        "api_base": url,
        "api_key": "none",
        "messages": [{"role": "user", "content": "What is it?"}],
        "max_retries": 0,
        "max_tokens": 12,
        "temperature": 0,
    }
    answer = litellm.completion(**settings)
    text = answer.choices[0].message.content
    assert text and answer.usage.completion_tokens <= 12
    pieces = litellm.completion(stream=True, stream_options={"include_usage": True}, **settings)
    chunks = list(pieces)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    called = litellm.completion(**settings | {"model": "openai/calls", "tools": [TOOL]})
    function = called.choices[0].message.tool_calls[0].function
    assert (function.name, json.loads(function.arguments)) == ("weather", {"city": "Ulm"})
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**settings | {"model": "openai/none"})
    with pytest.raises(litellm.ContextWindowExceededError):
        long = [{"role": "user", "content": "x" * 500}]
        litellm.completion(**settings | {"messages": long})


def test_litellm_over_messages(litellm, url):
    answer = litellm.completion(
        model="anthropic/tiny",
        api_base=url.removesuffix("/v1"),
        api_key="none",
        messages=[{"role": "user", "content": "What is it?"}],
        max_tokens=12,
        num_retries=0,
    )
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens <= 12
