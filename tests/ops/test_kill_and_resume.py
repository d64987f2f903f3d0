"""`kill -9` at random moments of a whole recipe: it goes on, and ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = """
steps:
  corpus: {{stage: build_corpus, folder: {folder}}}
  tokenizer: {{stage: train_tokenizer, corpus: "${{corpus}}", vocab_size: 400}}
  questions: {{stage: draw_questions, corpus: "${{corpus}}"}}
  base:
    stage: pretrain
    corpus: ${{corpus}}
    tokenizer: ${{tokenizer}}
    depth: 1
    context_length: 64
    num_steps: 150
    checkpoint_every_s: 0.05
    threads: 1
  chat:
    stage: sft
    model: ${{base}}
    questions: ${{questions}}
    corpus: ${{corpus}}
    num_steps: 80
    checkpoint_every_s: 0.05
    threads: 1
  chat-q8: {{stage: quantize, model: "${{chat}}"}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    from pydoc_data.topics import topics

    folder = tmp_path / "texts"
    folder.mkdir()
    for name in sorted(topics)[:30]:
        (folder / f"{name}.txt").write_text(topics[name])
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(folder=folder))
    return path


def start(recipe: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lmworks.cli.main", "run", str(recipe), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def finish(recipe: Path, out: Path) -> float:
    started = time.monotonic()
    process = start(recipe, out)
    told, _ = process.communicate(timeout=240)
    assert process.returncode == 0, told
    return time.monotonic() - started


def hashes(out: Path) -> dict[str, str]:
    return {
        path.parent.name: json.loads(path.read_text())["sha256"]
        for path in sorted(out.glob("*/lmworks.json"))
    }


def check(recipe: Path, tmp_path: Path, *, kills: int, seed: int) -> None:
    seconds = finish(recipe, tmp_path / "whole")
    expected = hashes(tmp_path / "whole")
    assert list(expected) == ["base", "chat", "chat-q8", "corpus", "questions", "tokenizer"]
    draw, killed = random.Random(seed), 0
    for _ in range(kills):
        process = start(recipe, tmp_path / "killed")
        try:
            process.communicate(timeout=draw.uniform(0.1, 0.6) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += 1
    finish(recipe, tmp_path / "killed")
    assert killed
    assert hashes(tmp_path / "killed") == expected
    left = [p.name for p in (tmp_path / "killed").iterdir() if p.name not in expected]
    assert not left, "locks, partial folders or old artifacts were left behind"


def test_three_kills_change_nothing(recipe: Path, tmp_path: Path) -> None:
    check(recipe, tmp_path, kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_forty_kills_change_nothing(recipe: Path, tmp_path: Path) -> None:
    check(recipe, tmp_path, kills=40, seed=2)
