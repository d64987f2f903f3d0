"""The official client, unchanged, against a live server."""

from __future__ import annotations

import concurrent.futures
import random
import time

import openai
import pytest

QUESTION = [{"role": "user", "content": "What is it?"}]
NO_END = {"0": -100, "1": -100, "2": -100, "3": -100}


def ask(client, **settings):
    settings = {"model": "tiny", "messages": QUESTION, "max_tokens": 20} | settings
    return client.chat.completions.create(**settings)


def wait_until_idle(chat, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while chat.engine.num_running or chat.engine.num_waiting:
        assert time.monotonic() < deadline, "a slot is still taken"
        time.sleep(0.005)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/name")


def test_plain_with_exact_usage(client, chat):
    answer = ask(client, temperature=0, logit_bias=NO_END)
    expected = chat.complete(
        QUESTION, temperature=0, max_tokens=20, logit_bias={0: -100, 1: -100, 2: -100, 3: -100}
    )
    prompt_tokens = len(chat.engine.tokenizer.encode_chat(QUESTION))
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == prompt_tokens == expected.prompt_tokens
    assert answer.usage.completion_tokens == 20
    assert answer.usage.total_tokens == prompt_tokens + 20


def test_streamed_equals_plain(client):
    plain = ask(client, temperature=0)
    chunks = list(ask(client, temperature=0, stream=True))
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == plain.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == plain.choices[0].finish_reason
    assert len({c.id for c in chunks}) == 1
    assert all(c.usage is None for c in chunks)


def test_streamed_usage(client):
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}, seed=1))
    plain = ask(client, seed=1)
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    usages = [u.to_dict() for u in (chunks[-1].usage, plain.usage)]
    cached = [usage.pop("prompt_tokens_details")["cached_tokens"] for usage in usages]
    assert usages[0] == usages[1]
    assert cached[0] <= cached[1]  # the second one finds what the first one left
    assert cached[1] == usages[1]["prompt_tokens"] // 16 * 16


def test_stop(client):
    text = ask(client, temperature=0, max_tokens=40).choices[0].message.content
    stop = text[5:8]
    answer = ask(client, temperature=0, max_tokens=40, stop=[stop, "never there"])
    assert answer.choices[0].message.content == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    streamed = ask(client, temperature=0, max_tokens=40, stop=stop, stream=True)
    pieces = [c.choices[0].delta.content or "" for c in streamed]
    assert "".join(pieces) == text[: text.index(stop)]


def test_a_seed_gives_the_same_text(client):
    texts = [ask(client, seed=seed).choices[0].message.content for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_max_completion_tokens_is_the_newer_name(client):
    answer = ask(client, max_tokens=9, max_completion_tokens=3, logit_bias=NO_END)
    assert answer.usage.completion_tokens == 3


def test_several_choices(client):
    answer = ask(client, n=3, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert answer.choices[1].message.content == ask(client, seed=6).choices[0].message.content
    assert answer.usage.prompt_tokens == ask(client).usage.prompt_tokens  # read once, told once
    texts = ["", "", ""]
    for chunk in ask(client, n=3, seed=5, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in answer.choices]


def test_logprobs(client):
    answer = ask(client, logprobs=True, top_logprobs=3, max_tokens=4, logit_bias=NO_END)
    content = answer.choices[0].logprobs.content
    assert len(content) == 4
    assert all(len(entry.top_logprobs) == 3 and entry.logprob <= 0 for entry in content)
    chunks = list(ask(client, logprobs=True, max_tokens=4, logit_bias=NO_END, stream=True))
    streamed = [e for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert len(streamed) == 4


def test_text_completions(client, chat):
    kwargs = {"model": "tiny", "temperature": 0, "logit_bias": NO_END}
    answer = client.completions.create(prompt="Once", **kwargs)
    assert answer.usage.prompt_tokens == 4
    assert answer.usage.completion_tokens == 16  # the API's default
    ids = chat.engine.tokenizer.encode("Once")
    assert client.completions.create(prompt=ids, **kwargs).choices[0].text == answer.choices[0].text
    both = client.completions.create(prompt=["Once", "Twice"], **kwargs)
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[0].text == answer.choices[0].text
    assert both.usage.prompt_tokens == 9
    streamed = client.completions.create(prompt="Once", stream=True, **kwargs)
    assert "".join(c.choices[0].text for c in streamed) == answer.choices[0].text
    scored = client.completions.create(prompt="Once", logprobs=2, **kwargs)
    assert len(scored.choices[0].logprobs.token_logprobs) == 16


def test_a_wrong_model_names_the_known_ones(client):
    with pytest.raises(openai.NotFoundError, match="did you mean 'tiny'") as caught:
        ask(client, model="tinny")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_a_prompt(client, stream):
    long = [{"role": "user", "content": "x" * 500}]
    with pytest.raises(openai.BadRequestError, match="the context holds 192") as caught:
        ask(client, messages=long, stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="x" * 500)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"temperature": 200}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"top_p": 0}, "top_p"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": 3}, "stop"),
        ({"n": 0}, "n"),
        ({"n": 33}, "n"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"9999": 1}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [*QUESTION, {"role": "user", "content": 3}]}, "messages[1].content"),
        ({"messages": "hello"}, "messages"),
    ],
)
def test_bad_values_name_their_parameter(client, settings, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **settings)
    assert caught.value.param == param
    assert str(caught.value.body["message"]).startswith(param)


