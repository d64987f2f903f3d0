"""What `test_other_clients.py` runs in a process of its own: `python other_clients.py NAME URL`.

These packages take seconds to import, and leave event loops and sockets open at the end.
"""

from __future__ import annotations

import json
import os
import sys

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Ulm", "Rom"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}


def langchain(url: str) -> None:
    """Plain, streamed with usage, log-probabilities, tools, the Responses API; and the rest."""
    import langchain_openai

    settings = {"base_url": url, "api_key": "none", "max_retries": 0}
    model = langchain_openai.ChatOpenAI(
        model="tiny", temperature=0, max_tokens=12, stream_usage=True, **settings
    )
    answer = model.invoke("What is it?")
    assert answer.content and answer.usage_metadata["output_tokens"] <= 12
    pieces = list(model.stream("What is it?"))
    assert "".join(piece.content for piece in pieces) == answer.content
    total = sum(p.usage_metadata["total_tokens"] for p in pieces if p.usage_metadata)
    assert total == answer.usage_metadata["total_tokens"]
    scored = model.bind(logprobs=True, top_logprobs=2).invoke("What is it?")
    assert len(scored.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2

    caller = langchain_openai.ChatOpenAI(model="calls", **settings).bind_tools([TOOL])
    (call,) = caller.invoke("x").tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Ulm"})

    over_responses = langchain_openai.ChatOpenAI(model="tiny", use_responses_api=True, **settings)
    answer = over_responses.bind(max_output_tokens=16).invoke("What is it?")
    assert answer.text and answer.usage_metadata["output_tokens"] <= 16
    langchain_schema(url)
    langchain_embeddings(url)


def langchain_schema(url: str) -> None:
    """An answer that is held to a schema."""
    import langchain_openai

    settings = {"base_url": url, "api_key": "none", "max_retries": 0}
    schema = {"title": "Place", "description": "Where.", **SCHEMA}
    model = langchain_openai.ChatOpenAI(model="tiny", max_tokens=60, seed=1, **settings)
    held = model.with_structured_output(schema, method="json_schema")
    assert held.invoke("Where?")["city"] in ("Ulm", "Rom")


def langchain_embeddings(url: str) -> None:
    """Vectors of texts."""
    import langchain_openai

    embeddings = langchain_openai.OpenAIEmbeddings(
        model="tiny",
        base_url=url,
        api_key="none",
        max_retries=0,
        check_embedding_ctx_length=False,  # it would count with OpenAI's own tokenizer
    )
    one, two = embeddings.embed_documents(["one", "two"])
    assert len(one) == len(two) > 1 and one != two
    again = embeddings.embed_query("one")
    assert max(abs(a - b) for a, b in zip(one, again, strict=True)) < 1e-5


def litellm(url: str) -> None:
    """Plain, streamed, tools, errors; and over the Anthropic API."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # its import asks GitHub for prices
    import litellm as client

    client.suppress_debug_info = True
    settings = {
        "model": "openai/tiny",
        "api_base": url,
        "api_key": "none",
        "messages": [{"role": "user", "content": "What is it?"}],
        "max_retries": 0,
        "max_tokens": 12,
        "temperature": 0,
    }
    answer = client.completion(**settings)
    text = answer.choices[0].message.content
    assert text and answer.usage.completion_tokens <= 12
    pieces = client.completion(stream=True, stream_options={"include_usage": True}, **settings)
    assert "".join(c.choices[0].delta.content or "" for c in pieces if c.choices) == text
    called = client.completion(**settings | {"model": "openai/calls", "tools": [TOOL]})
    function = called.choices[0].message.tool_calls[0].function
    assert (function.name, json.loads(function.arguments)) == ("weather", {"city": "Ulm"})
    for wrong, error in (
        ({"model": "openai/none"}, client.NotFoundError),
        ({"messages": [{"role": "user", "content": "x" * 500}]}, client.ContextWindowExceededError),
    ):
        try:
            client.completion(**settings | wrong)
        except error:
            continue
        raise AssertionError(f"{wrong} raised no {error}")
    over_messages = {"model": "anthropic/tiny", "api_base": url.removesuffix("/v1")}
    answer = client.completion(**settings | over_messages)
    assert answer.choices[0].message.content == text
    assert answer.usage.completion_tokens <= 12


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])
