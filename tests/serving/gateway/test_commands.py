"""`lmworks gateway` as people type it, and a model that the gateway starts itself."""

from __future__ import annotations

import json
import sqlite3

import httpx
import pytest
import yaml
from tests.serving.gateway.live import ask

from lmworks.cli.main import main
from lmworks.serving.gateway.children import started_children
from lmworks.serving.gateway.config import check_config, load_config


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["gateway", "init"]) == 0
    return tmp_path


def run(capsys, *arguments, status=0):
    capsys.readouterr()
    assert main(["gateway", *arguments]) == status
    said = capsys.readouterr()
    return said.out.strip() if status == 0 else said.err.strip()


def test_from_an_empty_folder(folder, capsys):
    assert "is there already" in run(capsys, "init", status=2)
    assert "gateway.yaml is in order" in run(capsys, "check")
    key = run(capsys, "keys", "create", "alice", "--tokens-per-day", "500", "--model", "chat")
    assert key.startswith("lmw_")
    listed = run(capsys, "keys", "list")
    assert "alice" in listed and "tokens per day 500" in listed and key not in listed
    rotated = run(capsys, "keys", "rotate", "alice")
    assert rotated != key and rotated.split("_")[1] == key.split("_")[1]
    run(
        capsys,
        "keys",
        "change",
        "alice",
        "--budget-per-month",
        "2.5",
        "--unlimited",
        "tokens-per-day",
    )
    (told,) = json.loads(run(capsys, "keys", "list", "--json"))
    assert told["limits"] == {"budget_per_month": 2.5} and told["models"] == ["chat"]
    run(capsys, "keys", "revoke", "alice")
    assert "revoked" in run(capsys, "keys", "list")
    assert "nothing was used" in run(capsys, "usage")
    assert run(capsys, "log") == ""
    verdict = run(capsys, "audit", "verify")
    assert verdict.startswith("4 entries, none changed; head ")
    head = verdict.split()[-1]
    assert "rotate key" in run(capsys, "audit", "list")
    assert run(capsys, "audit", "verify", "--head", head).startswith("4 entries")
    # Who can write to the file and takes the triggers off still can't hide it.
    with sqlite3.connect(folder / "gateway.db") as database:
        database.executescript("DROP TRIGGER audit_keeps; DROP TRIGGER audit_stays;")
        database.execute("UPDATE audit SET actor = 'nobody' WHERE number = 2")
    database.close()
    assert "entry 2 was changed" in run(capsys, "audit", "verify", status=2)
    with sqlite3.connect(folder / "gateway.db") as database:
        database.execute("DROP TRIGGER audit_stays")  # opening the store puts it back
        database.execute("DELETE FROM audit WHERE number > 1")
    database.close()
    assert run(capsys, "audit", "verify").startswith("1 entries")
    assert "cut off" in run(capsys, "audit", "verify", "--head", head, status=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["keys", "revoke", "nobody"], "unknown key 'nobody'"),
        (["keys", "create", ""], "1 to 80 printable characters"),
        (["keys", "create", "x", "--model", "chatt"], "did you mean 'chat'"),
        (["keys", "create", "x", "--tokens-per-day", "-5"], "from 0 upwards"),
        (["keys", "create", "x", "--days", "-1"], "for how many days"),
        (["usage", "--by", "keys"], "did you mean 'key'"),
        (["serve", "none.yaml"], "gateway init none.yaml"),
        (["check", "--ask"], "local: "),  # nobody listens there
    ],
)
def test_mistakes_are_one_line(folder, capsys, arguments, message):
    said = run(capsys, *arguments, status=2)
    assert message in said and len(said.splitlines()) == 1


def test_usage_and_log_of_a_running_gateway(fake, gateway, capsys):
    live = gateway(fake())
    with live.client(live.key()) as client:
        for _ in range(3):
            ask(client)
        ask(client, model="nope")
    path = live.config.path
    values = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**values, "secret_env": "LMWORKS_TEST_SECRET"}))
    config = ["--config", str(path)]
    (row,) = json.loads(run(capsys, "usage", "--json", *config))
    assert row == {
        "key": "alice",
        "model": "chat",
        "requests": 3,
        "errors": 0,
        "cache_hits": 0,
        "prompt_tokens": 21,
        "completion_tokens": 15,
        "cost": 0.000051,
    }
    table = run(capsys, "usage", "--by", "day,backend", *config).splitlines()
    assert table[0].split()[:3] == ["day", "backend", "requests"] and table[1].split()[2] == "3"
    assert run(capsys, "log", *config).count("chat <- a") == 3
    assert json.loads(run(capsys, "log", "--json", "--limit", "1", *config))["status"] == 200


def test_check_asks_the_back_ends(fake, tmp_path, capsys):
    back = fake()
    values = {
        "backends": {"a": {"url": back.url}},
        "models": {"chat": {"routes": [{"backend": "a", "model": "fake"}]}},
    }
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump(values))
    assert "in order" in run(capsys, "check", "--ask", str(path))
    values["models"]["chat"]["routes"][0]["model"] = "other"
    path.write_text(yaml.safe_dump(values))
    assert "has no other; known: fake" in run(capsys, "check", "--ask", str(path), status=2)
    assert load_config(path).models


@pytest.mark.weights
@pytest.mark.slow
def test_a_model_that_the_gateway_starts(tmp_path):
    values = {
        "backends": {"own": {"serve": "smollm2-135m"}},
        "models": {"chat": {"routes": [{"backend": "own", "model": "small"}]}},
    }
    with started_children(check_config(values, tmp_path / "gateway.yaml")) as config:
        url = config.backends["own"].url
        body = {"model": "small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        answer = httpx.post(f"{url}/chat/completions", json=body, timeout=60).json()
        assert answer["usage"]["completion_tokens"] <= 3
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/models")
