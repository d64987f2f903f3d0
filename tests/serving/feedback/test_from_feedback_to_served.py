"""A real server: people correct its answers, a round learns that, and the server then says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from lmworks.cli.main import cli
from lmworks.models.model import Model
from lmworks.models.save import save_model
from lmworks.serving.conversations.store import ConversationStore
from lmworks.serving.guard import LOOPBACK_HOSTS
from lmworks.serving.model_pool import ModelPool
from lmworks.serving.model_specs import ModelSpec, PoolSpec

NUM_QUESTIONS = 40
ROUND = {
    "--epochs": "20",
    "--batch-size": "8",
    "--context-length": "96",
    "--threads": "1",
}


def invoked(*arguments: str) -> str:
    told = CliRunner().invoke(cli, arguments)
    assert told.exit_code == 0, told.output
    return told.output


def answer(web: httpx.Client, question: str) -> str:
    body = {
        "model": "assistant",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 12,
    }
    response = web.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    return str(response.json()["choices"][0]["message"]["content"])


@pytest.mark.slow
def test_corrections_are_learnt_and_served(
    tiny_model: Model, tokenizer: Any, live_app: Any, tmp_path: Path
) -> None:
    from lmworks.serving.app import create_app

    base, state, chats = tmp_path / "base", tmp_path / "state", tmp_path / "chats.db"
    save_model(tiny_model, base, tokenizer=tokenizer)
    # The server is given the link before there is anything behind it but the base.
    state.mkdir()
    pool = ModelPool(PoolSpec(models={"assistant": ModelSpec(model=str(state / "current"))}))
    first = [f"{flag}={value}" for flag, value in ROUND.items()]
    rate = ["--set", "loop.optimizer.learning_rate=1e-2", "--set", "loop.warmup_steps=0"]
    common = ["train", "continue", "--state", str(state), *first, *rate]
    taught = tmp_path / "taught.jsonl"
    taught.write_text(
        "".join(
            f'{{"messages": [{{"role": "user", "content": "{i}?"}}], "answer": "x", '
            f'"correction": "red"}}\n'
            for i in range(NUM_QUESTIONS)
        )
    )
    start = ["data", "feedback", "--conversations", str(taught), "--heldout-share", "0.3"]
    invoked(*start, "--out", str(tmp_path / "taught"))
    task = str(tmp_path / "taught" / "answers")
    invoked(*common, "--model", str(base), "--task", task, "--name", "first")
    store = ConversationStore(chats)
    app = create_app(pool, allowed_hosts=LOOPBACK_HOSTS, conversations=store)
    with live_app(app) as server, httpx.Client(base_url=server.url, timeout=60) as web:
        assert answer(web, "7?") == "red"
        for number in range(NUM_QUESTIONS):
            question = f"say {number}"
            said = answer(web, question)
            body = {
                "messages": [{"role": "user", "content": question}],
                "answer": said or "nothing",
                "rating": "down",
                "correction": "green",
                "model": "assistant",
            }
            web.post("/v1/feedback", json=body).raise_for_status()
        made = str(tmp_path / "feedback")
        command = ["data", "feedback", "--conversations", str(chats), "--heldout-share", "0.3"]
        invoked(*command, "--out", made)
        told = invoked(
            *common, "--task", made, "--name", "feedback",
            "--server", server.url, "--served-as", "assistant",
        )  # fmt: skip
        assert "promoted: " in told and "serves it as assistant" in told, told
        assert answer(web, "say 7") == "green"
        assert answer(web, "7?") == "red"  # what was learnt before is still there
        invoked(
            "train", "continue", "--state", str(state), "--serve-round", "1",
            "--server", server.url, "--served-as", "assistant",
        )  # fmt: skip
        assert answer(web, "say 7") != "green"
