from __future__ import annotations

import gc
import json
import subprocess
import sys

import pytest

from lmworks.core.errors import UserError
from lmworks.inference.chat import LocalChat, RemoteChat, RemoteError, ScriptedChat, load_chat
from lmworks.inference.sampling import InvalidParameter

MESSAGES = [{"role": "user", "content": "Hello there"}]


def test_complete_equals_the_joined_stream(engine):
    chat = LocalChat(engine, "tiny")
    whole = chat.complete(MESSAGES, temperature=0, max_tokens=30)
    deltas = list(chat.stream(MESSAGES, temperature=0, max_tokens=30))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert deltas[-1].finish_reason == whole.finish_reason
    assert deltas[-1].usage.completion_tokens == whole.completion_tokens
    assert whole.prompt_tokens == len(engine.tokenizer.encode_chat(MESSAGES))
    assert whole.logprobs is None
    scored = chat.complete(MESSAGES, temperature=0, max_tokens=30, logprobs=0)
    assert len(scored.logprobs) == whole.completion_tokens


def test_a_bad_setting_raises_before_the_first_piece(engine):
    for chat in (LocalChat(engine), ScriptedChat(["x"])):
        with pytest.raises(InvalidParameter, match="did you mean 'max_tokens'"):
            chat.stream(MESSAGES, max_token=3)


def test_a_dropped_stream_frees_its_slot(engine):
    stream = LocalChat(engine).stream(MESSAGES, logit_bias={0: -100, 2: -100})
    next(stream)
    del stream
    gc.collect()
    LocalChat(engine).complete(MESSAGES, max_tokens=2)  # one more turn of the engine
    assert engine.num_running == 0
    assert engine.statistics.finished["cancelled"] == 1


def test_raw_text(engine):
    chat = LocalChat(engine)
    whole = chat.complete_text("Once", temperature=0, max_tokens=8)
    assert whole.prompt_tokens == 4
    ids = engine.tokenizer.encode("Once")
    assert chat.complete_text(ids, temperature=0, max_tokens=8) == whole
    assert chat.complete_text("", max_tokens=1).prompt_tokens == 1  # what begins a document


@pytest.fixture
def base_chat(engine, monkeypatch):
    tokenizer = engine.tokenizer
    monkeypatch.setattr(tokenizer, "chat_template", None)
    return LocalChat(engine)


def test_a_base_model_gets_the_plain_template(base_chat, engine):
    answer = base_chat.complete(MESSAGES, temperature=0, max_tokens=8)
    prompt = "User: Hello there\n\nAssistant:"
    assert answer.prompt_tokens == len(engine.tokenizer.encode(prompt))
    raw = base_chat.complete_text(prompt, temperature=0, max_tokens=8)
    assert answer.text == raw.text.lstrip()
    with pytest.raises(UserError, match=r"messages\[0\]"):
        base_chat.complete([{"role": "user", "content": None}])


def test_scripted_answers_in_turn_and_counts_words():
    chat = ScriptedChat(["one two three", "four"])
    first = chat.complete(MESSAGES)
    assert (first.text, first.finish_reason) == ("one two three", "stop")
    assert (first.prompt_tokens, first.completion_tokens) == (2, 3)
    assert [chat.complete(MESSAGES).text for _ in range(2)] == ["four", "one two three"]
    chat = ScriptedChat(lambda messages: messages[-1]["content"] + " back")
    assert chat.complete(MESSAGES).text == "Hello there back"
    cut = chat.complete(MESSAGES, max_tokens=2)
    assert (cut.text, cut.finish_reason) == ("Hello there", "length")
    stopped = chat.complete(MESSAGES, stop=["re b"])
    assert (stopped.text, stopped.finish_reason) == ("Hello the", "stop")


def test_load_chat_reads_a_saved_model(tiny_model, tokenizer, tmp_path):
    from lmworks.models.save import save_model

    folder = tmp_path / "mine"
    save_model(tiny_model, folder, tokenizer=tokenizer)
    settings = {"eos_token_id": [0, 99]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    chat = load_chat(folder, max_batch=2, max_positions=100)
    assert isinstance(chat, LocalChat) and chat.name == "mine"
    assert chat.engine.eos_token_ids == {0, 2, 99}
    assert (chat.engine.max_batch, chat.engine.max_positions) == (2, 100)
    assert chat.complete(MESSAGES, max_tokens=4).prompt_tokens
    chat.close()
    (folder / "generation_config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(UserError, match="eos_token_id must be a token id"):
        load_chat(folder)


def test_load_chat_knows_endpoints_and_refuses_the_rest(tmp_path):
    chat = load_chat("http://127.0.0.1:9/v1#some/model")
    assert isinstance(chat, RemoteChat) and chat.name == "some/model"
    with pytest.raises(RemoteError, match="can't be reached"):
        chat.complete(MESSAGES)
    chat.close()
    with pytest.raises(UserError, match="did you mean 'smollm2-135m'"):
        load_chat("smollm2-135")
    with pytest.raises(UserError):
        load_chat(tmp_path)


def test_importing_chat_loads_nothing_heavy():
    code = (
        "import sys, lmworks.inference.chat, lmworks.inference.engine, lmworks.serving.run;"
        "heavy = {'torch', 'numba', 'httpx', 'fastapi', 'uvicorn', 'transformers', 'pydantic'};"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
