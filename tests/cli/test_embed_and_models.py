"""`lmworks embed` over files, and `lmworks models` against a running server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np
import pytest
import torch

import lmworks
from lmworks.cli.main import main
from lmworks.cli.served_models import model_options, pool_of
from lmworks.core.errors import UserError
from lmworks.core.quantities import parse_bytes, parse_seconds, shown_bytes
from lmworks.models.config import AttentionConfig, MLPConfig, ModelConfig
from lmworks.models.model import Model
from lmworks.models.save import save_model
from lmworks.serving.app import create_app
from lmworks.serving.model_pool import ModelPool
from lmworks.tokenizers.train import train_bpe

TEXTS = ["one text", "ß", "a longer text than these"]


def pool_from(*arguments: str) -> ModelPool:
    """The pool that `lmworks serve` makes of its arguments."""
    found: list[ModelPool] = []

    @click.command()
    @click.argument("references", nargs=-1)
    @model_options
    def command(preload: bool | None, **given: Any) -> None:
        found.append(pool_of(**given))

    command.main(list(arguments), standalone_mode=False)
    return found[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ModelConfig.uniform(
        vocab_size=260,
        hidden_size=32,
        num_hidden_layers=1,
        mixer=AttentionConfig(num_attention_heads=4, num_key_value_heads=2, head_dim=8),
        feed_forward=MLPConfig(intermediate_size=48),
        max_position_embeddings=64,
    )
    folder = tmp_path_factory.mktemp("model") / "tiny"
    model = Model(config)
    model.reset_parameters(torch.Generator().manual_seed(0))
    save_model(model, folder, tokenizer=train_bpe(["no merge"], vocab_size=260))
    return folder


@pytest.fixture(scope="module")
def vectors(model: Path) -> np.ndarray:
    return lmworks.load_embedder(model).encode(TEXTS)


def test_lines_become_rows_of_an_array(model, vectors, tmp_path, capsys):
    file, out = tmp_path / "texts.txt", tmp_path / "vectors.npy"
    file.write_text("\n\n".join(TEXTS) + "\n", encoding="utf-8")
    assert main(["embed", str(model), str(file), "--out", str(out)]) == 0
    np.testing.assert_allclose(np.load(out), vectors, atol=1e-6)
    assert "3 x 32 float32" in capsys.readouterr().out
    assert main(["embed", str(model), str(file), "--out", str(out), "--dimensions", "8"]) == 0
    assert np.load(out).shape == (3, 8)
    assert main(["embed", str(model), str(file), "--whole", "--out", str(out)]) == 0
    assert np.load(out).shape == (1, 32)


def test_json_lines_in_and_out(model, vectors, tmp_path, capsys):
    file, out = tmp_path / "texts.jsonl", tmp_path / "vectors.jsonl"
    file.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    arguments = ["embed", str(model), str(file), "--field", "body"]
    assert main([*arguments, "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    np.testing.assert_allclose([row["embedding"] for row in rows], vectors, atol=1e-6)
    capsys.readouterr()
    assert main(arguments) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        ('{"text": "a"}\n{"txt": "b"}\n', [], "line 2: no text in 'text'"),
        ("{\n", [], "line 1: no JSON"),
        ('{"text": "' + "x" * 100 + '"}\n', ["--refuse-long"], "input 0 has 100 tokens"),
        ('{"text": "a"}\n', ["--dimensions", "33"], "dimensions must be from 1"),
        ('{"text": "a"}\n', ["--prompt", "query"], "unknown prompt"),
        ('{"text": "a"}\n', ["--out", "x.csv"], "name it .npy or .jsonl"),
    ],
)
def test_bad_input_is_one_line(model, tmp_path, capsys, content, arguments, words):
    file, out = tmp_path / "texts.jsonl", tmp_path / "vectors.npy"
    file.write_text(content)
    where = [] if "--out" in arguments else ["--out", str(out)]
    assert main(["embed", str(model), str(file), *where, *arguments]) == 2
    told = capsys.readouterr().err
    assert words in told and len(told.strip().splitlines()) == 1
    assert not out.exists()


def test_models_of_a_running_server(model, live_app, capsys, monkeypatch):
    pool = pool_from(f"a={model}", f"b={model}", "--memory-budget", "1GB", "--pin", "b")
    with live_app(create_app(pool)) as server:
        where = ["--server", server.url]
        assert main(["models", "list", *where]) == 0
        table = capsys.readouterr().out
        assert [line.split()[0] for line in table.splitlines()] == ["NAME", "a", "b"]
        assert main(["models", "load", "a", *where]) == 0
        assert "ready" in capsys.readouterr().out
        assert main(["models", "list", "--json", *where]) == 0
        models = {each["id"]: each for each in json.loads(capsys.readouterr().out)}
        assert models["a"]["state"] == "ready" and models["b"]["pinned"]
        metrics = httpx.get(server.url + "/metrics").text
        assert 'lmworks_model_loads_total{model="a"} 1' in metrics
        assert f'lmworks_model_bytes{{model="a"}} {models["a"]["bytes"]}' in metrics
        assert 'lmworks_model_bytes{model="b"} 0' in metrics
        assert main(["models", "unload", "a", *where]) == 0
        assert "unloaded" in capsys.readouterr().out
        assert main(["models", "load", "aa", *where]) == 2
        assert "did you mean 'a'" in capsys.readouterr().err
    pool.close()
    assert main(["models", "list", *where]) == 2
    assert "no server answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no model"),
        (["a=m", "--memory-budget", "0"], "above zero"),
        (["a=m", "--memory-budget", "lots"], "write it as 8GB"),
        (["a=m", "--keep-alive", "a while"], "write it as 30s"),
        (["a=m", "--pin", "c"], "unknown model 'c'"),
        (["--models", "nowhere.yaml"], "is not there"),
        (["x=a", "x=b"], "two models are called 'x'"),
    ],
)
def test_what_does_not_fit_together_is_one_line(arguments, words):
    with pytest.raises(UserError, match=words):
        pool_from(*arguments)


def test_sizes_and_times():
    assert parse_bytes("1.5GB", "x") == 1_500_000_000 and parse_bytes("2GiB", "x") == 2 << 30
    assert parse_bytes("800 mb", "x") == 800_000_000 and parse_bytes("12", "x") == 12
    assert parse_seconds("90", "x") == 90 and parse_seconds("1h30m", "x") == 5400
    for wrong in ("", "-1GB", "GB", "1 2GB", "0MB"):
        with pytest.raises(UserError):
            parse_bytes(wrong, "x")
    for wrong in ("", "m", "5x", "5m later", "-1s"):
        with pytest.raises(UserError):
            parse_seconds(wrong, "x")
    assert [shown_bytes(n) for n in (12, 1500, 300_000_000, 4_000_000_000)] == [
        "12 B",
        "1.5 kB",
        "300 MB",
        "4 GB",
    ]
