"""The page of a tuning, through both commands that write it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lmworks.cli.main import main
from lmworks.core.errors import UserError
from lmworks.core.files import write_json
from lmworks.core.stages import Artifact
from lmworks.evaluation.tuning_page import tuning_page, write_tuning_page


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    command = ["--quiet", "train", "tune", "--depth", "1", "--batch-size", "4"]
    command += ["--context-length", "32", "--vocab-size", "64", "--out", str(folder / "tuning")]
    assert main([*command, "--html", str(folder / "page.html")]) == 0
    return folder


def test_the_page_tells_what_was_timed(tuned: Path) -> None:
    page = (tuned / "page.html").read_text()
    timed = json.loads((tuned / "tuning" / "tuning.json").read_text())
    assert page.count("<tr") == len(timed["timed"]) + 1
    assert (
        page.count('class="chosen"') == 1
        and f"{timed['best']['micro_batch_size']} (chosen)" in page
    )
    assert all(
        len(row["looks"]) >= 1 and row["estimated_memory_bytes"] > 0 for row in timed["timed"]
    )
    assert (
        "micro_batch_size" in page
        and "<script" not in page
        and "http" not in page.split("</head>")[1]
    )
    again = tuned / "again.html"
    assert main(["--quiet", "show", str(tuned / "tuning"), "--html", str(again)]) == 0
    assert again.read_text() == page


def test_nothing_of_a_file_becomes_markup(tuned: Path, tmp_path: Path) -> None:
    artifact = Artifact.load(tuned / "tuning")
    written = json.loads((artifact.path / "tuning.json").read_text())
    written["timed"][0]["precision"] = "<img src=x>"
    write_json(tmp_path / "tuning.json", written)
    page = tuning_page(Artifact(path=tmp_path, manifest=artifact.manifest))
    assert "<img" not in page and "&lt;img" in page


def test_a_folder_that_is_no_tuning_is_told(tuned: Path, tmp_path: Path) -> None:
    artifact = Artifact.load(tuned / "tuning")
    with pytest.raises(UserError, match=r"holds no tuning\.json"):
        tuning_page(Artifact(path=tmp_path, manifest=artifact.manifest))
    (tmp_path / "tuning.json").write_text("[]")
    with pytest.raises(UserError, match="lists nothing that was timed"):
        tuning_page(Artifact(path=tmp_path, manifest=artifact.manifest))
    with pytest.raises(UserError, match="not found"):
        write_tuning_page(tmp_path / "nowhere", tmp_path / "page.html")
