"""Trainings as a page, by command: what is on it, and that what a text says is only text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lmworks.cli.show import command
from lmworks.core.errors import UserError


def training(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    history = {
        "loss": [4.0, 3.0, 2.5, 2.0],
        "grad_norm": [1.0, 0.9, 0.8, None],
        "heldout_step": [0, 4],
        "heldout_loss": [4.1, 2.2],
        "metrics": {"accuracy": [0.1, 0.2, 0.3, 0.4]},
        "skipped": [2],
        "events": [
            {"step": 2, "kind": "spike", "message": "worst row: '<script>alert(1)</script>'"}
        ],
    }
    (folder / "history.json").write_text(json.dumps(history | changes))
    manifest = {
        "kind": "model", "stage": "pretrain", "fingerprint": "f", "sha256": "s" * 64,
        "config": {}, "inputs": {}, "metrics": {"train_loss": 2.0, "num_steps": 4, "parts": {}},
        "seconds": 1.0, "peak_memory_bytes": 1, "finished": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    (folder / "lmworks.json").write_text(json.dumps(manifest))
    return folder


def run(*arguments: object) -> str:
    result = CliRunner().invoke(command, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_a_training_is_a_page_of_curves_and_events(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    run(training(tmp_path / "base"), "--html", out)
    page = out.read_text()
    for wanted in ("Norm of the gradient", "accuracy", "training from 4 to 2", "spike"):
        assert wanted in page
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<polyline") == 4


def test_several_trainings_share_their_axes(tmp_path: Path) -> None:
    one = training(tmp_path / "one")
    other = training(tmp_path / "other", metrics={}, heldout_step=[], heldout_loss=[])
    run(one, other, "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "one: training" in page
    assert "other: training" in page
    assert "other: held out" not in page


def test_what_is_no_training_is_named(tmp_path: Path) -> None:
    folder = training(tmp_path / "base")
    (folder / "history.json").unlink()
    with pytest.raises(UserError, match=r"is no training: it holds no history\.json"):
        run(folder, "--html", tmp_path / "page.html")
    (folder / "history.json").write_text("[1]")
    with pytest.raises(UserError, match="is no history of a training"):
        run(folder, "--html", tmp_path / "page.html")
    assert "made by pretrain" in run(folder)
