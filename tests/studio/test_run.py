"""The Studio as its own process, and what stops it before it starts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from click.testing import CliRunner

from lmworks.cli.studio import command
from lmworks.core.errors import UserError
from lmworks.studio.pages import PAGES
from lmworks.studio.run import run


def test_it_says_where_it_is_and_ends_well(saved):
    arguments = [sys.executable, "-m", "lmworks.cli.main", "studio", f"mine={saved}"]
    process = subprocess.Popen(
        [*arguments, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        home, page, *others, end = (process.stdout.readline() for _ in range(len(PAGES) + 2))
        url = home.split()[-1]
        assert page.split() == ["tokenizers", f"{url}/tokenizers"] and "Ctrl-C" in end
        assert [line.split()[0] for line in others] == [*PAGES][1:]
        (loaded,) = httpx.get(url + "/api/tokenizers").json()["tokenizers"]
        assert (loaded["name"], loaded["kind"]) == ("mine", "byte-level BPE")
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(timeout=10) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


def test_a_port_in_use_is_told_before_anything_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is in use.*--port"):
            run(["/no/such/tokenizer"], port=port)


def test_a_bad_tokenizer_is_told():
    with pytest.raises(UserError, match="neither a file or folder here"):
        CliRunner().invoke(command, ["/no/such/tokenizer", "--port", "0"], catch_exceptions=False)
