"""The hub, played by a small server on loopback; huggingface_hub reads its settings at import, so
every case runs in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "a" * 40
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"pickle",
    "run.py": b"raise SystemExit",
}
SCRIPT = """
import json, sys
from lmworks.core.errors import UserError
from lmworks.core import references
try:
    if sys.argv[2:]:
        references.aliases = lambda: {"tiny": {"sources": [sys.argv[1], sys.argv[2]]}}
        found = references.resolve("tiny")
    else:
        found = references.resolve(sys.argv[1])
    path = found.path
    names = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    print(json.dumps({"path": str(path), "names": names, "note": found.note}))
except UserError as error:
    print(json.dumps({"error": str(error)}))
"""


class FakeHub(BaseHTTPRequestHandler):
    """`org/tiny` with its files, `org/pickles` with one, `org/gated` for nobody."""

    asked: list[str]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.split("?")[0]
        self.asked.append(path)
        if path.startswith("/api/models/"):
            self._repository("/".join(path.split("/")[3:5]))
        elif "/resolve/" in path:
            self._file(path.rpartition("/")[2])
        else:
            self._send(404, b"", {})

    def _repository(self, name: str) -> None:
        files = {"org/tiny": list(FILES), "org/pickles": ["pytorch_model.bin"]}.get(name)
        if name == "org/gated":
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif name == "org/broken":
            self._send(418, b"{}", {})
        elif files is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        else:
            rows = [{"rfilename": file} for file in files]
            body = {"id": name, "modelId": name, "sha": COMMIT, "siblings": rows, "tags": []}
            if "/tree/" in self.path:
                body = [
                    {"type": "file", "path": f, "size": len(FILES[f]), "oid": "0" * 40}
                    for f in files
                ]
            self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str) -> None:
        content = FILES[name]
        etag = hashlib.sha256(content).hexdigest()
        self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture(scope="module")
def hub() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    handler = type("Handler", (FakeHub,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()
    thread.join()


def ask(endpoint: str, home: Path, *references: str, **more: str) -> dict:
    drop = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "HF_HUB_OFFLINE", "HF_TOKEN")
    env = {k: v for k, v in os.environ.items() if k not in drop}
    env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"} | more
    env["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *references],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answer: dict = json.loads(done.stdout)
    return answer


def closed_port() -> str:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_a_repository_comes_without_pickles_and_code(hub, tmp_path: Path) -> None:
    endpoint, asked = hub
    asked.clear()
    found = ask(endpoint, tmp_path, "hf:org/tiny")
    assert found["names"] == ["config.json", "model.safetensors"]
    assert (Path(found["path"]) / "model.safetensors").read_bytes() == b"weights"
    assert not any("pytorch_model" in path or "run.py" in path for path in asked)
    # Kept: with the hub gone, or told to stay offline, it is still there.
    assert ask(closed_port(), tmp_path, "hf:org/tiny")["path"] == found["path"]
    asked.clear()
    offline = ask(endpoint, tmp_path, "hf:org/tiny", HF_HUB_OFFLINE="1")
    assert offline["path"] == found["path"] and asked == []


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("hf:org/absent", "hf:org/absent: does not exist"),
        ("hf:org/gated", "hf:org/gated: does not exist, or needs a token"),
        ("hf:org/broken", "hf:org/broken: the hub answered 418"),
        ("hf:org/pickles", "hf:org/pickles: holds no safetensors"),
        ("hf:org/tiny--x..y", "hf:org/tiny--x..y: write it as"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub, tmp_path: Path, reference: str, said: str) -> None:
    answer = ask(hub[0], tmp_path, reference)
    assert answer["error"].startswith(said) and "\n" not in answer["error"]


def test_a_hub_out_of_reach_is_left_quickly_for_the_next_source(tmp_path: Path) -> None:
    here = tmp_path / "model"
    here.mkdir()
    started = time.monotonic()
    found = ask(closed_port(), tmp_path, "hf:org/tiny", str(here))
    assert time.monotonic() - started < 20
    assert found["path"] == str(here)
    assert "before it: hf:org/tiny: the hub is not reachable" in found["note"]


def test_an_endpoint_that_is_no_address_is_said(tmp_path: Path) -> None:
    answer = ask("http://localhost:notaport", tmp_path, "hf:org/tiny")
    assert "HF_ENDPOINT" in answer["error"]