def test_content_in_parts_and_unknown_fields(client):
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "it?"}]
    messages = [{"role": "user", "content": parts}]
    answer = ask(client, messages=messages, seed=1, extra_body={"nobody_knows": {"x": 1}})
    assert answer.choices[0].message.content == ask(client, seed=1).choices[0].message.content
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, messages=picture)
    assert caught.value.param.startswith("messages[0].content")


def test_leaving_in_mid_stream_frees_the_slot(client, chat):
    stream = ask(client, stream=True, max_tokens=150, logit_bias=NO_END)
    next(stream)
    cancelled = chat.engine.statistics.finished["cancelled"]
    stream.close()
    wait_until_idle(chat)
    assert chat.engine.statistics.finished["cancelled"] == cancelled + 1


def test_leaving_a_plain_request_frees_the_slot(client, chat, monkeypatch):
    forward = chat.engine.model.forward

    def slow(*args, **kwargs):
        time.sleep(0.05)
        return forward(*args, **kwargs)

    monkeypatch.setattr(chat.engine.model, "forward", slow)
    cancelled = chat.engine.statistics.finished["cancelled"]
    with pytest.raises(openai.APITimeoutError):
        ask(client, max_tokens=150, logit_bias=NO_END, timeout=0.4)
    wait_until_idle(chat, timeout_s=2.0)
    assert chat.engine.statistics.finished["cancelled"] == cancelled + 1


def test_sixteen_at_once_with_random_lengths_and_cancels(client, chat):
    def one(i):
        generator = random.Random(i)
        messages = [{"role": "user", "content": "x" * generator.randrange(1, 90)}]
        length = generator.randrange(1, 60)
        settings = {"messages": messages, "max_tokens": length, "logit_bias": NO_END, "seed": i}
        if i % 4 == 3:
            return ask(client, **settings).usage.completion_tokens == length
        count = 0
        with ask(client, stream=True, **settings) as stream:
            for count, _ in enumerate(stream, 1):
                if i % 4 == 0 and count > 3:
                    return True
        return count >= 1

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(48)))
    wait_until_idle(chat)
    assert chat.engine._cache.lengths == [0] * 4


def test_a_full_queue_is_429(client, chat):
    def one(_):
        try:
            ask(client, max_tokens=100, logit_bias=NO_END)
        except openai.RateLimitError as error:
            return error
        return None

    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        errors = [error for error in pool.map(one, range(40)) if error]
    assert errors and errors[0].code == "queue_full"
    wait_until_idle(chat)


def test_the_best_of_several(client):
    many = ask(client, n=4, seed=5, logprobs=True, logit_bias=NO_END, max_tokens=6)

    def mean(choice):
        return sum(entry.logprob for entry in choice.logprobs.content) / 6

    best = sorted(many.choices, key=mean, reverse=True)
    settings = {"seed": 5, "logit_bias": NO_END, "max_tokens": 6, "extra_body": {"best_of": 4}}
    answer = ask(client, n=2, **settings)
    assert [c.message.content for c in answer.choices] == [c.message.content for c in best[:2]]
    assert answer.choices[0].logprobs is None
    assert answer.usage.completion_tokens == 24  # what was drawn, not what is shown
    assert answer.usage.prompt_tokens == ask(client).usage.prompt_tokens
    for wrong in ({"n": 5}, {"n": 1, "stream": True}):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, **settings, **wrong)
        assert caught.value.param == "best_of"


def test_a_prompt_is_echoed(client):
    settings = {"model": "tiny", "prompt": ["Once", "Twice"], "seed": 1}
    plain = client.completions.create(**settings)
    echoed = client.completions.create(echo=True, **settings)
    texts = [choice.text for choice in plain.choices]
    assert [choice.text for choice in echoed.choices] == ["Once" + texts[0], "Twice" + texts[1]]
    streamed = client.completions.create(echo=True, stream=True, **settings | {"prompt": "Once"})
    assert "".join(c.choices[0].text for c in streamed).startswith("Once")
    for wrong in ({"echo": True, "logprobs": 1}, {"suffix": "x"}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(**settings, **wrong)
        assert caught.value.param == next(iter(wrong))


def test_who_asks_and_how_urgently(client):
    answer = ask(
        client,
        user="somebody",
        metadata={"team": "a"},
        service_tier="priority",
        extra_headers={"X-Client": "team-a", "X-Priority": "-3"},
        extra_body={"priority": 7},
    )
    assert answer.choices
    for settings, param in [
        ({"extra_body": {"priority": 1000}}, "priority"),
        ({"metadata": {"k" * 65: "v"}}, "metadata"),
        ({"metadata": {str(i): "v" for i in range(17)}}, "metadata"),
    ]:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, **settings)
        assert caught.value.param == param
    with pytest.raises(openai.BadRequestError, match="X-Priority"):
        ask(client, extra_headers={"X-Priority": "high"})
