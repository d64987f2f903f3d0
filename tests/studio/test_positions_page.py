"""The page on positions: pictures as the command draws them, and finished runs."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from lmworks.evaluation.position_pictures import Parameters, position_pictures
from lmworks.studio.app import create_app

REPORT = {
    "kind": "length_extrapolation", "summary": "<b>rope</b> costs least", "baseline": "rope",
    "context_length": 8, "test_length": 16, "depth": 1, "num_steps": 5, "seeds": 2, "windows": 9,
    "documents": 7, "bins": [[0, 4], [4, 8], [8, 12], [12, 16]],
    "schemes": [
        {"name": name, "about": f"what {name} does", "curve": curve, "seeds": [curve, curve],
         "regions": [{"name": "trained", "first": 4, "last": 8, "verdict": verdict,
                      "bits_per_byte": {"estimate": 2.5, "low": 2.4, "high": 2.6},
                      "versus": versus, "versus_over_seeds": versus}]}
        for name, curve, verdict, versus in (
            ("rope", [3.0, 2.5, 2.6, 9.0], "", None),
            ("rope, yarn", [3.0, 2.5, 2.4, 2.3], "better",
             {"estimate": -0.1, "low": -0.2, "high": -0.05}),
        )
    ],
}  # fmt: skip


def put_run(folder, name, report=REPORT, stage="length_extrapolation"):
    (folder / name).mkdir(parents=True)
    (folder / name / "lmworks.json").write_text(json.dumps({"stage": stage}))
    (folder / name / "report.json").write_text(json.dumps(report))


@pytest.fixture
def at_runs(tmp_path, monkeypatch):
    put_run(tmp_path, "runs/positions")
    put_run(tmp_path, "runs/other", stage="evaluate")
    put_run(tmp_path, "runs/odd", report=["kind"])
    (tmp_path / "runs" / "odd" / "report.json").write_text("{")
    monkeypatch.chdir(tmp_path)


def test_pictures_are_those_of_the_command(ask):
    answer = ask("POST", "/api/positions", json={"length": 30, "dimensions": 16}).json()
    wanted = position_pictures(Parameters(length=30, dimensions=16))
    assert [p["name"] for p in answer["pictures"]] == [p.name for p in wanted.pictures]
    for mine, other in zip(answer["pictures"], wanted.pictures):
        data = np.frombuffer(base64.b64decode(mine["image"]), np.uint8).reshape(mine["shape"])
        scaled = other.values / max(other.high, -other.low)
        assert np.abs(data / 127.5 - 1 - scaled).max() < 0.005
    assert answer["slopes"][0]["slope"] == 0.5 and not answer["own"]


def test_sizes_of_a_loaded_model(ask):
    answer = ask("POST", "/api/positions", json={"model": "tiny", "length": 30}).json()
    assert answer["parameters"]["dimensions"] == 8 and answer["parameters"]["heads"] == 4
    gone = ask("POST", "/api/positions", json={"model": "tini"})
    assert gone.status_code == 404 and "did you mean 'tiny'" in gone.json()["error"]["message"]


def test_odd_sizes_are_told(ask):
    odd = ask("POST", "/api/positions", json={"dimensions": 7}).json()["error"]["message"]
    assert "even number" in odd
    assert ask("POST", "/api/positions", json={"length": 10**6}).status_code == 400


def test_finished_runs_are_found_and_nothing_else(at_runs, ask):
    answer = ask("GET", "/api/positions/runs").json()
    assert [run["name"] for run in answer["runs"]] == ["runs/positions"]
    assert answer["models"] == ["tiny"]
    page = ask("POST", "/api/positions/export", json={}).text
    assert "<script" not in page and "How positions are told" in page


@pytest.fixture
def place(at_runs, live_app):
    with live_app(create_app()) as live:
        yield live


@pytest.mark.browser
def test_pictures_sizes_keys_and_runs(page, place, tmp_path):
    page.goto(f"{place.url}/positions")
    page.wait_for_selector("body[data-ready]")
    count = len(position_pictures(Parameters()).pictures)
    assert page.locator("#pictures canvas").count() == count
    first = page.locator("#pictures canvas").first
    first.focus()
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#detail") == "Sinusoidal: position 1, dimension 0: 0.84"
    page.fill("#dimensions", "32")
    page.wait_for_function("() => document.querySelector('#pictures canvas').width === 32")
    assert "dimensions=32" in page.url
    page.fill("#dimensions", "33")
    page.locator("#failure", has_text="Dimensions: from 4 to 512, in twos").wait_for()
    page.fill("#dimensions", "16")
    page.wait_for_function("() => document.querySelector('#pictures canvas').width === 16")
    assert page.inner_text("#run-summary") == "<b>rope</b> costs least"
    rows = page.locator("#run-table tbody tr")
    assert rows.count() == 2 and "better" in rows.nth(1).inner_text()
    assert page.locator("#run-chart polyline").count() == 2
    page.locator("#run-chart .key button").nth(1).click()
    assert page.locator("#run-chart polyline.faint").count() == 1
    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as(tmp_path / "saved.html")
    assert "<script" not in (tmp_path / "saved.html").read_text()
    page.set_viewport_size({"width": 390, "height": 844})
    assert not page.evaluate(
        "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    )
    before = page.evaluate("[...document.querySelector('#pictures canvas').getContext('2d')"
                           ".getImageData(0, 0, 1, 1).data]")  # fmt: skip
    page.click("#theme")
    after = page.evaluate("[...document.querySelector('#pictures canvas').getContext('2d')"
                          ".getImageData(0, 0, 1, 1).data]")  # fmt: skip
    assert before != after
