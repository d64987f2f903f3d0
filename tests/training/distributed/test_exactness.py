"""Plans over several processes give the losses of one; runs go on with other numbers of them."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).with_name("worker.py")
_spec = importlib.util.spec_from_file_location("distributed_worker", WORKER)
assert _spec and _spec.loader
worker = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(worker)

Case = dict[str, Any]


def start(cases: list[Case], count: int, folder: Path, name: str) -> list[subprocess.Popen[str]]:
    """The same cases in `count` processes that meet; `finish` waits for them."""
    for index, case in enumerate(cases):
        case.setdefault("work", str(folder / f"{name}.{index}"))
    (folder / f"{name}.json").write_text(json.dumps(cases))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(count):
        place = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "MASTER_PORT": port}
        environment = {
            **os.environ,
            **{name: str(value) for name, value in place.items()},
            "MASTER_ADDR": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }
        children.append(
            subprocess.Popen(
                [sys.executable, str(WORKER), str(folder / f"{name}.json")],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return children


def finish(children: list[subprocess.Popen[str]], folder: Path, name: str) -> list[Case]:
    said = [child.communicate(timeout=3000)[0] for child in children]  # pytest has a limit too
    assert [child.returncode for child in children] == [0] * len(children), "\n".join(said)
    found: list[Case] = json.loads((folder / f"{name}.out.json").read_text())
    return found


def together(cases: list[Case], count: int, folder: Path, name: str = "cases") -> list[Case]:
    return finish(start(cases, count, folder, name), folder, name)


def alone(case: Case, folder: Path, name: str = "alone") -> Case:
    settings = {k: v for k, v in case.items() if k not in ("parallel", "work")}
    found: Case = worker.train({"work": str(folder / name), **settings})
    return found


def assert_equal(found: Case, wanted: Case, tolerance: float = 1e-9) -> None:
    assert found["seen"] == wanted["seen"]  # the same rows in the same order
    for name in ("loss", "grad_norm", "heldout", "weights"):
        assert found[name] == pytest.approx(wanted[name], abs=tolerance, rel=tolerance), name


QUICK: list[Case] = [
    {"steps": 5, "optimizer": "muon", "parallel": {}},
    {"steps": 5, "optimizer": "muon", "parallel": {"shard": 2, "zero": 1}},
    {"steps": 6, "optimizer": "muon", "parallel": {"shard": 2, "zero": 3}, "micro": 2},
    {"steps": 6, "optimizer": "adamw", "parallel": {"shard": 2, "zero": 2}},
    {"steps": 5, "optimizer": "muon", "parallel": {"tensor": 2}, "key_heads": 1, "micro": 3},
    {"steps": 5, "optimizer": "adafactor", "parallel": {"tensor": 2}, "tied": False},
    {"steps": 5, "optimizer": "muon", "parallel": {"pipeline": 2}},
    {"steps": 5, "optimizer": "lion", "parallel": {"pipeline": 2, "schedule": "gpipe"}},
    {"steps": 3, "optimizer": "adamw_8bit", "parallel": {"shard": 2, "zero": 3}},
    {"steps": 4, "parallel": {}, "batch": 7, "micro": 2},
    {"steps": 4, "parallel": {"shard": 2, "zero": 3}, "batch": 7},
]
# Losses out of float32 figures, and of rows that are compared with each other.
TOGETHER: list[Case] = [
    {"steps": 4, "objective": "in_batch", "parallel": {}, "batch": 7},
    {"steps": 4, "objective": "in_batch", "parallel": {"shard": 2, "zero": 3}, "micro": 2},
    {"steps": 4, "objective": "kto", "parallel": {}, "micro": 2},
    {"steps": 4, "objective": "kto", "parallel": {"shard": 2, "zero": 2}},
    {"steps": 4, "objective": "kto", "parallel": {"tensor": 2}},
    {"steps": 4, "objective": "dpo", "parallel": {}, "batch": 5},
]


def test_two_processes_equal_one(tmp_path: Path) -> None:
    cases = [*QUICK, *TOGETHER]
    wanted = [alone(case, tmp_path, f"alone{i}") for i, case in enumerate(cases)]
    results = together([dict(case) for case in cases], 2, tmp_path)
    for case, found, one in zip(cases, results, wanted, strict=True):
        try:
            assert_equal(found, one, 1e-6 if case in TOGETHER else 1e-9)
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from error


@pytest.mark.parametrize("optimizer", ["muon", pytest.param("adamw", marks=pytest.mark.slow)])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path, optimizer: str) -> None:
    case = {"steps": 9, "optimizer": optimizer, "work": str(tmp_path / "shared")}
    wanted = alone({"steps": 9, "optimizer": optimizer}, tmp_path)
    plan = {"shard": 2, "zero": 3} if optimizer == "muon" else {"tensor": 2}
    together([{**case, "parallel": plan, "stop_after": 4}], 2, tmp_path, "first")
    alone({**case, "stop_after": 6}, tmp_path, "shared")
    last = {"pipeline": 2} if optimizer == "muon" else {"shard": 2, "zero": 1}
    (found,) = together([{**case, "parallel": last}], 2, tmp_path, "last")
    found["seen"] = wanted["seen"][:6] + found["seen"]
    assert_equal(found, wanted)


@pytest.mark.parametrize("dead", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_dead_process_is_named_by_the_others(tmp_path: Path, dead: int) -> None:
    cases = [{"steps": 500, "die": [dead, 2], "parallel": {"data": 2}}]
    children = start(cases, 2, tmp_path, "dies")
    children[dead].communicate(timeout=200)
    died = time.monotonic()
    said = children[1 - dead].communicate(timeout=100)[0]
    assert time.monotonic() - died < 30
    assert children[dead].returncode == -signal.SIGKILL
    assert children[1 - dead].returncode == 75
    line = said.strip().splitlines()[-1]
    assert line.startswith(f"process {dead} of 2 (") and line.endswith("start it again"), said


LONG: dict[int, list[Case]] = {
    2: [
        {"parallel": {"data": 2}, "optimizer": "muon"},
        {"parallel": {"shard": 2, "zero": 1}, "optimizer": "muon"},
        {"parallel": {"shard": 2, "zero": 2}, "optimizer": "adamw", "micro": 2},
        {"parallel": {"shard": 2, "zero": 3}, "optimizer": "muon", "micro": 2},
        {"parallel": {"tensor": 2}, "optimizer": "muon"},
        {"parallel": {"pipeline": 2}, "optimizer": "muon"},
        {"parallel": {"shard": 2}, "layers": "mamba2,gla,rwkv,convolution", "depth": 4},
        {"parallel": {"tensor": 2}, "layers": "window,nope"},
    ],
    4: [
        {"parallel": {"data": 2, "tensor": 2}, "optimizer": "muon"},
        {"parallel": {"data": 2, "pipeline": 2}, "optimizer": "muon"},
        {"parallel": {"shard": 2, "tensor": 2}, "optimizer": "adamw"},
        {"parallel": {"tensor": 2, "pipeline": 2}, "optimizer": "muon"},
        {"parallel": {"data": 2, "shard": 2}, "optimizer": "adamw"},
        {"parallel": {"tensor": 4}, "optimizer": "adamw", "key_heads": 1},
        {"parallel": {"pipeline": 4}, "optimizer": "adamw", "depth": 4, "tied": False},
    ],
}


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("count", [2, 4])
def test_a_hundred_steps_equal_one_process(tmp_path: Path, count: int) -> None:
    cases = [{"steps": 100, **case} for case in LONG[count]]
    wanted = [alone(case, tmp_path, f"alone{i}") for i, case in enumerate(cases)]
    results = together([dict(case) for case in cases], count, tmp_path)
    for case, found, one in zip(cases, results, wanted, strict=True):
        off = max(abs(a - b) for a, b in zip(found["loss"], one["loss"], strict=True))
        print(f"{case}: largest difference of a loss {off:.2e}")
        assert_equal(found, one)


@pytest.mark.slow
def test_from_two_processes_to_one_to_four(tmp_path: Path) -> None:
    case = {"steps": 12, "optimizer": "muon", "work": str(tmp_path / "shared")}
    wanted = alone({"steps": 12, "optimizer": "muon"}, tmp_path)
    together([{**case, "parallel": {"shard": 2}, "stop_after": 4}], 2, tmp_path, "two")
    alone({**case, "stop_after": 8}, tmp_path, "shared")
    plan = {"data": 2, "tensor": 2}
    (found,) = together([{**case, "parallel": plan}], 4, tmp_path, "four")
    found["seen"] = wanted["seen"][:8] + found["seen"]
    assert_equal(found, wanted)
