"""LangChain's and LiteLLM's clients, unchanged, against a live server."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from lmworks.inference.scripted import ScriptedChat

SCRIPT = Path(__file__).with_name("other_clients.py")
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Ulm"}}</tool_call>'


@pytest.fixture(scope="module")
def url(chat, live_server):
    with live_server({"tiny": chat, "calls": ScriptedChat([CALL])}) as server:
        yield server.url + "/v1"


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("langchain", ["langchain_openai", "llguidance"]),
        ("litellm", ["litellm"]),
    ],
)
def test_a_client_works_unchanged(url, name, needs):
    for package in needs:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not here")
    command = [sys.executable, str(SCRIPT), name, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
